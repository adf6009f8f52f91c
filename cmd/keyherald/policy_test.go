package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
)

func TestAPolicysFileIsCheckedWithoutADatabase(t *testing.T) {
	lint := func(path string) (string, error) {
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs([]string{"policy", "lint", "--offline", path})
		cmd.SetOut(&out)
		err := cmd.Execute()
		return out.String(), err
	}
	if out, err := lint("../../policy.example.yaml"); err != nil || !strings.Contains(out, "is a policy of 3 rules") || strings.Contains(out, "warning") {
		t.Errorf("the example: %v\n%s", err, out)
	}
	example, err := os.ReadFile("../../policy.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.yaml")
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("policy.yaml", strings.Replace(string(example), "max_age: 30d", "max_age: 3h", 1))
	out, err := lint(path)
	if err == nil || !strings.Contains(err.Error(), "contradicts itself in") || !strings.Contains(out, "refused: "+path+": line ") || !strings.Contains(out, "rules[0].max_age is 3h, and no window is open for up to") {
		t.Errorf("a policy that contradicts itself: %v\n%s", err, out)
	}
	write("policy.yaml", strings.Replace(string(example), "#csv:", "csv:", 1))
	write("executives.csv", "user_id\n@ann:example.org\nbob\n")
	if _, err := lint(path); err == nil || !strings.Contains(err.Error(), "executives.csv: line 3") {
		t.Errorf("a list with a bad line: %v", err)
	}
	write("executives.csv", "user_id\n@ann:example.org\n")
	if out, err := lint(path); err != nil {
		t.Errorf("a list: %v\n%s", err, out)
	}
}

func TestAPolicyIsPrintedAsItCanBeReadAgain(t *testing.T) {
	document, err := readPolicy("../../policy.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := document.JSON()
	if err != nil {
		t.Fatal(err)
	}
	version := api.Policy{Version: 3, Document: raw, CreatedAt: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), CreatedBy: "local:ann@host", Reason: "stricter"}
	var out bytes.Buffer
	if err := printPolicy(&out, version, false); err != nil {
		t.Fatal(err)
	}
	again, err := policy.Parse("printed.yaml", out.Bytes(), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if same, _ := again.JSON(); !bytes.Equal(same, raw) || !strings.HasPrefix(out.String(), "# Version 3, since 2026-05-01T00:00:00Z, by local:ann@host: stricter\n") {
		t.Errorf("it reads: %s", out.String())
	}
}

func TestAnExplanationShowsTimesInUTCAndOnTheRulesClock(t *testing.T) {
	document, err := policy.Parse("policy.yaml", []byte(`rules: [{name: staff, who: {all: true}, max_age: 30d, grace: 2d, windows: [{time_zone: Europe/Berlin, hours: "22:00-04:00"}]}]`), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.New(document)
	if err != nil {
		t.Fatal(err)
	}
	rule, _ := p.RuleFor("@alice:example.org")
	created := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	x := enforce.Explanation{UserID: "@alice:example.org", Version: 3, Rule: &rule, OnRoster: true, Ruled: postgres.Ruled{Version: "7", Since: created, OnlySeen: true},
		Verdict: rule.Due(policy.Key{User: "@alice:example.org", Created: created}, created.Add(31*24*time.Hour)), Then: "a new key when his turn is"}
	var out bytes.Buffer
	if err := printExplanation(&out, api.ExplanationOf(x)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"version 3", "staff: device_generates, max_age 30d, grace 2d", "version 7, first seen 2026-05-01T12:00:00Z", "his turn          2026-06-01T20:00:00Z, Mon 2026-06-01 22:00:00 CEST in Europe/Berlin",
		"overdue           2026-06-02T12:00:00Z", "now               waiting", "a new key when his turn is"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it has no %q:\n%s", want, out.String())
		}
	}
}
