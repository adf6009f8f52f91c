package campaign

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

func drawUsers(t *rapid.T) []id.UserID {
	n := rapid.IntRange(0, 400).Draw(t, "users")
	users := make([]id.UserID, n)
	for i := range users {
		users[i] = id.UserID(fmt.Sprintf("@user%d:example.org", i))
	}
	return users
}

func drawWaves(t *rapid.T) []int {
	waves := rapid.SliceOfDistinct(rapid.IntRange(1, 99), rapid.ID[int]).Draw(t, "waves")
	slices.Sort(waves)
	return append(waves[:min(len(waves), 5)], 100)
}

func TestEverybodyHasOnePlaceAndAlwaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		users, waves := drawUsers(t), drawWaves(t)
		places := Assign("a hash", users, waves)
		shuffled := rapid.Permutation(users).Draw(t, "shuffled")
		if again := Assign("a hash", shuffled, waves); !slices.Equal(places, again) {
			t.Fatal("in another order the places are others")
		}
		seen, last, in := map[id.UserID]bool{}, 0, make([]int, len(waves)+1)
		for i, place := range places {
			if seen[place.UserID] || place.Wave < last || place.Turn != i+1 {
				t.Fatalf("place %d is %+v after wave %d", i, place, last)
			}
			seen[place.UserID], last = true, place.Wave
			in[place.Wave]++
		}
		if len(seen) != len(users) {
			t.Fatalf("%d of %d have a place", len(seen), len(users))
		}
		begun := 0
		for w, percent := range waves {
			if in[w+1] == 0 && begun < len(users) {
				t.Fatalf("wave %d of %v is empty with %d users left", w+1, waves, len(users)-begun)
			}
			begun += in[w+1]
			if share := len(users) * percent; begun*100 < share || begun*100 > share+100*(w+1) {
				t.Fatalf("after wave %d of %v %d of %d have begun", w+1, waves, begun, len(users))
			}
		}
	})
}

func TestTheFirstWavesAreOthersInAnotherCampaign(t *testing.T) {
	users := make([]id.UserID, 1000)
	for i := range users {
		users[i] = id.UserID(fmt.Sprintf("@user%d:example.org", i))
	}
	first, second := Assign("one", users, []int{1, 100})[:10], Assign("another", users, []int{1, 100})[:10]
	if slices.Equal(first, second) {
		t.Error("the same users come first in every campaign")
	}
}

func TestTheHashIsOfUsersAndParameters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		users := drawUsers(t)
		p := Defaults()
		p.Who, p.Reason, p.Rate = Who{All: true}, "why", rapid.IntRange(1, 100).Draw(t, "rate")
		hash := func(p Parameters, users []id.UserID) Hash {
			h, err := HashOf(p, users)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		is := hash(p, users)
		if hash(p, rapid.Permutation(users).Draw(t, "shuffled")) != is {
			t.Fatal("in another order the hash is another")
		}
		if hash(p, append(slices.Clone(users), "@eve:example.org")) == is {
			t.Fatal("with another user the hash is the same")
		}
		other := p
		other.Rate++
		if hash(other, users) == is {
			t.Fatal("with another rate the hash is the same")
		}
		// As the database keeps them.
		raw, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var kept Parameters
		if err := json.Unmarshal(raw, &kept); err != nil || hash(kept, users) != is {
			t.Fatalf("what was kept has another hash: %v", err)
		}
	})
}

