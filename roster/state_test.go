package roster

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func hour(n float64) time.Time { return epoch.Add(time.Duration(n * float64(time.Hour))) }

// theTime is when everybody is looked at.
var theTime = hour(100)

type scenarioRotation struct {
	State     rotation.State     `yaml:"state"`
	Held      bool               `yaml:"held"`
	HeldFor   rotation.Hold      `yaml:"held_for"`
	Attention protocol.ErrorCode `yaml:"attention"`
	Failure   protocol.ErrorCode `yaml:"failure"`
	Next      string             `yaml:"next_action"`
}

func (r *scenarioRotation) rotation(name string) Rotation {
	if r == nil {
		return Rotation{}
	}
	return Rotation{uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)), r.State, r.Held, r.HeldFor, r.Attention, r.Failure, r.Next}
}

type scenario struct {
	Name            string            `yaml:"name"`
	ExemptUntil     *float64          `yaml:"exempt_until"`
	Enrolled        int               `yaml:"enrolled"`
	NeedsEnrollment int               `yaml:"needs_enrollment"`
	Revoked         int               `yaml:"revoked"`
	Interval        int               `yaml:"interval"`
	ToldOnce        int               `yaml:"told_once"`
	MaxAge          int               `yaml:"max_age"`
	Key             *float64          `yaml:"key"`
	Open            *scenarioRotation `yaml:"open"`
	Last            *scenarioRotation `yaml:"last"`
	Status          *struct {
		At       float64            `yaml:"at"`
		Version  string             `yaml:"version"`
		HoldsKey bool               `yaml:"holds_key"`
		Drift    protocol.DriftKind `yaml:"drift"`
	} `yaml:"status"`

	Is         State  `yaml:"is"`
	Cause      Cause  `yaml:"cause"`
	Next       string `yaml:"next_action"`
	PastMaxAge bool   `yaml:"past_max_age"`
}

func (s scenario) facts() Facts {
	f := Facts{Entry: Entry{UserID: "@alice:example.org"}, Devices: Devices{s.Enrolled, s.NeedsEnrollment, s.Revoked}, Open: s.Open.rotation("open"), Last: s.Last.rotation("last")}
	if s.ExemptUntil != nil {
		f.Entry.Exemption = Exemption{"on leave", hour(*s.ExemptUntil)}
	}
	if s.Status != nil {
		f.Status = Status{hour(s.Status.At), s.Status.Version, s.Status.HoldsKey, s.Status.Drift}
	}
	if s.Key != nil {
		f.Key.Since = hour(*s.Key)
	}
	return f
}

func TestWhereEverybodyStandsIsAsTheScenariosSay(t *testing.T) {
	raw, err := os.ReadFile("testdata/standings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var scenarios []scenario
	if err := decoder.Decode(&scenarios); err != nil {
		t.Fatal(err)
	}
	seen := map[State]bool{}
	for _, s := range scenarios {
		t.Run(s.Name, func(t *testing.T) {
			config := Config{StatusInterval: time.Duration(s.Interval) * time.Hour, ToldOnce: time.Duration(s.ToldOnce) * time.Hour}
			got := config.Classify(s.facts(), time.Duration(s.MaxAge)*time.Hour, theTime)
			if got.State != s.Is || got.Cause != s.Cause || got.PastMaxAge != s.PastMaxAge {
				t.Errorf("it is %s because of %q (past max_age: %t)", got.State, got.Cause, got.PastMaxAge)
			}
			if s.Next != "" && got.NextAction != s.Next {
				t.Errorf("the next action is %q", got.NextAction)
			}
			seen[got.State] = true
		})
	}
	for _, state := range States() {
		if !seen[state] {
			t.Errorf("no scenario is %s", state)
		}
	}
}

var (
	instants = rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.Bool().Draw(t, "none") {
			return time.Time{}
		}
		return hour(rapid.Float64Range(-10, 110).Draw(t, "hour"))
	})
	rotations = rapid.Custom(func(t *rapid.T) Rotation {
		r := Rotation{State: rapid.SampledFrom([]rotation.State{rotation.Received, rotation.Working, rotation.WaitingForEnrollment, rotation.Done, rotation.Failed, rotation.TimedOut}).Draw(t, "state"),
			Held: rapid.Bool().Draw(t, "held"), HeldFor: rapid.SampledFrom([]rotation.Hold{rotation.HoldStorm, rotation.HoldReadAgain, rotation.HoldLogUnsigned}).Draw(t, "for"),
			Attention: rapid.SampledFrom([]protocol.ErrorCode{"", protocol.AttentionKMSForbidden, protocol.StoreWentBackwards, "of a later version"}).Draw(t, "attention"),
			Failure:   rapid.SampledFrom([]protocol.ErrorCode{"", protocol.FaultInternal}).Draw(t, "failure")}
		if rapid.Bool().Draw(t, "there") {
			r.ID = uuid.NewSHA1(uuid.NameSpaceOID, []byte("r"))
		}
		return r
	})
	anyFacts = rapid.Custom(func(t *rapid.T) Facts {
		few := rapid.IntRange(0, 2)
		f := Facts{Entry: Entry{UserID: "@alice:example.org"}, Devices: Devices{few.Draw(t, "enrolled"), few.Draw(t, "needs"), few.Draw(t, "revoked")},
			Status: Status{instants.Draw(t, "status"), rapid.SampledFrom([]string{"", "7"}).Draw(t, "version"), rapid.Bool().Draw(t, "holds"),
				rapid.SampledFrom([]protocol.DriftKind{"", protocol.DriftKMS, protocol.DriftNone}).Draw(t, "drift")},
			Key: Key{instants.Draw(t, "since"), rapid.Bool().Draw(t, "seen")}, Open: rotations.Draw(t, "open"), Last: rotations.Draw(t, "last")}
		if rapid.Bool().Draw(t, "exempt") {
			f.Entry.Exemption = Exemption{"on leave", hour(rapid.Float64Range(90, 110).Draw(t, "until"))}
		}
		return f
	})
)

