package intake

import (
	"strings"
	"testing"
	"time"
)

func TestAMappingThatCannotWorkIsRefusedWithWhatToWrite(t *testing.T) {
	right := func() Source {
		return Source{Keys: []Key{{ID: "k", Secret: exampleSecret}}, Mapping: Mapping{Pattern: "keyherald/(?P<user>[a-z]+)", User: "@{user}:example.org", KMS: "corporate"}}
	}
	for _, test := range []struct {
		name   string
		change func(*Source)
		want   string
	}{
		{"the right one is taken", func(*Source) {}, ""},
		{"another format", func(s *Source) { s.Format = "xml" }, "write cloudevents"},
		{"no keys", func(s *Source) { s.Keys = nil }, "every source signs"},
		{"a key without an id", func(s *Source) { s.Keys[0].ID = "" }, "an id"},
		{"a secret that is too short", func(s *Source) { s.Keys[0].Secret = "whsec_c2hvcnQ=" }, "24 bytes"},
		{"a secret file that is not there", func(s *Source) { s.Keys[0].SecretFile = "/nonexistent" }, "secret_file"},
		{"a pattern without a user", func(s *Source) { s.Mapping.Pattern = "keyherald/.*" }, "(?P<user>"},
		{"a pattern that is none", func(s *Source) { s.Mapping.Pattern = "(?P<user>" }, "regular expression"},
		{"a user that is everybody's", func(s *Source) { s.Mapping.User = "@alice:example.org" }, "{user}"},
		{"no KMS", func(s *Source) { s.Mapping.KMS = "" }, "mapping.kms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := right()
			test.change(&s)
			_, err := s.compile("x", &outside{now: time.Now})
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
