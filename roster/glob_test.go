package roster

import (
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestAGlobMeansWhoItSays(t *testing.T) {
	for _, test := range []struct {
		pattern string
		user    id.UserID
		want    bool
	}{
		{"@alice:example.org", "@alice:example.org", true},
		{"@alice:example.org", "@Alice:example.org", false},
		{"@alice:example.org", "@alice:example.org.evil", false},
		{"@*:example.org", "@alice:example.org", true},
		{"@*:example.org", "@alice:sub.example.org", false},
		{"@*:example.org", "@alice:example.org:8448", false},
		{"@sales-*:*", "@sales-bob:b", true},
		{"@sales-*:*", "@presales-bob:b", false},
		{"@a?:b", "@ab:b", true},
		{"@a?:b", "@a:b", false},
		{"@a?:b", "@abc:b", false},
		{"@ab*b:x", "@ab:x", false},
		{"@ab*b:x", "@abb:x", true},
		{"@a.c:b", "@axc:b", false},
		{"@a/b*:c", "@a/b/d:c", true},
		{All, "@alice:example.org", true},
		{"*", "@alice:example.org", true},
	} {
		g, err := NewGlob(test.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.Match(test.user); got != test.want {
			t.Errorf("%s means %s: %t", test.pattern, test.user, got)
		}
		if g.String() != test.pattern {
			t.Errorf("%s shows as %s", test.pattern, g)
		}
	}
	if (Glob{}).Match("@alice:example.org") {
		t.Error("no glob means somebody")
	}
}

func TestAGlobThatCanMatchNobodyIsRefused(t *testing.T) {
	for _, pattern := range []string{"", "alice", "alice:example.org", "@alice", "@a b:c", "@a:b,@c:d", "@" + strings.Repeat("a", 300) + ":b"} {
		if _, err := NewGlob(pattern); err == nil {
			t.Errorf("%q was taken", pattern)
		}
	}
}
