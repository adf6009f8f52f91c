package campaign

import (
	"os"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"
)

// scenario is a row of testdata/verdicts.yaml.
type scenario struct {
	Name        string
	Wave, All   map[UserState]int
	Opened      time.Duration
	MaxWaiting  *int `yaml:"max_waiting"`
	MaxFailures *int `yaml:"max_failures"`
	PassPercent *int `yaml:"pass_percent"`
	Verdict     Verdict
}

func TestWhatBecomesOfAWave(t *testing.T) {
	raw, err := os.ReadFile("testdata/verdicts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var scenarios []scenario
	if err := yaml.Unmarshal(raw, &scenarios); err != nil {
		t.Fatal(err)
	}
	counts := func(of map[UserState]int) (c Counts) {
		for state, n := range of {
			*c.Of(state) = n
		}
		return c
	}
	for _, s := range scenarios {
		t.Run(s.Name, func(t *testing.T) {
			p := Defaults()
			for bound, said := range map[*int]*int{&p.MaxWaiting: s.MaxWaiting, &p.MaxFailures: s.MaxFailures, &p.PassPercent: s.PassPercent} {
				if said != nil {
					*bound = *said
				}
			}
			if s.All == nil {
				s.All = s.Wave
			}
			if got := Judge(p, counts(s.Wave), counts(s.All), s.Opened); got != s.Verdict {
				t.Errorf("got %s, want %s", got, s.Verdict)
			}
		})
	}
	if len(scenarios) < 20 {
		t.Errorf("only %d scenarios were read", len(scenarios))
	}
}

func drawCounts(t *rapid.T, label string) (c Counts) {
	for _, state := range UserStates() {
		*c.Of(state) = rapid.IntRange(0, 200).Draw(t, label+" "+string(state))
	}
	return c
}

func TestVerdictsHoldWhatTheyPromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Defaults()
		p.PassPercent, p.MaxFailures = rapid.IntRange(1, 100).Draw(t, "pass"), rapid.IntRange(0, 100).Draw(t, "failures")
		p.MaxWaiting = rapid.IntRange(0, 100).Draw(t, "waiting")
		wave := drawCounts(t, "wave")
		all := wave.Add(drawCounts(t, "others"))
		opened := time.Duration(rapid.Int64Range(0, int64(2*p.MaxWait)).Draw(t, "opened"))
		got := Judge(p, wave, all, opened)
		bad := func(c Counts) bool {
			return (c.Done+c.Failing() >= MinSettled || p.MaxFailures == 0) && 100*c.Failing() > p.MaxFailures*(c.Done+c.Failing())
		}
		failing := 100*wave.Failing() > p.MaxFailures*(wave.Done+wave.Failing())
		enough := wave.Done*100 >= p.PassPercent*wave.Counting() && !failing
		waiting := wave.UnderWay() * 100
		switch {
		case (got == Stop) != (bad(wave) || bad(all)):
			t.Fatalf("%s with %+v of %+v", got, wave, all)
		case got == Pass && wave.Pending > 0:
			t.Fatal("it passes before all have begun")
		case got == Pass && failing:
			t.Fatalf("it passes with %+v", wave)
		case got == Pass && !enough && (opened < p.MaxWait || waiting > p.MaxWaiting*wave.Counting()):
			t.Fatalf("it passes with %+v after %s", wave, opened)
		case got == Wait && wave.Pending == 0 && (enough || opened >= p.MaxWait):
			t.Fatalf("it waits for %+v after %s", wave, opened)
		}
		// Another user who is done makes nothing worse.
		better := wave
		if better.Waiting > 0 && got == Pass {
			better.Waiting, better.Done = better.Waiting-1, better.Done+1
			all.Waiting, all.Done = all.Waiting-1, all.Done+1
			if next := Judge(p, better, all, opened); next != Pass {
				t.Fatalf("with one more done it is %s", next)
			}
		}
	})
}

func TestTheRateIsNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.IntRange(1, 10_000).Draw(t, "rate")
		begin := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
		now, credit, begun, asked := begin, begin, 0, 0
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(3*time.Minute)).Draw(t, "passed")))
			allowed := Allowance(rate, credit, now)
			n := rapid.IntRange(0, allowed).Draw(t, "begun")
			if allowed > rate {
				t.Fatalf("%d may begin at once, of %d a minute", allowed, rate)
			}
			credit = Spent(rate, credit, now, n)
			begun, asked = begun+n, asked+allowed-n
		}
		if most := now.Sub(begin).Minutes() * float64(rate); float64(begun) > most+1 {
			t.Fatalf("%d began in %s, of %d a minute", begun, now.Sub(begin), rate)
		}
	})
}

func TestHowLongTheHomeserverTakes(t *testing.T) {
	for _, test := range []struct {
		name string
		of   Homeserver
		want time.Duration
	}{
		{"nothing was measured, and nothing waits", Homeserver{}, 0},
		{"it was measured", Homeserver{Measured: time.Second}, time.Second},
		{"a message waits its turn for longer", Homeserver{Measured: time.Second, Untried: time.Minute, Unsent: time.Minute}, time.Minute},
		{"a message waits its turn for less", Homeserver{Measured: time.Second, Untried: time.Millisecond, Unsent: time.Millisecond}, time.Second},
		{"one message fails again and again, and others do not", Homeserver{Measured: time.Second, Unsent: time.Hour}, time.Second},
		{"nothing was measured, and a message fails again and again", Homeserver{Untried: time.Second, Unsent: time.Hour}, time.Hour},
		{"another clock is behind", Homeserver{Untried: -time.Second, Unsent: -time.Second}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.of.Latency(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestASlowHomeserverSlowsTheCampaign(t *testing.T) {
	p := Parameters{Rate: 120, MaxLatency: time.Second}
	for _, test := range []struct {
		name    string
		latency time.Duration
		want    int
	}{{"nothing is known of it", 0, 120}, {"it is fast", time.Millisecond, 120}, {"it is at the bound", time.Second, 120}, {"it takes twice as long", 2 * time.Second, 60}, {"it hardly answers", time.Hour, 1}} {
		t.Run(test.name, func(t *testing.T) {
			if got := Slowed(p, test.latency); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}
