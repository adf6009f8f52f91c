package reader_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit/reader"
)

func TestAQuerySaysWhichPartOfItCannotBeUnderstood(t *testing.T) {
	now := time.UnixMilli(1764590400000)
	for _, test := range []struct {
		name  string
		query reader.Query
		part  string
	}{
		{"a rotation without an id", reader.Query{Rotation: "mine"}, "rotation"},
		{"a user without a server", reader.Query{User: "@alice"}, "user"},
		{"a user without a name", reader.Query{User: "alice:example.org"}, "user"},
		{"a user that nobody can be", reader.Query{User: "@" + strings.Repeat("a", 300) + ":example.org"}, "user"},
		{"an actor as long as a page", reader.Query{Actor: strings.Repeat("a", 301)}, "actor"},
		{"a noun without a verb", reader.Query{Actions: []string{"rotation.done", "rotation"}}, "action"},
		{"every noun", reader.Query{Actions: []string{"*.done"}}, "action"},
		{"an outcome in capitals", reader.Query{Outcome: "Refused"}, "outcome"},
		{"a time in words", reader.Query{Since: "yesterday"}, "since"},
		{"an end before the begin", reader.Query{Since: "2026-11-02", Until: "2026-11-01"}, "since"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, asked, err := test.query.Filter(now)
			wrong := new(reader.QueryError)
			if !errors.As(err, &wrong) || wrong.Part != test.part || wrong.Instead.Error() == "" {
				t.Errorf("it ends with %v", err)
			}
			if f.User != "" || f.Actor != "" || len(asked) > 0 {
				t.Errorf("it asks for %+v all the same", f)
			}
		})
	}
}

func TestTheLogKeepsWhatWasAskedFor(t *testing.T) {
	now := time.UnixMilli(1764590400000)
	f, asked, err := reader.Query{Rotation: "01939aa0-1111-7000-8000-000000000000", User: "@alice:example.org", Actor: "relay", Outcome: "refused", Since: "7d", Until: "1h",
		Actions: []string{"rotation.*", "trigger.sent"}}.Filter(now)
	if err != nil || len(asked) != 7 {
		t.Fatalf("it asks for %d parts (%v)", len(asked), err)
	}
	if f.User != "@alice:example.org" || f.Actor != "relay" || f.Outcome != "refused" || len(f.Actions) != 2 || !f.Since.Equal(now.Add(-7*24*time.Hour)) || !f.Until.Equal(now.Add(-time.Hour)) {
		t.Errorf("the filter is %+v", f)
	}
	if f, asked, err := (reader.Query{}).Filter(now); err != nil || len(asked) > 0 || f.User != "" || !f.Since.IsZero() {
		t.Errorf("nothing is %+v, %v, %v", f, asked, err)
	}
}
