package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivermigrate"
	"go.mau.fi/util/dbutil"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/todevice"
)

// schemas are ours, the crypto store's, and the inbox's, in the order of migration.
func (db *DB) schemas() []*dbutil.Database {
	return append([]*dbutil.Database{db.Database}, todevice.Databases(db.Database)...)
}

// Migrate brings every schema up to date, grants the roles what they need, and tells the audit log where that changed a
// schema. It must run as the owner of the database and its public schema; it is safe to repeat. River's schema has
// transactions of its own and comes first; all else is one transaction.
func (db *DB) Migrate(ctx context.Context, roles Roles, actor audit.Actor, software audit.SoftwareVersion) error {
	migrator, err := rivermigrate.New(riverdatabasesql.New(db.RawDB), nil)
	if err != nil {
		return fmt.Errorf("preparing River's migrations: %w", err)
	}
	river, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	if err != nil {
		return fmt.Errorf("running River's migrations: %w", err)
	}
	return db.Txn(ctx, func(ctx context.Context) error {
		changed := len(river.Versions) > 0
		before := 0
		for i, schema := range db.schemas() {
			from, err := versionOf(ctx, schema)
			if err != nil {
				return err
			}
			if i == 0 {
				before = from
			}
			changed = changed || from != len(schema.UpgradeTable)
			if err := schema.Upgrade(ctx); err != nil {
				return fmt.Errorf("migrating %s: %w", schema.VersionTable, err)
			}
		}
		if err := db.grant(ctx, roles); err != nil || !changed {
			return err
		}
		return db.Append(ctx, audit.Event{Time: time.Now(), Actor: actor, Action: audit.DatabaseMigrated, Subject: audit.OfDatabase(), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("software_version", software), audit.Number("from", before), audit.Number("to", len(db.UpgradeTable))}})
	})
}

// versionOf is the version that a schema has, 0 where there is none yet.
func versionOf(ctx context.Context, schema *dbutil.Database) (version int, err error) {
	exists, err := schema.TableExists(ctx, schema.VersionTable)
	if err == nil && exists {
		err = schema.QueryRow(ctx, "SELECT version FROM "+schema.VersionTable).Scan(&version)
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("reading %s: %w", schema.VersionTable, err)
	}
	return version, nil
}

// ErrSchema means that the schema is not the one this program was built for.
var ErrSchema = errors.New("the database schema does not fit this version of keyherald")

// CheckSchema refuses a schema that is missing, older, newer or of another program. It changes nothing.
func (db *DB) CheckSchema(ctx context.Context) error {
	for _, schema := range db.schemas() {
		if err := checkVersion(ctx, schema); err != nil {
			return err
		}
	}
	var owner string
	err := db.QueryRow(ctx, `SELECT owner FROM database_owner WHERE key = 0`).Scan(&owner)
	if err != nil || owner != "keyherald" {
		return fmt.Errorf("%w: the database belongs to %q: give keyherald a database of its own", ErrSchema, owner)
	}
	return nil
}

func checkVersion(ctx context.Context, schema *dbutil.Database) error {
	want := len(schema.UpgradeTable)
	var have int
	err := schema.QueryRow(ctx, "SELECT version FROM "+schema.VersionTable).Scan(&have)
	var pqErr *pq.Error
	switch {
	case errors.As(err, &pqErr) && pqErr.Code == "42P01":
		return fmt.Errorf("%w: %s is missing: run `keyherald migrate` as the owner", ErrSchema, schema.VersionTable)
	case err != nil:
		return fmt.Errorf("reading %s: %w", schema.VersionTable, err)
	case have < want:
		return fmt.Errorf("%w: %s is at v%d and v%d is needed: run `keyherald migrate` as the owner", ErrSchema, schema.VersionTable, have, want)
	case have > want:
		return fmt.Errorf("%w: %s is at v%d, newer than v%d: run the newer keyherald", ErrSchema, schema.VersionTable, have, want)
	}
	return nil
}
