package glob

import (
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		name, pattern, text string
		want                bool
	}{
		{"an id is itself", "@alice:example.org", "@alice:example.org", true},
		{"and nobody else", "@alice:example.org", "@alicia:example.org", false},
		{"a star takes a whole name", "@*:example.org", "@alice:example.org", true},
		{"a star takes nothing as well", "@eng-*:example.org", "@eng-:example.org", true},
		{"another server is another", "@*:example.org", "@alice:evil.org", false},
		{"what follows the end is not matched", "@*:example.org", "@alice:example.org.evil", false},
		{"a dot is a dot", "@*:example.org", "@alice:exampleXorg", false},
		{"a question mark is one character", "@?:x", "@ä:x", true},
		{"and not two", "@?:x", "@ab:x", false},
		{"brackets stand for themselves", "@[ab]:x", "@a:x", false},
		{"several stars", "@*-*-*:x", "@a-b-c:x", true},
		{"the case counts", "@A*:x", "@alice:x", false},
		{"the empty pattern matches no id", "", "@a:x", false},
		{"a star alone matches all", "*", "@a:x", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Match(test.pattern, test.text); got != test.want {
				t.Errorf("Match(%q, %q) = %v", test.pattern, test.text, got)
			}
		})
	}
}

func TestManyStarsTakeNoLongTime(t *testing.T) {
	began := time.Now()
	if Match(strings.Repeat("a*", 120)+"b", strings.Repeat("a", 255)) {
		t.Error("it matches")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestCheckRefusesWhatMatchesNobody(t *testing.T) {
	for _, good := range []string{"@*:example.org", "@alice:example.org", "*", "*:example.org", "@eng-*"} {
		if err := Check(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "alice", "alice:example.org", "@alice", "@a b:x", "@a\n:x", "@" + strings.Repeat("a", 255) + ":x"} {
		if Check(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
