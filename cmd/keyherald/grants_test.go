package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestAGrantForNobodyOfTheRosterIsMadeWithAWarningBesideTheAnswer(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	config, err := os.ReadFile(r.path("config.yaml"))
	check(t, err)
	check(t, os.WriteFile(r.path("config.yaml"), append(config, `
enrollment:
  proofs:
    workload: {type: oidc, issuer: "https://localhost:1", keys_url: "https://localhost:1/keys", audience: keyherald, pattern: "(?P<user>[a-z]+)", user: "@{user}:example.org"}
`...), 0o600))
	create := func(users string) (out, said string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs([]string{"--server", r.server(t), "--token-file", r.path("admin.token"), "grant", "create", "--proof", "workload", "--max", "3", "--users", users})
		cmd.SetOut(&stdout)
		cmd.SetErr(&stderr)
		if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(stdout.String(), "Up to 3 users of "+users) {
			t.Fatalf("for %s it gives %v and says:\n%s%s", users, err, stdout.String(), stderr.String())
		}
		return stdout.String(), stderr.String()
	}
	if _, said := create("@staf-*:example.org"); said != "" {
		t.Errorf("without a roster it warns:\n%s", said)
	}
	check(t, os.WriteFile(r.path("users.csv"), []byte("user_id\n@staff-anna:example.org\n@bert:example.org\n"), 0o600))
	r.acted(t, "roster", "apply", r.path("users.csv"))
	if _, said := create("@staff-*:example.org"); said != "" {
		t.Errorf("for those who are on the roster it warns:\n%s", said)
	}
	if out, said := create("@staf-*:example.org"); !strings.Contains(said, "Warning: nobody of the roster matches @staf-*:example.org") || strings.Contains(out, "arning") {
		t.Errorf("for nobody of the roster it says:\n%s\nand beside it:\n%s", out, said)
	}
}
