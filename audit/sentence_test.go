package audit_test

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// What an auditor reads in SQL has a sentence for every action, with every outcome, every word and every role; and for one
// whose detail is gone.
func TestEveryEventReadsAsASentence(t *testing.T) {
	ctx := t.Context()
	cluster, err := keyheraldtest.StartPostgres(context.WithoutCancel(ctx))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	database, err := cluster.NewDatabase(ctx)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := postgres.Open(ctx, database.OwnerURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close() })
	if err := owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), "test"); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, entry := range audit.Entries() {
		for _, outcome := range entry.Outcomes {
			for _, role := range entry.Roles {
				for _, detail := range details(entry) {
					tried++
					var raw any
					if detail != nil {
						encoded, err := json.Marshal(detail)
						if err != nil {
							t.Fatal(err)
						}
						raw = string(encoded)
					}
					var sentence string
					err := owner.QueryRow(ctx, `SELECT COALESCE(auditor.sentence($1, $2, '@subject:example.org/SUBJECT', $3, $4), '')`, role.Looks(), entry.Action, outcome, raw).Scan(&sentence)
					if err != nil {
						t.Fatalf("%s: %v", entry.Action, err)
					}
					unknown := strings.Contains(sentence, string(entry.Action))
					if unknown || !strings.HasSuffix(sentence, ".") || strings.Contains(sentence, "?") || strings.Contains(sentence, "  ") || detail != nil && strings.Contains(sentence, "redacted)") {
						t.Errorf("%s by %s with %v reads: %q", entry.Action, role.Looks(), raw, sentence)
					}
				}
			}
		}
	}
	if tried < 300 {
		t.Errorf("only %d were tried", tried)
	}
}

// details are details with every field, each word of each field once, and none at all.
func details(entry audit.Entry) []map[string]any {
	whole := map[string]any{}
	for _, f := range entry.Fields {
		whole[string(f.Name)] = f.Sample
		if len(f.Words) > 0 {
			whole[string(f.Name)] = f.Words[0]
		}
	}
	all := []map[string]any{nil, whole}
	for _, f := range entry.Fields {
		for _, word := range f.Words {
			one := maps.Clone(whole)
			one[string(f.Name)] = word
			all = append(all, one)
		}
		if f.Sample == true {
			one := maps.Clone(whole)
			one[string(f.Name)] = false
			all = append(all, one)
		}
	}
	return all
}