func TestWhomACampaignIsFor(t *testing.T) {
	roster := []id.UserID{"@carl:b.example", "@anna:a.example", "@bert:a.example"}
	for _, test := range []struct {
		name string
		who  Who
		want Meant
	}{
		{"all", Who{All: true}, Meant{Users: []id.UserID{"@anna:a.example", "@bert:a.example", "@carl:b.example"}}},
		{"a glob", Who{Globs: []string{"@*:a.example"}}, Meant{Users: []id.UserID{"@anna:a.example", "@bert:a.example"}}},
		{"a list", Who{Users: []id.UserID{"@bert:a.example"}}, Meant{Users: []id.UserID{"@bert:a.example"}}},
		{"both, once each", Who{Globs: []string{"@b*"}, Users: []id.UserID{"@bert:a.example", "@carl:b.example"}}, Meant{Users: []id.UserID{"@bert:a.example", "@carl:b.example"}}},
		{"all but some", Who{All: true, Except: []string{"@????:a.*"}}, Meant{Users: []id.UserID{"@carl:b.example"}, Excluded: []id.UserID{"@anna:a.example", "@bert:a.example"}}},
		{"somebody who is not there", Who{Users: []id.UserID{"@eve:a.example"}}, Meant{NotThere: []id.UserID{"@eve:a.example"}}},
		{"a glob means letters as they are", Who{Globs: []string{"@A*"}}, Meant{Unmatched: []string{"@A*"}}},
		{"an exception for nobody", Who{All: true, Except: []string{"@carl:*", "@karl:*"}}, Meant{Users: []id.UserID{"@anna:a.example", "@bert:a.example"}, Excluded: []id.UserID{"@carl:b.example"}, Unmatched: []string{"@karl:*"}}},
		{"an exception for somebody who is not meant", Who{Globs: []string{"@*:a.example"}, Except: []string{"@carl:*"}}, Meant{Users: []id.UserID{"@anna:a.example", "@bert:a.example"}}},
		{"a glob for nobody", Who{Globs: []string{"@*:c.example"}}, Meant{Unmatched: []string{"@*:c.example"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.who.Choose(roster)
			if !slices.Equal(got.Users, test.want.Users) || !slices.Equal(got.Excluded, test.want.Excluded) || !slices.Equal(got.NotThere, test.want.NotThere) || !slices.Equal(got.Unmatched, test.want.Unmatched) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestWhereAUserStands(t *testing.T) {
	for _, test := range []struct {
		name  string
		facts rotation.Facts
		held  bool
		want  UserState
		cause Cause
	}{
		{"his device has said nothing", rotation.Facts{State: rotation.Working}, false, Waiting, ""},
		{"it has no trigger yet", rotation.Facts{State: rotation.Received}, false, Waiting, ""},
		{"it works", rotation.Facts{State: rotation.Working, Stage: protocol.StageFetched}, false, Working, ""},
		{"it is done", rotation.Facts{State: rotation.Done}, false, Done, ""},
		{"it needs somebody", rotation.Facts{State: rotation.Working, Attention: protocol.AttentionOldKeyMissing}, false, NeedsAttention, "old_key_missing"},
		{"it failed for good", rotation.Facts{State: rotation.Failed, Failure: protocol.AttentionKeyNotUsable}, false, Failed, Cause(protocol.AttentionKeyNotUsable)},
		{"it never answered", rotation.Facts{State: rotation.TimedOut}, false, Failed, CauseTimedOut},
		{"it was revoked", rotation.Facts{State: rotation.WaitingForEnrollment}, false, NeedsAttention, CauseNotEnrolled},
		{"his rotation was cancelled", rotation.Facts{State: rotation.Cancelled}, false, Cancelled, CauseCancelled},
		{"the log is not signed", rotation.Facts{State: rotation.Received}, true, Waiting, CauseHeld},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := StandingOf(test.facts, test.held, "admin: do it")
			if got.State != test.want || got.Cause != test.cause {
				t.Errorf("he is %s because of %q, want %s, %q", got.State, got.Cause, test.want, test.cause)
			}
			if failing := got.State == NeedsAttention || got.State == Failed; failing && (got.Cause == "" || got.NextAction == "") {
				t.Error("nobody is told why, or what to do")
			}
		})
	}
}

func TestWhatBecomesOfAUserWhoseTurnHasCome(t *testing.T) {
	able := Candidate{OnRoster: true, Enrolled: true, Place: true}
	with := func(change func(c *Candidate)) Candidate { c := able; change(&c); return c }
	for _, test := range []struct {
		name  string
		kind  Kind
		c     Candidate
		want  Begin
		cause Cause
	}{
		{"he can be rotated", Rotate, able, BeginOpen, ""},
		{"he left the roster", Rotate, with(func(c *Candidate) { c.OnRoster = false }), BeginLeave, CauseNotOnRoster},
		{"he is exempt", Rotate, with(func(c *Candidate) { c.Exempt = true }), BeginLeave, CauseExempt},
		{"he has no device", Rotate, with(func(c *Candidate) { c.Enrolled = false }), BeginLeave, CauseNotEnrolled},
		{"nobody knows where his key is", Rotate, with(func(c *Candidate) { c.Place = false }), BeginLeave, CauseUnknownPlace},
		{"a rotation of his is open", Rotate, with(func(c *Candidate) { c.Open = true }), BeginJoin, ""},
		{"it is held", Rotate, with(func(c *Candidate) { c.Open, c.Held = true, true }), BeginLeave, CauseHeld},
		{"it is held, and is released", Release, Candidate{Open: true, Held: true}, BeginRelease, ""},
		{"somebody released it meanwhile", Release, Candidate{Open: true}, BeginJoin, ""},
		{"it has ended meanwhile", Release, Candidate{}, BeginLeave, CauseNotHeld},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, cause := Turn(test.kind, test.c); got != test.want || cause != test.cause || cause != "" && cause.NextAction() == "" {
				t.Errorf("got %s, %q; want %s, %q", got, cause, test.want, test.cause)
			}
		})
	}
}

func TestWhereACampaignMayGo(t *testing.T) {
	all := []State{AwaitingApproval, Running, Paused, Finished, Stopped, Aborted}
	want := map[[2]State]bool{{AwaitingApproval, Running}: true, {AwaitingApproval, Aborted}: true, {Running, Paused}: true, {Running, Finished}: true, {Running, Stopped}: true,
		{Running, Aborted}: true, {Paused, Running}: true, {Paused, AwaitingApproval}: true, {Paused, Aborted}: true}
	for _, from := range all {
		for _, to := range all {
			if got := Allowed(from, to); got != want[[2]State{from, to}] {
				t.Errorf("from %s to %s: %t", from, to, got)
			}
		}
	}
}

func TestWhichCampaignsNeedApproval(t *testing.T) {
	for _, test := range []struct {
		rule  string
		users int
		want  bool
	}{{"required", 1, true}, {"never", 10_000, false}, {"above 20", 20, false}, {"above 20", 21, true}} {
		rule, err := ParseApproval(test.rule)
		if err != nil || rule.Needed(test.users) != test.want || rule.String() != test.rule {
			t.Errorf("%s with %d users: %t, %v", rule, test.users, rule.Needed(test.users), err)
		}
	}
	for _, wrong := range []string{"", "above", "above -1", "above many", "Required"} {
		if _, err := ParseApproval(wrong); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestTheEstimateOfTheEnd(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	p := Defaults()
	p.Rate = 60
	pace := Pace{Done: 50, Half: 2 * time.Minute, Most: 5 * time.Minute}
	in := func(d time.Duration) time.Time { return now.Add(d) }
	for _, test := range []struct {
		name   string
		wave   int
		waves  []Counts
		pace   Pace
		opened time.Duration
		want   Estimate
	}{
		{"too few are done to say", 1, []Counts{{Pending: 60}}, Pace{Done: 19}, 0, Estimate{in(time.Minute), time.Time{}, in(time.Minute + 24*time.Hour)}},
		{"two waves are to come", 1, []Counts{{Pending: 60}, {Pending: 600}}, pace, 0, Estimate{in(15 * time.Minute), in(21 * time.Minute), in(11*time.Minute + 48*time.Hour)}},
		{"the last is settling", 2, []Counts{{Done: 60}, {Working: 600}}, pace, time.Minute, Estimate{now, in(4 * time.Minute), in(24*time.Hour - time.Minute)}},
		{"many are away", 1, []Counts{{Done: 50, Waiting: 50}}, pace, time.Hour, Estimate{now, in(23 * time.Hour), in(23 * time.Hour)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := EndOf(p, test.wave, test.waves, 60, test.pace, test.opened, now); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		waves := []Counts{drawCounts(t, "first"), drawCounts(t, "second")}
		pace := Pace{Done: 100, Half: time.Minute, Most: time.Duration(rapid.IntRange(1, 60).Draw(t, "most")) * time.Minute}
		e := EndOf(p, 1, waves, rapid.IntRange(1, 1000).Draw(t, "rate"), pace, time.Duration(rapid.IntRange(0, 48).Draw(t, "opened"))*time.Hour, now)
		if e.Earliest.Before(now) || e.Likely.Before(e.Earliest) || e.Latest.Before(e.Likely) {
			t.Fatalf("%+v is in no order", e)
		}
	})
}
