package policy

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

const good = `time_zone: Europe/Berlin
rules:
  - name: staff
    who: {globs: ["@*:example.org"]}
    max_age: 90d
    windows:
      - {days: [mon, tue], hours: "22:00-05:00"}
    jitter: 2h
    grace: 7d
    on_drift: reclaim
`

var (
	now    = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	roster = []id.UserID{"@alice:example.org", "@exec-ann:example.org"}
)

func findings(t *testing.T, text string, roster []id.UserID) []Finding {
	t.Helper()
	d, err := Parse("policy.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return Check(d, roster, now)
}

func TestAGoodPolicyHasNoFindings(t *testing.T) {
	t.Parallel()
	if all := findings(t, good, roster); len(all) > 0 {
		t.Errorf("%v", all)
	}
}

// A window that is open while somebody looks is not a short one.
func TestWhatIsFoundDoesNotDependOnTheHour(t *testing.T) {
	t.Parallel()
	d, err := Parse("policy.yaml", []byte(good), nil)
	if err != nil {
		t.Fatal(err)
	}
	for at := now; at.Before(now.Add(7 * 24 * time.Hour)); at = at.Add(29 * time.Minute) {
		if all := Check(d, roster, at); len(all) > 0 {
			t.Errorf("on %s: %v", at.Format(time.RFC1123), all)
		}
	}
}

func TestAPolicyThatContradictsItselfIsRefusedWithTheLineAndTheReason(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, from, to, want string }{
		{"no rules", "rules:", "rules: []\nx:", "there is no key \"x\""},
		{"a time zone that is none", "Europe/Berlin", "Europe/Atlantis", "line 1: time_zone cannot be used: there is no time zone"},
		{"the machine's own time zone", "Europe/Berlin", "Local", "line 1: time_zone"},
		{"a name that is none", "name: staff", "name: Our Staff", "line 3: rules[0].name"},
		{"nobody", `{globs: ["@*:example.org"]}`, "{}", "line 4: rules[0].who has nobody"},
		{"all and some", `{globs: ["@*:example.org"]}`, `{all: true, users: ["@a:example.org"]}`, "line 4: rules[0].who is all"},
		{"a glob that is none", "@*:example.org", "*", "line 4: rules[0].who.globs[0]"},
		{"a user that is none", `globs: ["@*:example.org"]`, `users: [alice]`, "line 4: rules[0].who.users[0]"},
		{"an unknown word in who", `{globs:`, `{glob:`, "there is no key \"glob\""},
		{"a file where none may be named", `globs: ["@*:example.org"]`, `csv: staff.csv`, "line 4: rules[0].who.csv"},
		{"no max_age", "max_age: 90d", "max_age: ''", "line 5: rules[0].max_age is 0s"},
		{"a max_age that is no span", "90d", "three months", "line 5: rules[0].max_age cannot be used"},
		{"a max_age that is negative", "90d", "-90d", "line 5: rules[0].max_age cannot be used"},
		{"a max_age without end", "90d", "99999w", "more than ten years"},
		{"a max_age shorter than the gap between windows", "max_age: 90d", "max_age: 5d", "line 5: rules[0].max_age is 5d, and no window is open for up to 5d18h"},
		{"a jitter larger than max_age", "jitter: 2h", "jitter: 91d", "line 8: rules[0].jitter"},
		{"a grace larger than max_age", "grace: 7d", "grace: 91d", "line 9: rules[0].grace"},
		{"a window that never opens", "22:00-05:00", "22:00-22:00", "line 7: rules[0].windows[0] cannot be used: hours is \"22:00-22:00\": this window never opens"},
		{"hours that no clock has", "22:00-05:00", "22:00-24:01", "line 7: rules[0].windows[0]"},
		{"hours that are none", "22:00-05:00", "at night", "line 7: rules[0].windows[0]"},
		{"a day that is none", "[mon, tue]", "[mon, tuesday]", "line 7: rules[0].windows[0] cannot be used: days[1]"},
		{"an action that is none", "on_drift: reclaim", "action: both", "line 10: rules[0].action"},
		{"a drift's word that is none", "reclaim", "fight", "line 10: rules[0].on_drift"},
		{"a cause that is none", "on_drift: reclaim", "rotate_after: lunch", "line 10: rules[0].rotate_after"},
		{"a place that all share", "on_drift: reclaim", "place: {kms: corporate, path: keyherald/key}", "line 10: rules[0].place"},
		{"windows for what is never rotated", "on_drift: reclaim", "action: kms_generates", "line 10: rules[0].action"},
		{"a device that makes keys and does not", "on_drift: reclaim", "action: kms_generates\n    rotate_after: disclosure", "line 11: rules[0].rotate_after"},
		{"a reclaim by nobody", "jitter: 2h", "action: kms_generates", "rules[0].on_drift is reclaim"},
		{"a second document", "jitter: 2h", "jitter: 2h\n---", "second document"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(good, test.from, test.to, 1)
			if text == good {
				t.Fatal("it changes nothing")
			}
			var all []string
			if d, err := Parse("policy.yaml", []byte(text), nil); err != nil {
				all = append(all, err.Error())
			} else {
				for _, f := range Refusing(Check(d, roster, now)) {
					all = append(all, f.Error())
				}
				if _, err := New(d); len(all) > 0 && err == nil && !strings.Contains(test.name, "gap") {
					t.Error("it is a policy all the same")
				}
			}
			if said := strings.Join(all, "\n"); !strings.Contains(said, test.want) {
				t.Errorf("it says %q, want %q", said, test.want)
			}
		})
	}
}

