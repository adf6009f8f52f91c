package e2e

import (
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// The SQL that a DBA is given makes roles with which everything works, and which may nothing else: the auditor reads the
// log and nothing beside it, and what he is shown is not for the others.
func TestTheSQLThatIsPrintedMakesTheRoles(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	other, err := cluster.NewDatabase(ctx)
	check(t, err)
	of := func(role string) string { return strings.Replace(other.Name, "k", "dba_"+role+"_", 1) }
	roles, owner, database := postgres.Roles{Writer: of("writer"), Signer: of("signer"), Auditor: of("auditor")}, of("owner"), of("database")
	url := func(role, database string) string {
		return strings.NewReplacer("//postgres@", "//"+role+"@", "/"+other.Name+"?", "/"+database+"?").Replace(other.SuperURL)
	}
	open := func(role, database string) *postgres.DB {
		t.Helper()
		db, err := postgres.Open(ctx, url(role, database))
		check(t, err)
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	made, granted, found := strings.Cut(roles.PrintRoles(owner, database), "-- 2.")
	if !found {
		t.Fatal("there is no second part")
	}
	before, after, found := strings.Cut(made, "\\connect ")
	if !found {
		t.Fatal("it does not connect")
	}
	statements := func(text string) (all []string) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); strings.HasSuffix(line, ";") && !strings.HasPrefix(line, "--") {
				all = append(all, line)
			}
		}
		return all
	}
	super := open("postgres", "postgres")
	for _, statement := range statements(before) {
		_, err := super.Exec(ctx, statement)
		check(t, err)
	}
	inside := open("postgres", database)
	for _, statement := range statements(after) {
		_, err := inside.Exec(ctx, statement)
		check(t, err)
	}
	migrating := open(owner, database)
	check(t, migrating.Migrate(ctx, roles, keyheraldtest.Admin(), "test"))
	if len(statements(granted)) < 10 {
		t.Errorf("few rights are granted: %s", granted)
	}
	for _, statement := range statements(granted) {
		_, err := migrating.Exec(ctx, statement)
		check(t, err)
	}

	writer, signer, auditor := open(roles.Writer, database), open(roles.Signer, database), open(roles.Auditor, database)
	check(t, writer.CheckWriter(ctx))
	check(t, signer.CheckSigner(ctx))
	var views []string
	rows, err := migrating.Query(ctx, `SELECT 'auditor.' || viewname FROM pg_views WHERE schemaname = 'auditor' UNION ALL
		SELECT 'auditor.' || name || '(now())' FROM unnest(ARRAY['compliance_at', 'roster_at', 'coverage_at']) AS name`)
	check(t, err)
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var view string
		check(t, rows.Scan(&view))
		views = append(views, view)
	}
	check(t, rows.Err())
	if len(views) != 9 {
		t.Errorf("the views are %v", views)
	}
	for _, view := range append(views, "audit_event", "audit_detail", "audit_leaf", "audit_checkpoint", "audit_log") {
		if _, err := auditor.Exec(ctx, "SELECT * FROM "+view); err != nil {
			t.Errorf("the auditor cannot read %s: %v", view, err)
		}
		if strings.HasPrefix(view, "auditor.") {
			if _, err := signer.Exec(ctx, "SELECT * FROM "+view); err == nil {
				t.Errorf("%s is read by the signer", view)
			}
			// The writer may ask how things stood: `keyherald compliance --at`.
			if _, err := writer.Exec(ctx, "SELECT * FROM "+view); (err == nil) != strings.HasSuffix(view, "(now())") {
				t.Errorf("the writer reads %s with %v", view, err)
			}
		}
	}
	for _, statement := range []string{"SELECT * FROM device", "SELECT * FROM rotation", "SELECT * FROM todevice_inbox", "SELECT * FROM crypto_account", "DELETE FROM audit_event",
		"INSERT INTO audit_event VALUES (gen_random_uuid(), '')", "UPDATE auditor.log SET actor = ''", "CREATE TABLE auditor.mine ()", "CREATE TABLE public.mine ()"} {
		if _, err := auditor.Exec(ctx, statement); err == nil {
			t.Errorf("the auditor could: %s", statement)
		}
	}
}
