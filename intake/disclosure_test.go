package intake

import (
	"strings"
	"testing"
	"time"
)

func TestADisclosureThatCannotWorkIsRefusedWithWhatToWrite(t *testing.T) {
	right := func(format string) *Source {
		s := &Source{Format: format, Header: &StaticHeader{Name: "X-Key", Keys: []Key{{ID: "k", Secret: "0123456789abcdef01234567"}}},
			Mapping:    Mapping{Pattern: "keyherald/(?P<user>[a-z]+)", User: "@{user}:example.org", KMS: "corporate"},
			Disclosure: &Disclosure{Rotate: true, Readers: []string{"device/{user}"}}}
		if format == "generic" {
			s.Mapping.Attribute, s.Mapping.Version, s.Mapping.ID = "path", "version", "field:id"
			s.Disclosure.Reader, s.Disclosure.Where = "who", map[string]string{"what": "read"}
		}
		return s
	}
	for _, test := range []struct {
		name, format string
		change       func(*Disclosure)
		want         string
	}{
		{"CloudEvents", "cloudevents", func(*Disclosure) {}, ""},
		{"no format, which is CloudEvents", "", func(*Disclosure) {}, ""},
		{"EventBridge", "aws-eventbridge", func(*Disclosure) {}, ""},
		{"another field of the reader", "aws-eventbridge", func(d *Disclosure) { d.Reader = "detail.userIdentity.principalId" }, ""},
		{"generic", "generic", func(*Disclosure) {}, ""},
		{"reads that change nothing, without readers", "aws-eventbridge", func(d *Disclosure) { d.Rotate, d.Readers = false, nil }, ""},
		{"a format that tells of no reads", "azure-eventgrid", func(*Disclosure) {}, "sources.x.disclosure is for formats"},
		{"no readers", "aws-eventbridge", func(d *Disclosure) { d.Readers = nil }, "sources.x.disclosure.readers is missing"},
		{"a reader without a name", "aws-eventbridge", func(d *Disclosure) { d.Readers = append(d.Readers, "") }, "sources.x.disclosure.readers has an empty name"},
		{"a mark where the format has its own", "aws-eventbridge", func(d *Disclosure) { d.Where = map[string]string{"a": "b"} }, "sources.x.disclosure.where is for the format generic"},
		{"generic without a mark", "generic", func(d *Disclosure) { d.Where = nil }, "sources.x.disclosure.where is missing"},
		{"generic without a reader", "generic", func(d *Disclosure) { d.Reader = "" }, "sources.x.disclosure.reader is missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := right(test.format)
			test.change(s.Disclosure)
			_, err := s.compile("x", &outside{now: time.Now})
			if (test.want == "") != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAReaderIsExpectedByHisWholeNameAlone(t *testing.T) {
	d := &Disclosure{Rotate: true, Readers: []string{"arn:aws:sts::1:assumed-role/keyherald-{user}/*", "keymaster", "a[b]?{user}", "*@contoso.example"}}
	for _, test := range []struct {
		reader, user string
		want         bool
	}{
		{"arn:aws:sts::1:assumed-role/keyherald-alice/i-0abc", "alice", true},
		{"arn:aws:sts::1:assumed-role/keyherald-alice/", "alice", true},
		{"arn:aws:sts::1:assumed-role/keyherald-alice/a/b", "alice", false},
		{"arn:aws:sts::1:assumed-role/keyherald-bob/i-0abc", "alice", false},
		{"arn:aws:sts::1:assumed-role/keyherald-alice2/i-0abc", "alice", false},
		{"arn:aws:sts::2:assumed-role/keyherald-alice/i-0abc", "alice", false},
		{"keymaster", "alice", true},
		{"Keymaster", "alice", false},
		{"keymaster2", "alice", false},
		{"the keymaster", "alice", false},
		{"", "alice", false},
		// What is a pattern elsewhere stands for itself.
		{"a[b]?alice", "alice", true},
		{"ab?alice", "alice", false},
		{"a[b]xalice", "alice", false},
		// A user's name is none.
		{"arn:aws:sts::1:assumed-role/keyherald-bob/i-0abc", "*", false},
		{"arn:aws:sts::1:assumed-role/keyherald-bob/i-0abc", "b?b", false},
		{"arn:aws:sts::1:assumed-role/keyherald-[b]ob/i-0abc", "[b]ob", true},
		{"bob@contoso.example", "alice", true},
		{"bob\u200b@contoso.example", "alice", false},
		{"bob\xff@contoso.example", "alice", false},
		{strings.Repeat("b", maxReader) + "@contoso.example", "alice", false},
	} {
		if got := d.expects(test.reader, test.user); got != test.want {
			t.Errorf("%q of %s: %v", test.reader, test.user, got)
		}
	}
}