func TestRulesThatCannotStandTogetherAreRefused(t *testing.T) {
	t.Parallel()
	const staff = "  - {name: staff, who: {all: true}, max_age: 90d}\n"
	for _, test := range []struct{ name, second, want string }{
		{"one name twice", `  - {name: staff, who: {users: ["@a:example.org"]}, max_age: 1d}`, "line 3: rules[1].name is \"staff\", as that of rules[0] is"},
		{"the same who twice", `  - {name: others, who: {all: true}, max_age: 1d}`, "line 3: rules[1].who is the same as that of rule \"staff\""},
		{"a rule behind that for all", `  - {name: others, who: {users: ["@a:example.org"]}, max_age: 1d}`, "line 3: rules[1].who comes after rule \"staff\""},
	} {
		all := Refusing(findings(t, "rules:\n"+staff+test.second+"\n", nil))
		if len(all) == 0 || !strings.Contains(errors.Join(all[0], all[len(all)-1]).Error(), test.want) {
			t.Errorf("%s: %v", test.name, all)
		}
	}
}

func TestWhatMayBeMeantIsAWarning(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, from, to, want string }{
		{"a glob that matches nobody", `["@*:example.org"]`, `["@*:example.org", "@*:example.com"]`, "line 4: rules[0].who.globs[1] matches nobody of the roster"},
		{"a user who is not on the roster", `globs: ["@*:example.org"]`, `globs: ["@*:example.org"], users: ["@stranger:example.org"]`, "line 4: rules[0].who has 1 users who are not on the roster"},
		{"a rule whose users all have an earlier one", "    on_drift: reclaim\n", "    on_drift: reclaim\n  - {name: late, who: {users: [\"@alice:example.org\"]}, max_age: 1d}\n", "line 11: rules[1].who has nobody of the roster whom no earlier rule has"},
		{"users without a rule", "@*:example.org", "@exec-*:example.org", "line 2: rules have nobody for 1 users"},
		{"a jitter longer than a window", "jitter: 2h", "jitter: 20h", "line 8: rules[0].jitter is 20h, longer than the shortest window (7h)"},
		{"a grace that waiting eats up", "grace: 7d", "grace: 1h", "line 9: rules[0].grace is 1h, and a key that is due may have to wait 5d20h"},
		{"an adoption that is the device's", "reclaim", "adopt", "line 10: rules[0].on_drift is adopt"},
	} {
		text := strings.Replace(good, test.from, test.to, 1)
		all := findings(t, text, roster)
		if len(Refusing(all)) > 0 || len(all) != 1 || !strings.Contains(all[0].Error(), test.want) {
			t.Errorf("%s: %v", test.name, all)
		}
	}
}

