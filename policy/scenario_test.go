package policy

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/strictyaml"
)

// scenario is a file of testdata; README.md there says what it means.
type scenario struct {
	Policy yaml.Node `yaml:"policy"`
	User   id.UserID `yaml:"user"`
	Rule   string    `yaml:"rule"`
	At     []struct {
		Because    string    `yaml:"because"`
		KeyCreated time.Time `yaml:"key_created"`
		Asked      time.Time `yaml:"asked"`
		Now        time.Time `yaml:"now"`
		Want       string    `yaml:"want"`
		Overdue    bool      `yaml:"overdue"`
	} `yaml:"at"`
}

// words is a verdict as scenarios write it. A wait names the moment, whatever the zone.
func words(v Verdict, in *time.Location) string {
	switch v.State {
	case Waiting:
		return "wait until " + v.OpensAt.In(in).Format(time.RFC3339)
	case LeftToKMS:
		return "left to the KMS"
	}
	return string(v.State)
}

func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(paths) < 5 {
		t.Fatalf("there are %d scenarios: %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var s scenario
			if _, err := strictyaml.Read(path, &s); err != nil {
				t.Fatal(err)
			}
			raw, err := yaml.Marshal(&s.Policy)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Parse(path, raw, os.ReadFile)
			if err != nil {
				t.Fatal(err)
			}
			p, err := New(d)
			if err != nil {
				t.Fatal(err)
			}
			if refusing := Refusing(Check(d, nil, time.Now())); len(refusing) > 0 {
				t.Fatalf("it is refused: %v", refusing)
			}
			rule, ok := p.RuleFor(s.User)
			if want := s.Rule; !ok || rule.Name != want && (want != "" || rule.Name != p.Rules()[0].Name) {
				t.Fatalf("the rule of %s is %q", s.User, rule.Name)
			}
			for _, at := range s.At {
				v := rule.Due(Key{s.User, at.KeyCreated, at.Asked}, at.Now)
				want := at.Want
				if until, err := time.Parse("wait until "+time.RFC3339, want); err == nil {
					want = "wait until " + until.UTC().Format(time.RFC3339)
				}
				if got := words(v, time.UTC); got != want {
					t.Errorf("%s: %s, want %s", at.Because, got, want)
				}
				if v.Overdue != at.Overdue {
					t.Errorf("%s: overdue is %t", at.Because, v.Overdue)
				}
			}
			if len(s.At) == 0 {
				t.Error("it shows nothing")
			}
		})
	}
}
