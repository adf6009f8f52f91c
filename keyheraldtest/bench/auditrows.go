package bench

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

const auditRound = 2 * time.Second

// Audit measures the audit log. audit_append/16 and /32 are events a second that so many writers append, each in a
// transaction of its own, while the signer seals them; beside them are plain inserts of the same rows, which nobody can
// check, and a hash chain whose head every writer locks. audit_seal is how many events of a backlog are sealed a second,
// beside hashing them into a tree in memory.
func Audit(ctx context.Context, rounds int) (rows []Row, err error) {
	cluster, err := keyheraldtest.StartPostgres(ctx, "max_connections=200", "fsync=on", "synchronous_commit=on")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	for _, writers := range []int{16, 32} {
		row, err := appending(ctx, cluster, writers, rounds)
		if err != nil {
			return nil, fmt.Errorf("audit_append/%d: %w", writers, err)
		}
		rows = append(rows, row)
	}
	seal, err := sealing(ctx, cluster, min(rounds, 5))
	if err != nil {
		return nil, fmt.Errorf("audit_seal: %w", err)
	}
	return append(rows, seal), nil
}

// sampleEvent is an event as reports of progress are.
func sampleEvent(rotation uuid.UUID) audit.Event {
	return audit.Event{Time: time.Now(), Actor: audit.ByDevice("@alice:example.org", "MANAGEDDEVICE"), Action: audit.ProgressReported, Subject: audit.OfUser("@alice:example.org"), Rotation: rotation,
		Outcome: audit.Reported, Detail: audit.Detail{audit.Word("stage", protocol.StageCarriedOver), audit.Number("attempt", 1), audit.ID("report", rotation),
			audit.Number("total", 1200), audit.Number("carried", 1200), audit.Number("undecrypted", 0), audit.Flag("complete", true)}}
}

func appending(ctx context.Context, cluster *keyheraldtest.Postgres, writers, rounds int) (Row, error) {
	sealed, err := newSealed(ctx, cluster)
	if err != nil {
		return Row{}, err
	}
	defer func() { _ = sealed.close() }()
	running, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { sealed.signer.Run(running) })
	plain, err := newPlain(ctx, cluster)
	if err != nil {
		stop()
		return Row{}, err
	}
	defer func() { _ = plain.db.Close() }()
	row, err := Measure(ctx, fmt.Sprintf("audit_append/%d", writers), "events/s", More, rounds,
		Side{"sealed", func(ctx context.Context) (float64, error) { return together(ctx, writers, sealed.append) }},
		Side{"plain_insert", func(ctx context.Context) (float64, error) { return together(ctx, writers, plain.insert) }},
		Side{"locked_hash_chain", func(ctx context.Context) (float64, error) { return together(ctx, writers, plain.chain) }})
	stop()
	background.Wait()
	if err != nil {
		return row, err
	}
	return row, sealed.whole(ctx)
}