func TestACSVIsResolvedAndALineOfItThatIsBadIsNamed(t *testing.T) {
	t.Parallel()
	text := strings.Replace(good, `globs: ["@*:example.org"]`, `users: ["@bob:example.org"], csv: lists/staff.csv`, 1)
	for _, test := range []struct {
		name, csv, want string
		users           []string
	}{
		{"one column", "@a:example.org\n@b:example.org\n", "", []string{"@bob:example.org", "@a:example.org", "@b:example.org"}},
		{"a named column, as spreadsheets write it", "\xef\xbb\xbfname,user_id\r\nAnn,@a:example.org\r\n", "", []string{"@bob:example.org", "@a:example.org"}},
		{"a line without a user", "user_id\n@a:example.org\nbob\n", "lists/staff.csv: line 3: \"bob\" is not a Matrix user id", nil},
		{"a line of another length", "a,user_id\nx,@a:example.org\n@b:example.org\n", "record on line 3: wrong number of fields", nil},
		{"nobody", "user_id\n", "it has no users", nil},
	} {
		d, err := Parse("/etc/keyherald/policy.yaml", []byte(text), func(path string) ([]byte, error) {
			if path != "/etc/keyherald/lists/staff.csv" {
				return nil, errors.New(path)
			}
			return []byte(test.csv), nil
		})
		if test.want == "" && (err != nil || !reflect.DeepEqual(d.Rules[0].Who, Who{Users: test.users})) {
			t.Errorf("%s: %v, %v", test.name, d.Rules, err)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), "policy.yaml: line 4: rules[0].who.csv") || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestADocumentIsTheSameAsJSON(t *testing.T) {
	t.Parallel()
	d, err := Parse("policy.yaml", []byte(good), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseJSON(raw)
	if err != nil {
		t.Fatal(err)
	}
	d.file = nil
	if !reflect.DeepEqual(back, d) {
		t.Errorf("%+v\n%+v", back, d)
	}
	for name, bad := range map[string]string{"an unknown key": `{"rules": [], "x": 1}`, "more behind it": string(raw) + "{}", "a file": `{"rules": [{"who": {"csv": "/etc/passwd"}}]}`, "nothing": ``} {
		if _, err := ParseJSON([]byte(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestAGlobMeansTheUsersThatItMatchesAndNobodyElse(t *testing.T) {
	t.Parallel()
	d, err := Parse("policy.yaml", []byte(strings.Replace(good, "@*:example.org", "@ab*b:example.org", 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[id.UserID]bool{"@abb:example.org": true, "@ab-b:example.org": true, "@ab:example.org": false, "@ABB:example.org": false, "@abb:example.org.evil": false} {
		if _, ok := p.RuleFor(user); ok != want {
			t.Errorf("%s: %t", user, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	for _, name := range []string{"nights-across-midnight", "two-windows", "the-kms-makes-keys"} {
		raw, err := os.ReadFile("testdata/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"rules":[{"name":"a","who":{"all":true},"max_age":"1d","windows":[{"time_zone":"UTC","hours":"00:00-24:00"}]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := Parse("policy.yaml", raw, nil)
		if err != nil {
			d, err = ParseJSON(raw)
		}
		if err != nil {
			return
		}
		all := Check(d, roster, now)
		for _, finding := range all {
			_ = finding.Error()
		}
		if len(Refusing(all)) > 0 {
			return
		}
		p, err := New(d)
		if err != nil {
			t.Fatalf("it was checked, and is no policy: %v", err)
		}
		rule, ok := p.RuleFor(roster[0])
		if !ok {
			return
		}
		v := rule.Due(Key{User: roster[0], Created: now}, now.Add(maxSpan))
		if rule.Action == DeviceGenerates && v.OpensAt.Before(v.DueAt) {
			t.Fatalf("%+v", v)
		}
	})
}
