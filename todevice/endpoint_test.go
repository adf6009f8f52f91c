package todevice_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	"go.mau.fi/util/dbutil"
	_ "modernc.org/sqlite"

	"github.com/keyherald/keyherald/todevice"
)

func TestASchemaIsMadeOnSQLite(t *testing.T) {
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "x.db")+"?_txlock=immediate&_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		t.Fatal(err)
	}
	for _, schema := range todevice.Databases(db) {
		if err := schema.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
