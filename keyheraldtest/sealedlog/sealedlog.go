// Package sealedlog is an audit log for tests: a database with its roles, signing keys, a signer, and a sink in memory.
package sealedlog

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// Name is the log's name.
const Name = "example.org/keyherald"

// Shelf is a sink in memory that can be told to fail.
type Shelf struct {
	mu      sync.Mutex // guards the rest
	notes   []string
	failing error
}

// Name implements signer.Sink.
func (s *Shelf) Name() string { return "shelf" }

// Publish implements signer.Sink.
func (s *Shelf) Publish(_ context.Context, c checkpoint.Signed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing == nil {
		s.notes = append(s.notes, c.Note)
	}
	return s.failing
}

// Newest implements signer.Memory.
func (s *Shelf) Newest(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.notes) == 0 || s.failing != nil {
		return "", s.failing
	}
	return s.notes[len(s.notes)-1], nil
}

// Fail makes the shelf fail with err from now on; nil mends it.
func (s *Shelf) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = err
}

// Log is an audit log of a test's own. Every step that fails ends the test.
type Log struct {
	Database *keyheraldtest.Database
	// Writer, Super and Sealer are connections as these roles.
	Writer, Super, Sealer *postgres.DB
	// KeyFile is the file of the signing key.
	KeyFile string
	Keys    checkpoint.Keys
	Shelf   *Shelf
	Signer  *signer.Signer
}

// New makes a log in a database of its own.
func New(t testing.TB, cluster *keyheraldtest.Postgres) *Log {
	t.Helper()
	ctx := t.Context()
	database, err := cluster.NewDatabase(ctx)
	check(t, err)
	owner, err := postgres.Open(ctx, database.OwnerURL)
	check(t, err)
	check(t, owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), ""))
	check(t, owner.Close())
	l := &Log{Database: database, Shelf: &Shelf{}}
	l.KeyFile, l.Keys = NewKey(t)
	for _, c := range []struct {
		to  **postgres.DB
		url string
	}{{&l.Writer, database.WriterURL}, {&l.Super, database.SuperURL}, {&l.Sealer, database.SignerURL}} {
		db, err := postgres.Open(ctx, c.url)
		check(t, err)
		t.Cleanup(func() { _ = db.Close() })
		*c.to = db
	}
	// A test's log begins without what the migration told, so that its leaves can be counted.
	l.Tamper(t, "DELETE FROM audit_detail", "DELETE FROM audit_pending", "DELETE FROM audit_event")
	l.Signer = l.NewSigner(t)
	return l
}

// NewKey makes a signing key for the log of this name.
func NewKey(t testing.TB) (path string, keys checkpoint.Keys) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.key")
	_, err := checkpoint.WriteKeys(path, Name)
	check(t, err)
	keys, err = checkpoint.LoadKeys(Name, path)
	check(t, err)
	return path, keys
}

// NewSigner is a signer as after a restart, which remembers nothing. Sinks are published to beside the shelf.
func (l *Log) NewSigner(t testing.TB, sinks ...signer.Sink) *signer.Signer {
	t.Helper()
	s, err := signer.New(signer.Config{DB: l.Sealer, Keys: l.Keys, Sinks: append([]signer.Sink{l.Shelf}, sinks...),
		Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.FatalLevel)})
	check(t, err)
	return s
}

// Append appends n events, each in a transaction of its own.
func (l *Log) Append(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		l.AppendEvents(t, audit.Event{Time: time.Now(), Actor: audit.ByRelay(), Action: audit.LeaseTaken,
			Subject: audit.OfUser("@keyherald:example.org"), Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("epoch", i)}})
	}
}

// AppendEvents appends events in one transaction.
func (l *Log) AppendEvents(t testing.TB, events ...audit.Event) {
	t.Helper()
	check(t, l.Writer.Append(t.Context(), events...))
}

// Seal seals all that is there.
func (l *Log) Seal(t testing.TB) {
	t.Helper()
	for more := true; more; {
		var err error
		more, err = l.Signer.Seal(t.Context())
		check(t, err)
	}
}

// Newest opens the newest checkpoint on the shelf.
func (l *Log) Newest(t testing.TB) checkpoint.Checkpoint {
	t.Helper()
	note, err := l.Shelf.Newest(t.Context())
	check(t, err)
	c, err := checkpoint.Open(Name, note, l.Keys.Verifiers)
	check(t, err)
	return c
}

// Bodies are the sealed events' bytes in the order of the leaves, whose indexes have no gap.
func (l *Log) Bodies(t testing.TB) [][]byte {
	t.Helper()
	rows, err := l.Super.Query(t.Context(), `SELECT leaf_index, body FROM audit_leaf JOIN audit_event ON id = event_id ORDER BY leaf_index`)
	check(t, err)
	defer func() { _ = rows.Close() }()
	var bodies [][]byte
	for rows.Next() {
		var index int
		var body []byte
		check(t, rows.Scan(&index, &body))
		if index != len(bodies) {
			t.Fatalf("leaf %d comes after %d leaves", index, len(bodies))
		}
		bodies = append(bodies, body)
	}
	check(t, rows.Err())
	return bodies
}

// Count runs a query for one number, as a superuser.
func (l *Log) Count(t testing.TB, query string, args ...any) (n int) {
	t.Helper()
	check(t, l.Super.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}

// Tamper runs statements with the rights of a superuser, the guards switched off and on again.
func (l *Log) Tamper(t testing.TB, statements ...string) {
	t.Helper()
	tables := []string{"audit_event", "audit_detail", "audit_leaf", "audit_node", "audit_checkpoint", "audit_redaction", "audit_epoch", "audit_signing_keys"}
	check(t, l.Super.Txn(t.Context(), func(ctx context.Context) error {
		for _, table := range tables {
			if _, err := l.Super.Exec(ctx, "ALTER TABLE "+table+" DISABLE TRIGGER ALL"); err != nil {
				return err
			}
		}
		for _, statement := range statements {
			if _, err := l.Super.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		for _, table := range tables {
			if _, err := l.Super.Exec(ctx, "ALTER TABLE "+table+" ENABLE TRIGGER ALL"); err != nil {
				return err
			}
		}
		_, err := l.Super.Exec(ctx, "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER enqueue")
		return err
	}))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
