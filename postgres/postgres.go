// Package postgres keeps what the server knows: notifications, rotations with attempts and deliveries, devices, codes,
// the bot's lease, and the audit log, each effect in one transaction with its audit event. The Olm state and the inbox
// and outbox (package todevice) live in the same database, so that they join these transactions.
//
// The roles are told in roles.go: the owner migrates, the writer serves, the signer seals the log, the auditor reads it.
package postgres

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"time"

	"github.com/lib/pq"
	"go.mau.fi/util/dbutil"
)

//go:embed upgrades/*.sql
var upgradeFiles embed.FS

// maxConns bounds the connections of a process.
const maxConns = 20

// DB is the server's database. Its methods join the transaction that Txn put into the context.
type DB struct {
	*dbutil.Database
	url       string
	appending prepared
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
	// As many may idle as may be open: under load each return above the limit would close a connection that the next
	// transaction has to make again.
	raw.SetMaxOpenConns(maxConns)
	raw.SetMaxIdleConns(maxConns)
	raw.SetConnMaxIdleTime(5 * time.Minute)
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
	return &DB{Database: wrapped, url: url, appending: prepared{query: appendEvent}}, nil
}

// Txn runs fn in a transaction; within one it joins it.
func (db *DB) Txn(ctx context.Context, fn func(ctx context.Context) error) error {
	if ctx.Value(keepRefusals{}) != nil {
		return db.savepoint(ctx, fn)
	}
	if _, within := db.Execable(ctx).(*dbutil.LoggingTxn); !within {
		db.appending.make(ctx, db.RawDB)
	}
	return db.DoTxn(ctx, nil, fn)
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
