package strictyaml

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type sample struct {
	Name  string `yaml:"name"`
	Count int    `yaml:"count"`
	Parts map[string]struct {
		Keys []struct {
			ID string `yaml:"id"`
		} `yaml:"keys"`
	} `yaml:"parts"`
}

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAMistakeIsNamedWithItsLine(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"an unknown key", "name: x\n\nnmae: y\n", `line 3: there is no key "nmae"`},
		{"a value of the wrong kind", "name: x\ncount: whsec_secret\n", "line 2: a value of the kind str does not go here, int is needed"},
		{"no YAML", "name: [\n", "line 1"},
		{"a second document", "name: x\n---\nname: y\n", "second document"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var into sample
			_, err := Read(write(t, test.text), &into)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "whsec_") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAnErrorIsPutAtTheKeyItBeginsWith(t *testing.T) {
	text := "name: x\ncount: 1\nparts:\n  one:\n    keys:\n      - id: a\n      - id: b\n"
	for _, test := range []struct{ err, want string }{
		{"count is 1: write 2", "line 2: count"},
		{"parts.one.keys[1]: no", "line 7: parts"},
		{"parts.one.color is missing", "line 4: parts"},
		{"somewhere else", "config.yaml: somewhere else"},
		{"unheard.of is missing", "config.yaml: unheard"},
	} {
		var into sample
		f, err := Read(write(t, text), &into)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.At(errors.New(test.err)); !strings.Contains(got.Error(), test.want) {
			t.Errorf("got %v, want %q", got, test.want)
		}
	}
}

func TestAnEmptyFileChangesNothing(t *testing.T) {
	into := sample{Name: "default"}
	f, err := Read(write(t, "# nothing\n"), &into)
	if err != nil || into.Name != "default" {
		t.Fatalf("got %+v, %v", into, err)
	}
	if f.At(errors.New("name is missing")) == nil {
		t.Error("an error was lost")
	}
}

func FuzzRead(f *testing.F) {
	f.Add("name: x\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		var into sample
		if file, err := Read(write(t, text), &into); err == nil {
			_ = file.At(errors.New("parts.one.keys[0] is wrong"))
		}
	})
}
