package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTokensAreListedAndEndedByTheDatabaseAndByTheAPI(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	address := r.server(t)
	token := func(args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs(append([]string{"token"}, args...))
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	here, there := []string{"-c", r.path("config.yaml")}, []string{"--server", address, "--token-file", r.path("admin.token")}
	for _, name := range []string{"first", "second"} {
		if out, err := token(append(here, "create", "--name", name, "--role", "auditor")...); err != nil || !strings.HasPrefix(out, "kht1.") {
			t.Fatal(out, err)
		}
	}
	for name, way := range map[string][]string{"first": here, "second": there} {
		if out, err := token(append(way, "revoke", name)...); err != nil || out != "" {
			t.Errorf("%s is ended with %q and %v", name, out, err)
		}
		if _, err := token(append(way, "revoke", "nobody")...); err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("one that is not there is ended with %v", err)
		}
	}
	// More than the API gives at once.
	_, err := r.Super.Exec(t.Context(), `INSERT INTO api_token (id, name, sha256, role, created_at, created_by, expires_at)
		SELECT gen_random_uuid(), 'zz' || n, sha256(n::text::bytea), 'auditor', now(), 'local:test', now() + interval '1 day' FROM generate_series(1, 1200) n`)
	check(t, err)
	// The API's own token was used between the two, or not yet: its last column may differ.
	of := func(way []string) (lines []string) {
		out, err := token(append(way, "list")...)
		check(t, err)
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "test-admin") {
				lines = append(lines, strings.Join(strings.Fields(line), " "))
			}
		}
		return lines
	}
	byDatabase, byAPI := of(here), of(there)
	if strings.Join(byDatabase, "\n") != strings.Join(byAPI, "\n") || len(byAPI) != 1203 || !strings.Contains(byAPI[1], "revoked") || !strings.Contains(byAPI[2], "revoked") {
		t.Errorf("the database lists %d, the API %d: %q", len(byDatabase), len(byAPI), byAPI)
	}
	var actors []string
	rows, err := r.Super.Query(t.Context(), `SELECT actor FROM audit_log WHERE action = 'token.revoked' AND outcome = 'accepted' ORDER BY id`)
	check(t, err)
	for rows.Next() {
		var actor string
		check(t, rows.Scan(&actor))
		actors = append(actors, actor)
	}
	check(t, rows.Err())
	if text := strings.Join(actors, " "); len(actors) != 2 || !strings.Contains(text, "local:") || !strings.Contains(text, "admin:token:test-admin") {
		t.Errorf("the log says that %s ended them", text)
	}
}
