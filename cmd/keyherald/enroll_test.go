package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// codeDesk is where codes are made: a server with its database, an admin's client, and a directory.
type codeDesk struct {
	db     *postgres.DB
	client *client
	dir    string
}

func newCodeDesk(t *testing.T) *codeDesk {
	t.Helper()
	r := withBot(t, newRoom(t))
	db, err := postgres.Open(t.Context(), r.Database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	c, err := remote{server: r.server(t), tokenFile: r.path("admin.token")}.connect()
	check(t, err)
	return &codeDesk{db, c, t.TempDir()}
}

func (o *codeDesk) path(name string) string { return filepath.Join(o.dir, name) }

func (o *codeDesk) enroll(t *testing.T, users string, overwrite bool) (said string, err error) {
	t.Helper()
	check(t, os.WriteFile(o.path("users.csv"), []byte(users), 0o600))
	var out bytes.Buffer
	err = enrollFrom(t.Context(), o.client, o.path("users.csv"), o.path("codes.jsonl"), overwrite, time.Hour, &out)
	return out.String(), err
}

// codes are those in a file; each must be in the database.
func (o *codeDesk) codes(t *testing.T, name string) map[id.UserID]bool {
	t.Helper()
	info, err := os.Stat(o.path(name))
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s is for %s", name, info.Mode())
	}
	file, err := os.Open(o.path(name))
	check(t, err)
	defer func() { _ = file.Close() }()
	users := map[id.UserID]bool{}
	for decoder := json.NewDecoder(file); ; {
		var line codeLine
		if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
			return users
		} else if err != nil {
			t.Fatal(err)
		}
		code, err := protocol.ParseCode(line.Code)
		check(t, err)
		if n, err := o.db.CountCodes(t.Context(), [][32]byte{code.Hash()}); err != nil || n != 1 {
			t.Errorf("the code of %s does not exist: %v", line.UserID, err)
		}
		users[line.UserID] = true
	}
}

func (o *codeDesk) count(t *testing.T) (codes, events int) {
	t.Helper()
	check(t, o.db.QueryRow(t.Context(), `SELECT COUNT(*), (SELECT COUNT(*) FROM audit_log WHERE action = 'enrollment_code.created' AND outcome = 'accepted') FROM enrollment_code`).Scan(&codes, &events))
	return codes, events
}

func TestCodesAreMadeForAFileOfUsers(t *testing.T) {
	o := newCodeDesk(t)
	_, err := o.enroll(t, "user_id\n@alice:example.org\n# a comment\n@bob:example.org\n", false)
	check(t, err)
	if users := o.codes(t, "codes.jsonl"); len(users) != 2 || !users["@alice:example.org"] || !users["@bob:example.org"] {
		t.Errorf("the file has codes of %v", users)
	}
	if codes, events := o.count(t); codes != 2 || events != 2 {
		t.Errorf("there are %d codes and %d events", codes, events)
	}
	if _, err := o.enroll(t, "@carol:example.org\n", false); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("the file was written over: %v", err)
	}
	if codes, _ := o.count(t); codes != 2 {
		t.Errorf("codes were made that are in no file: there are %d", codes)
	}
	_, err = o.enroll(t, "@carol:example.org\n", true)
	check(t, err)
	if users := o.codes(t, "codes.jsonl"); len(users) != 1 || !users["@carol:example.org"] {
		t.Errorf("told to, it did not write over: %v", users)
	}
}

func TestABadLineIsNamedAndNothingIsMade(t *testing.T) {
	o := newCodeDesk(t)
	for _, test := range []struct{ name, users, want string }{
		{"no user id", "@alice:example.org\nbob\n", `line 2: "bob" is not a Matrix user id`},
		{"a line with another column", "@alice:example.org\n@bob:example.org,x\n", "line 2: it has more than one column"},
		{"a user twice", "@alice:example.org\n@bob:example.org\n@alice:example.org\n", "line 3: @alice:example.org was on line 1 already"},
		{"a quote that is open", "@alice:example.org\n\"@bob:example.org\n", "line 2"},
		{"nobody", "user_id\n", "has no user id"},
		{"an empty file", "", "has no user id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := o.enroll(t, test.users, false); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if _, err := os.Stat(o.path("codes.jsonl")); err == nil {
				t.Error("a file was written")
			}
			if codes, _ := o.count(t); codes != 0 {
				t.Errorf("%d codes were made", codes)
			}
		})
	}
}

// Wherever it is stopped, no code is lost, and the named file has none that does not count.
func TestARunThatWasStoppedLosesNoCodes(t *testing.T) {
	for name, test := range map[string]struct {
		counts bool // whether the server had heard of the codes
	}{"before the server had heard": {false}, "before the file had its name": {true}} {
		t.Run(name, func(t *testing.T) {
			o := newCodeDesk(t)
			waiting := o.path("codes.jsonl.uncommitted")
			codes, err := makeCodes(t.Context(), o.client, []id.UserID{"@alice:example.org", "@bob:example.org"}, time.Hour)
			check(t, err)
			check(t, writeCodes(waiting, codes))
			if test.counts {
				check(t, keepCodes(t.Context(), o.client, codes, waiting))
			}
			said, err := o.enroll(t, "@dave:example.org\n", false)
			check(t, err)
			if got := o.codes(t, "codes.jsonl"); len(got) != 2 || !got["@alice:example.org"] || !strings.Contains(said, "An earlier run made 2 codes") {
				t.Errorf("the file has %v, and it says %q", got, said)
			}
			if codes, events := o.count(t); codes != 2 || events != 2 {
				t.Errorf("there are %d codes and %d events", codes, events)
			}
			if _, err := os.Stat(waiting); err == nil {
				t.Error("the unnamed file is still there")
			}
		})
	}
}

func TestCodesThatAreRefusedLeaveNoFile(t *testing.T) {
	o := newCodeDesk(t)
	check(t, os.WriteFile(o.path("users.csv"), []byte("@alice:example.org\n"), 0o600))
	err := enrollFrom(t.Context(), o.client, o.path("users.csv"), o.path("codes.jsonl"), false, 31*24*time.Hour, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "30 days") {
		t.Errorf("got %v", err)
	}
	left, err := filepath.Glob(o.path("codes.jsonl*"))
	check(t, err)
	if codes, _ := o.count(t); codes != 0 || len(left) != 0 {
		t.Errorf("there are %d codes, and %v", codes, left)
	}
}

func TestAFileThatCannotBeWrittenMakesNoCodes(t *testing.T) {
	o := newCodeDesk(t)
	check(t, os.Mkdir(o.path("codes.jsonl.uncommitted"), 0o700))
	check(t, os.WriteFile(filepath.Join(o.path("codes.jsonl.uncommitted"), "x"), nil, 0o600))
	if _, err := o.enroll(t, "@alice:example.org\n", false); err == nil {
		t.Error("it was written")
	}
	if codes, events := o.count(t); codes != 0 || events != 0 {
		t.Errorf("there are %d codes and %d events", codes, events)
	}
}

func TestTenThousandCodesAreOneTransaction(t *testing.T) {
	o := newCodeDesk(t)
	var users strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&users, "@user%d:example.org\n", i)
	}
	_, err := o.enroll(t, users.String(), false)
	check(t, err)
	if codes, events := o.count(t); codes != 10_000 || events != 10_000 {
		t.Errorf("there are %d codes and %d events", codes, events)
	}
}
