package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/protocol"
)

var someRotation = uuid.MustParse("0199c0de-0000-7000-8000-000000000001")

func progress() Event {
	return Event{Time: time.UnixMilli(1_700_000_000_000), Actor: ByDevice("@alice:example.org", "DEVICE"), Action: ProgressReported, Subject: OfUser("@alice:example.org"),
		Rotation: someRotation, Outcome: Reported, Detail: Detail{Word("stage", protocol.StageFetched), Number("attempt", 1)}}
}

func TestAnEventHasItsCanonicalBytesAndACommitmentToItsDetail(t *testing.T) {
	sealed, err := progress().Seal()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"v":1,"id":"` + sealed.ID.String() + `","time":1700000000000,"actor":"@alice:example.org/DEVICE","action":"progress.reported",` +
		`"subject":"@alice:example.org","rotation":"` + someRotation.String() + `","outcome":"reported_by_device","commitment":"` +
		base64.RawStdEncoding.EncodeToString(Commit(sealed.Salt, sealed.Detail)) + `"}`
	if string(sealed.Body) != want || string(sealed.Detail) != `{"attempt":1,"stage":"fetched"}` || len(sealed.Salt) != 32 {
		t.Errorf("got %s with %s", sealed.Body, sealed.Detail)
	}
	again, err := progress().Seal()
	if err != nil || bytes.Equal(again.Salt, sealed.Salt) || bytes.Equal(Commit(again.Salt, again.Detail), Commit(sealed.Salt, sealed.Detail)) {
		t.Errorf("two commitments to one detail are the same (%v)", err)
	}
}

func TestSealRefusesWhatTheVocabularyDoesNotHave(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Event)
		want   string
	}{
		{"what it has is taken", func(*Event) {}, ""},
		{"an action that is none", func(e *Event) { e.Action = "progress.invented" }, "no such action"},
		{"no action", func(e *Event) { e.Action = "" }, "no such action"},
		{"no time", func(e *Event) { e.Time = time.Time{} }, "no time"},
		{"no actor", func(e *Event) { e.Actor = Actor{} }, "nothing that"},
		{"an actor of another role", func(e *Event) { e.Actor = ByRelay() }, "nothing that"},
		{"no subject", func(e *Event) { e.Subject = Subject{} }, "not about"},
		{"another kind of subject", func(e *Event) { e.Subject = OfTriggers() }, "not about"},
		{"an outcome that it cannot have", func(e *Event) { e.Outcome = Accepted }, "no outcome"},
		{"no rotation", func(e *Event) { e.Rotation = uuid.Nil }, "rotation"},
		{"a rotation where there is none", func(e *Event) {
			e.Action, e.Detail = StatusReported, nil
		}, "rotation"},
		{"a field that it does not have", func(e *Event) { e.Detail = append(e.Detail, Flag("holds_key", true)) }, `"holds_key"`},
		{"a field twice", func(e *Event) { e.Detail = append(e.Detail, Number("attempt", 2)) }, `"attempt"`},
		{"a field of another kind", func(e *Event) { e.Detail = Detail{Flag("attempt", true)} }, `"attempt"`},
		{"a word of another vocabulary", func(e *Event) { e.Detail = Detail{Word("stage", protocol.OutcomeSent)} }, `"stage"`},
		{"a refusal without why", func(e *Event) {
			*e = Event{Time: e.Time, Actor: ByLocal("a", "b"), Action: TriggersFrozen, Subject: OfTriggers(), Outcome: Refused}
		}, "why"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := progress()
			test.change(&e)
			_, err := e.Seal()
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAWordThatIsNotInTheVocabularyIsNotRepeated(t *testing.T) {
	e := progress()
	e.Detail = Detail{Word("stage", protocol.Stage("aGVsbG8")), Word("error", protocol.ErrorCode(""))}
	sealed, err := e.Seal()
	if err != nil || string(sealed.Detail) != `{"error":"unrecognized","stage":"unrecognized"}` {
		t.Errorf("got %s, %v", sealed.Detail, err)
	}
}

func TestTheVocabularyIsWhole(t *testing.T) {
	seen := map[Action]bool{}
	for _, e := range vocabulary {
		if seen[e.action] {
			t.Errorf("%s is there twice", e.action)
		}
		seen[e.action] = true
		if !strings.HasSuffix(e.tells, ".") || len(e.who) == 0 || len(e.about) == 0 || len(e.outcomes) == 0 || e.rotation == "" {
			t.Errorf("%s is not told whole", e.action)
		}
		_, why := e.field(refusal)
		if why != slices.Contains(e.outcomes, Refused) {
			t.Errorf("%s has a refusal, or none, where it should not", e.action)
		}
		names := map[Name]bool{}
		for _, f := range e.fields {
			if names[f.name] || f.means == "" || (f.kind == aWord || f.kind == someWords) != (len(f.words) > 0) {
				t.Errorf("the field %s of %s is there twice, or not told whole", f.name, e.action)
			}
			names[f.name] = true
			raw, err := json.Marshal(f.name)
			if err != nil || string(raw) != `"`+string(f.name)+`"` {
				t.Errorf("the field %s of %s has an unusual name", f.name, e.action)
			}
		}
	}
}