// together runs one transaction after the other in so many goroutines, and returns how many there were a second.
func together(ctx context.Context, writers int, one func(context.Context) error) (float64, error) {
	var all sync.WaitGroup
	var done atomic.Int64
	failures := make([]error, writers)
	began := time.Now()
	for i := range writers {
		all.Go(func() {
			for time.Since(began) < auditRound && failures[i] == nil {
				failures[i] = one(ctx)
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), errors.Join(failures...)
}

// sealedLog is the log as the server keeps it, with its signer.
type sealedLog struct {
	database
	sealer *postgres.DB
	signer *signer.Signer
	dir    string
}

func newSealed(ctx context.Context, cluster *keyheraldtest.Postgres) (*sealedLog, error) {
	made, sealerURL, err := newDatabaseWithSigner(ctx, cluster)
	if err != nil {
		return nil, err
	}
	s := &sealedLog{database: made}
	if s.dir, err = os.MkdirTemp("", "keyherald-bench-"); err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, "audit.key")
	if _, err := checkpoint.WriteKeys(path, "example.org/keyherald"); err != nil {
		return nil, err
	}
	keys, err := checkpoint.LoadKeys("example.org/keyherald", path)
	if err != nil {
		return nil, err
	}
	if s.sealer, err = postgres.Open(ctx, sealerURL); err != nil {
		return nil, err
	}
	s.signer, err = signer.New(signer.Config{DB: s.sealer, Keys: keys, Log: zerolog.Nop()})
	return s, err
}

func (s *sealedLog) close() error {
	return errors.Join(s.db.Close(), s.sealer.Close(), os.RemoveAll(s.dir))
}

func (s *sealedLog) append(ctx context.Context) error {
	return s.db.Txn(ctx, func(ctx context.Context) error { return s.db.Append(ctx, sampleEvent(uuid.New())) })
}

// whole fails where an event that was appended is not sealed in the end.
func (s *sealedLog) whole(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = s.signer.Seal(ctx); err != nil {
			return err
		}
	}
	var events, leaves int
	if err := s.db.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM audit_event), (SELECT COUNT(*) FROM audit_leaf)`).Scan(&events, &leaves); err != nil {
		return err
	}
	if events != leaves || events == 0 {
		return fmt.Errorf("%d of %d events are sealed", leaves, events)
	}
	return nil
}

// plainLog is two tables with the same columns and keys as the log's, and nothing that watches them; and beside them the log as
// it would be with a hash chain in place of queue, signer and tree: the same tables, guards and auditors' indexes, and for
// each event its place in the chain. The statements are prepared as the log's is: the chain above all would be slower
// without, since its head stays locked meanwhile.
type plainLog struct {
	database
	inserting, heading, chaining *sql.Stmt
}

func newPlain(ctx context.Context, cluster *keyheraldtest.Postgres) (*plainLog, error) {
	made, err := cluster.NewDatabase(ctx)
	if err != nil {
		return nil, err
	}
	db, err := postgres.Open(ctx, made.OwnerURL)
	if err != nil {
		return nil, err
	}
	// For the functions that the indexes are made of.
	if err := db.Migrate(ctx, made.Roles(), keyheraldtest.Admin(), ""); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	_, err = db.Exec(ctx, `CREATE TABLE event (id UUID PRIMARY KEY, body BYTEA NOT NULL);
		CREATE TABLE detail (event_id UUID PRIMARY KEY REFERENCES event (id), salt BYTEA NOT NULL, detail BYTEA NOT NULL);
		CREATE TABLE chained (id UUID PRIMARY KEY, body BYTEA NOT NULL, place BIGINT NOT NULL UNIQUE, hash BYTEA NOT NULL);
		CREATE TABLE chained_detail (event_id UUID PRIMARY KEY REFERENCES chained (id), salt BYTEA NOT NULL, detail BYTEA NOT NULL);
		CREATE INDEX chained_rotation ON chained (audit_rotation(body));
		CREATE INDEX chained_notable ON chained (id) WHERE audit_notable(body);
		CREATE INDEX chained_time ON chained USING brin (audit_time(body)) WITH (autosummarize = on);
		CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON chained FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
		CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON chained_detail FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
		CREATE TABLE head (one INTEGER PRIMARY KEY, place BIGINT NOT NULL, hash BYTEA NOT NULL); INSERT INTO head VALUES (1, 0, sha256(''))`)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	p := &plainLog{database: database{made.Name, db}}
	for _, statement := range []struct {
		to    **sql.Stmt
		query string
	}{
		{&p.inserting, `WITH fresh AS (INSERT INTO event (id, body) VALUES ($1, $2))
			INSERT INTO detail (event_id, salt, detail) VALUES ($1, $3, $4)`},
		{&p.heading, `SELECT place, hash FROM head FOR UPDATE`},
		{&p.chaining, `WITH fresh AS (INSERT INTO chained (id, body, place, hash) VALUES ($1, $2, $5, $6)),
				detail AS (INSERT INTO chained_detail (event_id, salt, detail) VALUES ($1, $3, $4))
			UPDATE head SET place = $5, hash = $6`},
	} {
		if *statement.to, err = db.RawDB.PrepareContext(ctx, statement.query); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return p, nil
}

func (p *plainLog) insert(ctx context.Context) error {
	sealed, err := sampleEvent(uuid.New()).Seal()
	if err != nil {
		return err
	}
	return p.db.Txn(ctx, func(ctx context.Context) error {
		_, err := p.prepared(ctx, p.inserting).ExecContext(ctx, sealed.ID, sealed.Body, sealed.Salt, sealed.Detail)
		return err
	})
}

func (p *plainLog) chain(ctx context.Context) error {
	sealed, err := sampleEvent(uuid.New()).Seal()
	if err != nil {
		return err
	}
	return p.db.Txn(ctx, func(ctx context.Context) error {
		var place int64
		var head []byte
		if err := p.prepared(ctx, p.heading).QueryRowContext(ctx).Scan(&place, &head); err != nil {
			return err
		}
		hash := sha256.Sum256(append(head, sealed.Body...))
		_, err := p.prepared(ctx, p.chaining).ExecContext(ctx, sealed.ID, sealed.Body, sealed.Salt, sealed.Detail, place+1, hash[:])
		return err
	})
}

// prepared is a statement in the context's transaction.
func (p *plainLog) prepared(ctx context.Context, statement *sql.Stmt) *sql.Stmt {
	return p.db.Execable(ctx).(*dbutil.LoggingTxn).UnderlyingTx.StmtContext(ctx, statement)
}

// sealBacklog is how many events are sealed at once.
const sealBacklog = 20_000

func sealing(ctx context.Context, cluster *keyheraldtest.Postgres, rounds int) (row Row, err error) {
	log, err := newSealed(ctx, cluster)
	if err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, log.close()) }()
	return Measure(ctx, "audit_seal", "leaves/s", More, rounds, Side{"sealed", func(ctx context.Context) (float64, error) {
		for range sealBacklog / 1000 {
			events := make([]audit.Event, 1000)
			for i := range events {
				events[i] = sampleEvent(uuid.New())
			}
			if err := log.db.Append(ctx, events...); err != nil {
				return 0, err
			}
		}
		began := time.Now()
		err := log.whole(ctx)
		return sealBacklog / time.Since(began).Seconds(), err
	}}, Side{"hashed_in_memory", func(ctx context.Context) (float64, error) {
		sealed, err := sampleEvent(uuid.New()).Seal()
		if err != nil {
			return 0, err
		}
		began := time.Now()
		leaves := make([]tlog.Hash, sealBacklog)
		for i := range leaves {
			leaves[i] = tree.LeafHash(sealed.Body)
		}
		_, err = tree.Append(ctx, 0, leaves, func(context.Context, []tree.Node) ([]tlog.Hash, error) {
			return nil, errors.New("an empty tree has no nodes to read")
		})
		return sealBacklog / time.Since(began).Seconds(), err
	}})
}
