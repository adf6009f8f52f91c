package strictjson

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"an object", `{"a":1,"b":{"a":2}}`, ""},
		{"a name again in another object", `[{"a":1},{"a":2}]`, ""},
		{"a name in another case is another name", `{"a":1,"A":2}`, ""},
		{"a name twice in one object", `{"a":1,"a":2}`, "twice"},
		{"a name twice, once escaped", `{"a":1,"\u0061":2}`, "twice"},
		{"a name twice, deep inside", `{"x":[{"y":{"a":1,"b":2,"a":3}}]}`, "twice"},
		{"two names that are no text fall together", `{"\ud800":1,"\ufffd":2}`, "twice"},
		{"32 levels", strings.Repeat("[", 32) + strings.Repeat("]", 32), ""},
		{"34 levels", strings.Repeat("[", 34) + strings.Repeat("]", 34), "too deep"},
		{"8192 values", "[" + strings.Repeat("1,", 8190) + "1]", ""},
		{"8193 values", "[" + strings.Repeat("[],", 8191) + "1]", "too many"},
		{"data behind it", `{} {}`, "after the JSON"},
		{"a bracket behind it", `{}]`, "after the JSON"},
		{"nothing", ``, "not JSON"},
		{"a NUL in a string", `{"a":"\u0000"}`, "NUL"},
		{"a NUL in a name", `{"\u0000":1}`, "NUL"},
		{"half an object", `{"a":`, "not JSON"},
		{"no name", `{1:2}`, "not JSON"},
		{"a comma too many", `{"a":1,}`, "not JSON"},
		{"bytes that are no UTF-8", "{\"a\":\"\xff\"}", "not UTF-8"},
		{"UTF-16", "\xff\xfe{\x00}\x00", "not UTF-8"},
		{"a byte order mark", "\xef\xbb\xbf{}", "not JSON"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.body))
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	value, err := Parse([]byte(`{"a":{"b":{"c":"deep"},"n":7},"x.y":"dotted","p":{"q":1},"p.q":2,"list":[{"a":1}],"none":null}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path string
		want       any
	}{
		{"a member of a member", "a.b.c", "deep"},
		{"a number", "a.n", json.Number("7")},
		{"a member with a dot in its name", "x.y", "dotted"},
		{"a name that means two members means none", "p.q", nil},
		{"a name that is not there", "a.b.d", nil},
		{"a name beyond a string", "a.b.c.d", nil},
		{"an array has no members", "list.a", nil},
		{"null is there and is no text", "none", nil},
		{"another case is another name", "A.b.c", nil},
		{"no name", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, _ := Lookup(value, test.path); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestText(t *testing.T) {
	for _, test := range []struct {
		value any
		want  string
		ok    bool
	}{
		{"x", "x", true}, {json.Number("7"), "7", true}, {json.Number("-7"), "", false}, {json.Number("7.0"), "", false},
		{json.Number("1e3"), "", false}, {json.Number(strings.Repeat("9", 21)), "", false}, {true, "", false}, {nil, "", false}, {[]any{"x"}, "", false},
	} {
		if got, ok := Text(test.value); ok != test.ok || got != test.want {
			t.Errorf("%#v: got %q, %v", test.value, got, ok)
		}
	}
}

// What Parse lets through is JSON and means one thing: written out and read again it is the same.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"a":1}`, `{"a":1,"a":2}`, `[{"a":[]},null]`, `"\ud800"`, `{"\ud800":1,"\ufffd":2}`, `{"a":{"b":-1.5e9}}`} {
		f.Add(seed, "a.b")
	}
	f.Fuzz(func(t *testing.T, body, name string) {
		value, err := Parse([]byte(body))
		if err != nil {
			return
		}
		if !json.Valid([]byte(body)) {
			t.Errorf("%q is not JSON and was let through", body)
		}
		again, err := Parse(Canonical(value))
		if err != nil || !bytes.Equal(Canonical(again), Canonical(value)) || !reflect.DeepEqual(again, value) {
			t.Errorf("%q became %q: %v", body, Canonical(value), err)
		}
		if found, ok := Lookup(value, name); ok && found != nil {
			_, _ = Text(found)
		}
	})
}
