// Package postgres keeps what the server knows: notifications, rotations with attempts and deliveries, devices, codes,
// the bot's lease, and the audit log, each effect in one transaction with its audit event. The Olm state and the inbox
// and outbox (package todevice) live in the same database, so that they join these transactions.
//
// Two roles: the owner runs Migrate and nothing else; the writer serves, and cannot change the schema or the log.
package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"

	"github.com/lib/pq"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivermigrate"
	"go.mau.fi/util/dbutil"

	"github.com/keyherald/keyherald/todevice"
)

//go:embed upgrades/*.sql
var upgradeFiles embed.FS

// DB is the server's database. Its methods join the transaction that Txn put into the context.
type DB struct {
	*dbutil.Database
	url string
}

// Open connects; it changes nothing.
func Open(ctx context.Context, url string) (*DB, error) {
	raw, err := sql.Open("postgres", url)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return OpenWith(ctx, raw, url)
}

// OpenWith is Open on a pool of the caller's, which Close ends too. Listen still connects by the URL.
func OpenWith(ctx context.Context, raw *sql.DB, url string) (*DB, error) {
	raw.SetMaxOpenConns(20)
	raw.SetMaxIdleConns(10)
	if err := raw.PingContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	wrapped, err := dbutil.NewWithDB(raw, "postgres")
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	wrapped.Owner = "keyherald"
	wrapped.VersionTable = "keyherald_version"
	wrapped.UpgradeTable = dbutil.BuildUpgradeTable().WithFSPath(upgradeFiles, "upgrades").Finish()
	return &DB{Database: wrapped, url: url}, nil
}

// Txn runs fn in a transaction; within one it joins it.
func (db *DB) Txn(ctx context.Context, fn func(ctx context.Context) error) error {
	return db.DoTxn(ctx, nil, fn)
}

// schemas are ours, the crypto store's, and the inbox's, in the order of migration.
func (db *DB) schemas() []*dbutil.Database {
	return append([]*dbutil.Database{db.Database}, todevice.Databases(db.Database)...)
}

// Roles are the database roles that Migrate grants to.
type Roles struct {
	Writer  string `yaml:"writer"`
	Auditor string `yaml:"auditor"`
}

// Migrate brings every schema up to date and grants the roles what they need. It must run as the owner of the
// database's public schema; it is safe to repeat.
func (db *DB) Migrate(ctx context.Context, roles Roles) error {
	for _, schema := range db.schemas() {
		if err := schema.Upgrade(ctx); err != nil {
			return fmt.Errorf("migrating %s: %w", schema.VersionTable, err)
		}
	}
	migrator, err := rivermigrate.New(riverdatabasesql.New(db.RawDB), nil)
	if err != nil {
		return fmt.Errorf("preparing River's migrations: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("running River's migrations: %w", err)
	}
	return db.grant(ctx, roles)
}

func (db *DB) grant(ctx context.Context, roles Roles) error {
	var statements []string
	if roles.Writer != "" {
		writer := pq.QuoteIdentifier(roles.Writer)
		statements = append(statements,
			"GRANT USAGE ON SCHEMA public TO "+writer,
			"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "+writer,
			"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO "+writer,
			"REVOKE UPDATE, DELETE ON audit_event, audit_detail, audit_log FROM "+writer,
			"REVOKE INSERT, UPDATE, DELETE ON keyherald_version, crypto_version, todevice_version, river_migration FROM "+writer,
		)
	}
	if roles.Auditor != "" {
		auditor := pq.QuoteIdentifier(roles.Auditor)
		statements = append(statements,
			"GRANT USAGE ON SCHEMA public TO "+auditor,
			"GRANT SELECT ON audit_event, audit_detail, audit_log TO "+auditor,
		)
	}
	for _, statement := range statements {
		if _, err := db.Exec(ctx, statement); err != nil {
			return fmt.Errorf("granting rights (%s): %w; does the role exist? CREATE ROLE … LOGIN makes one", statement, err)
		}
	}
	return nil
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

// CheckWriter fails unless this connection's role may append to the audit log and may neither change it nor the schema.
func (db *DB) CheckWriter(ctx context.Context) error {
	var role string
	var super, appends, changes, creates bool
	err := db.QueryRow(ctx, `SELECT current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
		has_table_privilege('audit_event', 'INSERT'),
		has_table_privilege('audit_event', 'UPDATE') OR has_table_privilege('audit_event', 'DELETE') OR has_table_privilege('audit_event', 'TRUNCATE'),
		has_schema_privilege('public', 'CREATE')`).Scan(&role, &super, &appends, &changes, &creates)
	switch {
	case err != nil:
		return fmt.Errorf("reading the role's rights: %w", err)
	case super:
		return fmt.Errorf("%s is a superuser", role)
	case changes || creates:
		return fmt.Errorf("%s could change the audit log or the schema: it is no writer", role)
	case !appends:
		return fmt.Errorf("%s may not append to the audit log", role)
	}
	return nil
}

// Listen delivers the payloads of a NOTIFY channel until ctx ends. A lost connection is made again; what was notified
// meanwhile is lost, so listeners sweep as well. The empty payload says "look everywhere".
func (db *DB) Listen(ctx context.Context, channel string, deliver func(payload string)) error {
	listener := pq.NewListener(db.url, listenMin, listenMax, nil)
	defer func() { _ = listener.Close() }()
	if err := listener.Listen(channel); err != nil {
		return fmt.Errorf("listening to %s: %w", channel, err)
	}
	deliver("")
	for {
		select {
		case <-ctx.Done():
			return nil
		case notification := <-listener.Notify:
			if notification == nil {
				deliver("")
			} else {
				deliver(notification.Extra)
			}
		}
	}
}

// Notify wakes every replica's Listen when the transaction commits.
func (db *DB) Notify(ctx context.Context, channel, payload string) error {
	if _, err := db.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, payload); err != nil {
		return fmt.Errorf("notifying %s: %w", channel, err)
	}
	return nil
}