func TestEverybodyIsInExactlyOneStateAndWhoIsNotCurrentHasSomethingToDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		facts := anyFacts.Draw(t, "facts")
		maxAge := time.Duration(rapid.IntRange(0, 50).Draw(t, "max age")) * time.Hour
		config := Config{StatusInterval: time.Duration(rapid.IntRange(0, 5).Draw(t, "interval")) * time.Hour}
		got := config.Classify(facts, maxAge, theTime)
		if !slices.Contains(States(), got.State) {
			t.Fatalf("the state is %q", got.State)
		}
		if again := config.Classify(facts, maxAge, theTime); again != got {
			t.Fatalf("it is %v, and again %v", got, again)
		}
		stuck := got.State == NotCovered || got.State == NeedsAttention || got.State == Unknown || got.State == Overdue
		if stuck && (got.Cause == "" || got.NextAction == "") {
			t.Fatalf("%s has cause %q and next action %q", got.State, got.Cause, got.NextAction)
		}
		// What each state promises, whatever else is so.
		fresh := !facts.Status.At.IsZero() && theTime.Sub(facts.Status.At) <= config.Silence()
		enrolled, exempt := facts.Devices.Enrolled > 0, facts.Entry.Exemption.At(theTime)
		if exempt != (got.State == Exempt) {
			t.Fatalf("exempt: %t, and it is %s", exempt, got.State)
		}
		if !exempt && !enrolled != (got.State == NotCovered) {
			t.Fatalf("enrolled: %t, and it is %s", enrolled, got.State)
		}
		switch got.State {
		case Current:
			if !fresh || got.PastMaxAge || facts.Open.ID != uuid.Nil || !facts.Status.HoldsKey || facts.Status.BackupVersion == "" || facts.Status.Drift != "" {
				t.Fatal("somebody is current who is not")
			}
		case Unknown:
			if fresh {
				t.Fatal("somebody is unknown who was heard of")
			}
		case InProgress:
			if !fresh || facts.Open.ID == uuid.Nil || facts.Open.Attention != "" {
				t.Fatal("nothing is in progress")
			}
		case Overdue:
			if !fresh || maxAge == 0 || !facts.Key.Since.IsZero() && !got.PastMaxAge {
				t.Fatal("nothing is overdue")
			}
		}
	})
}

func TestAClockThatCannotBeRightIsNotTaken(t *testing.T) {
	for _, test := range []struct {
		name       string
		told, want float64
	}{
		{"while the rotation was under way", 50, 50},
		{"in the moment it began", 10, 10},
		{"now", 100, 100},
		{"before the rotation", 9, 100},
		{"never set", -1e6, 100},
		{"in the future", 101, 100},
	} {
		if got := KeyCreated(hour(test.told), hour(10), hour(100)); !got.Equal(hour(test.want)) {
			t.Errorf("%s: it is %s", test.name, got)
		}
	}
}

func TestComplianceIsAlwaysToldWithBothNumbers(t *testing.T) {
	for _, test := range []struct {
		name   string
		states map[State]int
		want   string
	}{
		{"nobody", nil, "0 of 0"},
		{"everybody is exempt", map[State]int{Exempt: 3}, "0 of 0"},
		{"who is exempt does not count", map[State]int{Exempt: 5, Current: 3, Overdue: 1}, "3 of 4 (75.00 %)"},
		{"what is not everybody is not 100 %", map[State]int{Current: 99_999, Unknown: 1}, "99999 of 100000 (99.99 %)"},
		{"everybody", map[State]int{Current: 7}, "7 of 7 (100.00 %)"},
		{"in progress is not current", map[State]int{InProgress: 2}, "0 of 2 (0.00 %)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c Compliance
			for state, n := range test.states {
				for range n {
					c.Add(Standing{State: state})
				}
			}
			if got := c.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if current, of := c.Current(); of == 0 {
				if _, ok := c.Share(); ok {
					t.Error("there is a share of nobody")
				}
			} else if share, ok := c.Share(); !ok || share != float64(current)/float64(of) {
				t.Errorf("the share is %v", share)
			}
		})
	}
}

func TestAKeyThatIsTooOldCountsInEveryStateButExempt(t *testing.T) {
	var c Compliance
	for _, state := range States() {
		c.Add(Standing{State: state, PastMaxAge: true})
		c.Add(Standing{State: state})
	}
	if want := len(States()) - 1; c.PastMaxAge != want {
		t.Errorf("it counts %d and not %d", c.PastMaxAge, want)
	}
}

func TestADeviceThatAskedAgainIsReleasedAndAnotherGetsACode(t *testing.T) {
	next := NextAction(DeviceNeedsEnrollment)
	if !strings.Contains(next, "keyherald reenrollments") || !strings.Contains(next, "keyherald enroll)") {
		t.Errorf("it names one of the two ways at most: %s", next)
	}
}

// docs/enforcement.md has every state and every cause that no rotation has.
func TestTheDocumentHasEveryStateAndCause(t *testing.T) {
	document, err := os.ReadFile("../docs/enforcement.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range States() {
		if !strings.Contains(string(document), "`"+string(state)+"`") {
			t.Errorf("docs/enforcement.md does not have the state %s", state)
		}
	}
	for _, r := range Remedies() {
		if !strings.Contains(string(document), "`"+string(r.Cause)+"`") {
			t.Errorf("docs/enforcement.md does not have the cause %s", r.Cause)
		}
	}
}
