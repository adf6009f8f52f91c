package main

import (
	"os"
	"strings"
	"testing"
)

func TestTheDryRunOfACampaignSaysThatTriggersAreFrozen(t *testing.T) {
	t.Parallel()
	r := withBot(t, newRoom(t))
	check(t, os.WriteFile(r.path("users.csv"), []byte("user_id\n@alice:example.org\n@bob:example.org\n"), 0o600))
	r.acted(t, "roster", "apply", r.path("users.csv"))
	dryRun := []string{"campaign", "start", "--all", "--kms", "corporate", "--path", "keyherald/{user}", "--reason", "yearly", "--dry-run"}
	if said := r.acted(t, dryRun...); strings.Contains(said, "frozen") {
		t.Errorf("it says:\n%s", said)
	}
	r.acted(t, "freeze")
	for _, args := range [][]string{dryRun, append(dryRun, "--json")} {
		if said := r.acted(t, args...); !strings.Contains(said, "Triggers are frozen: nobody would begin until `keyherald thaw`.") || !strings.Contains(said, "@bob:example.org") {
			t.Errorf("while triggers are frozen it says:\n%s", said)
		}
	}
}
