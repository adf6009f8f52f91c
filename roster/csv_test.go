package roster

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

func TestARosterIsReadWholeOrRefusedWithTheLine(t *testing.T) {
	const all = "user_id,exempt_reason,exempt_until\n"
	for _, test := range []struct {
		name, file string
		users      int
		line       int // 0 where it is taken
		says       string
	}{
		{"user ids alone", "user_id\n@a:example.org\n@b:example.org\n", 2, 0, ""},
		{"a header alone is an empty roster", "user_id\n", 0, 0, ""},
		{"exemptions", all + "@a:example.org,on leave,2026-11-30\n@b:example.org,,\n", 2, 0, ""},
		{"a byte order mark and CRLF, as spreadsheets write", "\ufeff" + strings.ReplaceAll(all+"@a:example.org,,\n", "\n", "\r\n"), 1, 0, ""},
		{"a last line without an end", "user_id\n@a:example.org", 1, 0, ""},
		{"empty lines", "user_id\n\n@a:example.org\n\n", 1, 0, ""},
		{"a reason with a comma and two quotes", all + `@a:example.org,"on leave, ""long""",2026-11-30` + "\n", 1, 0, ""},
		{"a guard against formulas, as our own files have", all + "'@a:example.org,'=1+1,2026-11-30\n", 1, 0, ""},
		{"nothing at all", "", 0, 1, "empty"},
		{"another header", "user,reason\n", 0, 1, "the header is"},
		{"no header", "@a:example.org\n", 0, 1, "the header is"},
		{"what is no user id", "user_id\n@a:example.org\nbob\n", 0, 3, "not a Matrix user id"},
		{"a user id without a server", "user_id\n@bob\n", 0, 2, "not a Matrix user id"},
		{"a user twice", "user_id\n@a:example.org\n@b:example.org\n@a:example.org\n", 0, 4, "on line 2 already"},
		{"a user twice, empty lines before", "user_id\n\n\n@a:example.org\n@a:example.org\n", 0, 5, "on line 4 already"},
		{"a reason without an end", all + "@a:example.org,on leave,\n", 0, 2, "no end"},
		{"an end without a reason", all + "@a:example.org,,2026-11-30\n", 0, 2, "no reason"},
		{"what is no day", all + "@a:example.org,on leave,30.11.2026\n", 0, 2, "no end of an exemption"},
		{"how long ago is no end", all + "@a:example.org,on leave,7d\n", 0, 2, "no end of an exemption"},
		{"a year that the database does not take", all + "@a:example.org,on leave,9999-12-31\n", 0, 2, "year"},
		{"a key for a reason", all + "@a:example.org,hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo,2026-11-30\n", 0, 2, "key"},
		{"a reason of two lines", all + "@a:example.org,\"on\nleave\",2026-11-30\n", 0, 2, "the exemption of"},
		{"too few columns", all + "@a:example.org\n", 0, 2, "fields"},
		{"too many columns", "user_id\n@a:example.org,x\n", 0, 2, "fields"},
		{"a quote that is left open", all + "@a:example.org,\"on leave,2026-11-30\n", 0, 2, `"`},
		{"bytes that are no UTF-8", all + "@a:example.org,on l\xe4ave,2026-11-30\n", 0, 2, "UTF-8"},
	} {
		t.Run(test.name, func(t *testing.T) {
			entries, err := ParseCSV(strings.NewReader(test.file))
			if test.line == 0 {
				if err != nil || len(entries) != test.users {
					t.Fatalf("got %d users and %v", len(entries), err)
				}
				return
			}
			var bad BadLine
			if !errors.As(err, &bad) || bad.Line != test.line || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want it to be about line %d and say %q", err, test.line, test.says)
			}
			if entries != nil {
				t.Error("there are entries of a file that is refused")
			}
			if strings.Contains(fmt.Sprint(err), "hSDw") {
				t.Error("the error has the key")
			}
		})
	}
}

func TestAFileThatIsTooLargeIsRefused(t *testing.T) {
	const file = "user_id\n@a:example.org\n@b:example.org\n"
	if entries, err := parseCSV(strings.NewReader(file), int64(len(file)), 2); err != nil || len(entries) != 2 {
		t.Errorf("what is just not too large is answered with %v", err)
	}
	if _, err := parseCSV(strings.NewReader(file), int64(len(file))-1, 2); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("it was answered with %v", err)
	}
	var bad BadLine
	if _, err := parseCSV(strings.NewReader(file), int64(len(file)), 1); !errors.As(err, &bad) || bad.Line != 3 {
		t.Errorf("it was answered with %v", err)
	}
}

func TestANameThatSteersWhateverShowsItIsNotOnTheRoster(t *testing.T) {
	for _, user := range []id.UserID{"@a\n@b:example.org", "@a\x1b[2J:example.org", "@a\u202eb:example.org", "@a\x00:example.org", "@a\xff:example.org"} {
		if err := (Entry{UserID: user}).Check(); err == nil || strings.ContainsAny(err.Error(), "\n\x1b\u202e") {
			t.Errorf("%q is answered with %v", user, err)
		}
	}
	for _, user := range []id.UserID{"@Alice:example.org", "@älice:example.org", "@a b:example.org"} {
		if err := (Entry{UserID: user}).Check(); err != nil {
			t.Errorf("%q is answered with %v", user, err)
		}
	}
}

func TestADayAsAnEndIsInTheExemption(t *testing.T) {
	for text, want := range map[string]time.Time{
		"2026-11-30":                time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
		"2026-11-30T08:00:00+01:00": time.Date(2026, 11, 30, 7, 0, 0, 0, time.UTC),
	} {
		if got, err := Until(text); err != nil || !got.Equal(want) {
			t.Errorf("%s is %s (%v)", text, got, err)
		}
	}
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	entry := rapid.Custom(func(t *rapid.T) Entry {
		e := Entry{UserID: id.NewUserID(rapid.StringMatching(`[a-z0-9._=/-]{1,20}`).Draw(t, "name"), "example.org")}
		if rapid.Bool().Draw(t, "exempt") {
			e.Exemption = Exemption{rapid.StringMatching(`[=+'@,"a-z-]([ ,"';a-z-]{0,20}[a-z])?`).Draw(t, "reason"), time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "until"), 0).UTC()}
		}
		return e
	})
	rapid.Check(t, func(t *rapid.T) {
		entries := rapid.SliceOfNDistinct(entry, 0, 20, func(e Entry) id.UserID { return e.UserID }).Draw(t, "entries")
		var file bytes.Buffer
		if err := WriteCSV(&file, entries); err != nil {
			t.Fatal(err)
		}
		got, err := ParseCSV(bytes.NewReader(file.Bytes()))
		if err != nil || !slices.Equal(got, entries) {
			t.Fatalf("%s is read as %v (%v)", file.String(), got, err)
		}
	})
}

func FuzzParseCSV(f *testing.F) {
	f.Add("user_id,exempt_reason,exempt_until\n@a:b,x,2026-01-01\n")
	f.Add("\ufeffuser_id\r\n@a:b\r\n")
	f.Fuzz(func(t *testing.T, file string) {
		entries, err := ParseCSV(strings.NewReader(file))
		if err != nil && entries != nil {
			t.Fatal("there are entries of a file that is refused")
		}
		for _, e := range entries {
			if err := e.Check(); err != nil {
				t.Fatalf("it let %v through: %v", e, err)
			}
		}
	})
}
