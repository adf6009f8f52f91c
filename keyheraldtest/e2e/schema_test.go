package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

func TestASchemaThatDoesNotFitIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, test := range []struct{ name, change, want string }{
		{"a database that was never migrated", "", "run `keyherald migrate`"},
		{"an older schema", "UPDATE keyherald_version SET version = 1", "run `keyherald migrate`"},
		{"a newer schema", "UPDATE keyherald_version SET version = 999", "run the newer keyherald"},
		{"an older schema of the crypto store", "UPDATE crypto_version SET version = 1", "run `keyherald migrate`"},
		{"another program's database", "UPDATE database_owner SET owner = 'megabridge/whatsapp'", "a database of its own"},
		{"the right schema", "SELECT 1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			database, err := cluster.NewDatabase(ctx)
			check(t, err)
			owner, err := postgres.Open(ctx, database.OwnerURL)
			check(t, err)
			t.Cleanup(func() { _ = owner.Close() })
			if test.change != "" {
				check(t, owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), ""))
				_, err = owner.Exec(ctx, test.change)
				check(t, err)
			}
			writer, err := postgres.Open(ctx, database.WriterURL)
			check(t, err)
			t.Cleanup(func() { _ = writer.Close() })
			err = writer.CheckSchema(ctx)
			if test.want == "" {
				check(t, err)
				check(t, writer.CheckWriter(ctx))
				if owner.CheckWriter(ctx) == nil {
					t.Error("the owner passes for a writer")
				}
				return
			}
			if !errors.Is(err, postgres.ErrSchema) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}
