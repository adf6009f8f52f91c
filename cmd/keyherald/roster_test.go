package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/roster"
)

// acts runs a command of `keyherald` that is no `keyherald audit`.
func (r *room) acts(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs(append([]string{"-c", r.path("config.yaml"), "--server", r.server(t), "--token-file", r.path("admin.token")}, args...))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// acted is acts where nothing may fail.
func (r *room) acted(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.acts(t, args...)
	if err != nil {
		t.Fatalf("keyherald %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// withBot gives a room the identity that commands which act need.
func withBot(t *testing.T, r *room) *room {
	t.Helper()
	_, err := appservice.Keygen(r.dir, "@keyherald:example.org")
	check(t, err)
	check(t, os.Rename(r.path(appservice.IdentityFile), r.path("a")))
	check(t, os.Rename(r.path(appservice.SelfSigningFile), r.path("b")))
	return r
}

func TestARosterIsAppliedListedAndCountedByTheCommandLine(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	says := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("it says\n%s\nand not %q", out, want)
			}
		}
	}
	r.write(t, "users.csv", "\ufeffuser_id,exempt_reason,exempt_until\r\n@alice:example.org,,\r\n@bob:example.org,on leave,2999-12-31\r\n")
	says(r.acted(t, "roster", "apply", r.path("users.csv")), "2 users", "2 came", "1 were exempted")
	r.write(t, "bad.csv", "user_id\n@alice:example.org\ncarol\n")
	if out, err := r.acts(t, "roster", "apply", r.path("bad.csv")); err == nil || !strings.Contains(err.Error(), `line 3: "carol" is not a Matrix user id`) || !strings.Contains(err.Error(), "nothing was applied") {
		t.Errorf("a bad line is answered %v\n%s", err, out)
	}
	if _, err := r.acts(t, "roster", "apply", r.path("none.csv")); err == nil {
		t.Error("a file that is not there was applied")
	}
	listed := r.acted(t, "roster", "list", "--csv")
	r.write(t, "again.csv", listed)
	says(r.acted(t, "roster", "apply", r.path("again.csv")), "2 users: 0 came, 0 left, 0 were exempted, 0 exemptions were taken back")
	says(r.acted(t, "roster", "list"), "@alice:example.org", "on leave", "3000-01-01T00:00:00Z")
	says(r.acted(t, "roster", "list", "--json"), `"user_id":"@bob:example.org"`, `"exempt_reason":"on leave"`)

	var view api.Compliance
	check(t, json.Unmarshal([]byte(r.acted(t, "compliance", "--json")), &view))
	if view.Current != 0 || view.Of != 1 || view.Roster != 2 || view.States[roster.Exempt] != 1 || len(view.Users) != 2 || view.Users[0].Cause != roster.NeverEnrolled || view.Users[0].NextAction == "" {
		t.Errorf("the compliance is %+v", view)
	}
	says(r.acted(t, "compliance"), "0 of 1 (0.00 %)", "1 of 2 are exempt", "@alice:example.org", "not_covered", "never_enrolled", "keyherald enroll", "the keys of 0 users")
	table, err := csv.NewReader(strings.NewReader(r.acted(t, "compliance", "--csv"))).ReadAll()
	check(t, err)
	if len(table) != 3 || table[1][1] != "'@alice:example.org" || table[1][2] != string(roster.NotCovered) || table[2][2] != string(roster.Exempt) || table[2][11] != "3000-01-01T00:00:00Z" {
		t.Errorf("the table is %v", table)
	}

	// The log has whole milliseconds.
	between := time.Now().Truncate(time.Millisecond)
	says(r.acted(t, "roster", "add", "@carol:example.org"), "")
	says(r.acted(t, "roster", "remove", "@alice:example.org"), "0 rotations were cancelled")
	says(r.acted(t, "roster", "include", "@bob:example.org"), "")
	says(r.acted(t, "roster", "exempt", "@carol:example.org", "--reason", "a robot", "--until", "2999-01-01"), "exempt until 2999-01-02")
	says(r.acted(t, "compliance"), "0 of 1", "@bob:example.org")
	then := r.acted(t, "compliance", "--at", between.UTC().Format(time.RFC3339Nano))
	says(then, "0 of 1 (0.00 %)", "@alice:example.org")
	if strings.Contains(then, "carol") || strings.Contains(then, "@bob") {
		t.Errorf("it says of then\n%s", then)
	}
	if action, detail := r.told(t); action != "audit.read" || detail["command"] != "compliance" {
		t.Errorf("reading the log is told as %s %v", action, detail)
	}
	for _, args := range [][]string{
		{"compliance", "--at", "2999-01-01"}, {"compliance", "--at", "whenever"}, {"roster", "exempt", "@bob:example.org", "--reason", "x", "--until", "7d"},
		{"roster", "add", "bob"}, {"roster", "remove", "@nobody:example.org"}, {"roster", "include", "@bob:example.org"},
	} {
		if out, err := r.acts(t, args...); err == nil {
			t.Errorf("keyherald %s: %s", strings.Join(args, " "), out)
		}
	}
	r.write(t, "empty.csv", "user_id\n")
	if _, err := r.acts(t, "roster", "apply", r.path("empty.csv")); err == nil || !strings.Contains(err.Error(), "--allow-removals 2") {
		t.Errorf("an empty roster is answered %v", err)
	}
	says(r.acted(t, "roster", "apply", "--allow-removals", "2", "--json", r.path("empty.csv")), `"left":2`)
	says(r.acted(t, "compliance"), "0 of 0")
}
