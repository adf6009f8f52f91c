package intake

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestStrictJSON(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"an object", `{"a":1,"b":{"a":2}}`, ""},
		{"a name again in another object", `[{"a":1},{"a":2}]`, ""},
		{"a name twice in one object", `{"a":1,"a":2}`, "twice"},
		{"a name twice, once escaped", `{"a":1,"\u0061":2}`, "twice"},
		{"a name twice, deep inside", `{"x":[{"y":{"a":1,"b":2,"a":3}}]}`, "twice"},
		{"32 levels", strings.Repeat("[", 32) + strings.Repeat("]", 32), ""},
		{"34 levels", strings.Repeat("[", 34) + strings.Repeat("]", 34), "too deep"},
		{"data behind it", `{} {}`, "after the JSON"},
		{"nothing", ``, "not JSON"},
		{"a NUL in a string", `{"a":"\u0000"}`, "NUL"},
		{"a NUL in a name", `{"\u0000":1}`, "NUL"},
		{"half an object", `{"a":`, "not JSON"},
		{"no name", `{1:2}`, "not JSON"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := strictJSON([]byte(test.body))
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// What strictJSON lets through means one thing only: writing it out and reading it again keeps every name.
func FuzzStrictJSON(f *testing.F) {
	for _, seed := range []string{`{"a":1}`, `{"a":1,"a":2}`, `[{"a":[]},null]`, `"\ud800"`, `{"\ud800":1,"\ufffd":2}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		if strictJSON([]byte(body)) == nil && !json.Valid([]byte(body)) {
			t.Errorf("%q is not JSON and was let through", body)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("application/cloudevents+json", `{"specversion":"1.0","type":"t","source":"/s","id":"1","subject":"x","data":{"version":1}}`)
	f.Add("application/cloudevents+json; charset=utf-8", `{"specversion":"0.3"}`)
	f.Add("application/json", `{}`)
	f.Fuzz(func(t *testing.T, contentType, body string) {
		req := httptest.NewRequest(http.MethodPost, "/notify/x", nil)
		req.Header.Set("Content-Type", contentType)
		event, status, problem := parse(req, []byte(body))
		if (problem == "") != (status == 0) || problem == "" && (event == nil || event.ID() == "" || event.SpecVersion() != "1.0") {
			t.Errorf("%q %q: %v, %d, %q", contentType, body, event, status, problem)
		}
	})
}

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
			_, err := s.compile("x")
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
