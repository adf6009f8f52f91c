package signer_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

const logName = "example.org/keyherald"

var cluster *keyheraldtest.Postgres

func TestMain(m *testing.M) {
	var err error
	if cluster, err = keyheraldtest.StartPostgres(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	_ = cluster.Close()
	os.Exit(status)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shelf is a sink in memory that can be told to fail.
type shelf struct {
	mu      sync.Mutex // guards the rest
	notes   []string
	failing error
}

func (s *shelf) Name() string { return "shelf" }

func (s *shelf) Publish(_ context.Context, c checkpoint.Signed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing == nil {
		s.notes = append(s.notes, c.Note)
	}
	return s.failing
}

func (s *shelf) Newest(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.notes) == 0 || s.failing != nil {
		return "", s.failing
	}
	return s.notes[len(s.notes)-1], nil
}

func (s *shelf) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = err
}

// room is a log with its roles, keys and a shelf.
type room struct {
	database      *keyheraldtest.Database
	writer, super *postgres.DB
	sealer        *postgres.DB
	keys          checkpoint.Keys
	shelf         *shelf
	signer        *signer.Signer
}

func newRoom(t *testing.T) *room {
	t.Helper()
	ctx := t.Context()
	database, err := cluster.NewDatabase(ctx)
	check(t, err)
	owner, err := postgres.Open(ctx, database.OwnerURL)
	check(t, err)
	check(t, owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), ""))
	check(t, owner.Close())
	r := &room{database: database, shelf: &shelf{}}
	r.keys = newKeys(t, "audit.key")
	r.connect(t)
	return r
}

func newKeys(t *testing.T, names ...string) checkpoint.Keys {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for _, name := range names {
		path := filepath.Join(dir, name)
		_, err := checkpoint.WriteKeys(path, logName)
		check(t, err)
		paths = append(paths, path)
	}
	keys, err := checkpoint.LoadKeys(logName, paths...)
	check(t, err)
	return keys
}

// connect opens the database with each role, and a signer that remembers nothing.
func (r *room) connect(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		to  **postgres.DB
		url string
	}{{&r.writer, r.database.WriterURL}, {&r.super, r.database.SuperURL}, {&r.sealer, r.database.SignerURL}} {
		db, err := postgres.Open(t.Context(), c.url)
		check(t, err)
		t.Cleanup(func() { _ = db.Close() })
		*c.to = db
	}
	r.signer = r.fresh(t)
}

// fresh is a signer as after a restart.
func (r *room) fresh(t *testing.T) *signer.Signer {
	t.Helper()
	s, err := signer.New(signer.Config{DB: r.sealer, Keys: r.keys, Sinks: []signer.Sink{r.shelf}, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.FatalLevel)})
	check(t, err)
	return s
}

// append appends n events, each in a transaction of its own.
func (r *room) append(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		check(t, r.writer.Append(t.Context(), audit.Event{Time: time.Now(), Actor: audit.ByRelay(), Action: audit.LeaseTaken,
			Subject: audit.OfUser("@keyherald:example.org"), Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("epoch", i)}}))
	}
}

func (r *room) seal(t *testing.T) {
	t.Helper()
	_, err := r.signer.Seal(t.Context())
	check(t, err)
}

// newest opens the newest checkpoint on the shelf.
func (r *room) newest(t *testing.T) checkpoint.Checkpoint {
	t.Helper()
	note, err := r.shelf.Newest(t.Context())
	check(t, err)
	c, err := checkpoint.Open(logName, note, r.keys.Verifiers)
	check(t, err)
	return c
}

// bodies are the sealed events' bytes in the order of the leaves.
func (r *room) bodies(t *testing.T) [][]byte {
	t.Helper()
	rows, err := r.super.Query(t.Context(), `SELECT leaf_index, body FROM audit_leaf JOIN audit_event ON id = event_id ORDER BY leaf_index`)
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

// rootOf computes the root by the definition of RFC 6962, from the bytes alone.
func rootOf(bodies [][]byte) tlog.Hash {
	if len(bodies) == 1 {
		return sha256.Sum256(append([]byte{0}, bodies[0]...))
	}
	k := 1
	for k*2 < len(bodies) {
		k *= 2
	}
	left, right := rootOf(bodies[:k]), rootOf(bodies[k:])
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

func (r *room) count(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	check(t, r.super.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}

// intact checks that everything appended is sealed, and that the newest checkpoint on the shelf is over exactly that.
func (r *room) intact(t *testing.T) {
	t.Helper()
	bodies := r.bodies(t)
	if events := r.count(t, `SELECT COUNT(*) FROM audit_event`); events != len(bodies) {
		t.Errorf("%d of %d events are sealed", len(bodies), events)
	}
	if n := r.count(t, `SELECT COUNT(*) FROM audit_pending`); n != 0 {
		t.Errorf("%d events wait", n)
	}
	if c := r.newest(t); c.Size != int64(len(bodies)) || c.Root != rootOf(bodies) {
		t.Errorf("the checkpoint is over %d events, and there are %d", c.Size, len(bodies))
	}
}

func TestEventsOfManyWritersAreSealedWithoutGapsAndEachOnce(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() { r.append(t, 100) })
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		_, err := r.signer.Seal(ctx)
		check(t, err)
	}
	r.seal(t)
	r.intact(t)
	// 800, the migration, and the one that names the signing key.
	if n := r.count(t, `SELECT COUNT(*) FROM audit_leaf`); n != 802 {
		t.Errorf("%d leaves", n)
	}
	if n := r.count(t, `SELECT COUNT(*) FROM audit_checkpoint`); n < 2 {
		t.Errorf("%d checkpoints: the batches came to one", n)
	}
}

func TestWhoeverAppendsQueuesForSealingAndCannotUnqueue(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.append(t, 1)
	for _, statement := range []string{"DELETE FROM audit_pending", "INSERT INTO audit_pending SELECT id FROM audit_event", "INSERT INTO audit_epoch VALUES (2, gen_random_uuid(), now())",
		"INSERT INTO audit_leaf SELECT 0, id, sha256(body) FROM audit_event"} {
		if _, err := r.writer.Exec(ctx, statement); err == nil {
			t.Errorf("the writer could: %s", statement)
		}
	}
	r.seal(t)
	for _, table := range []string{"audit_leaf", "audit_node", "audit_checkpoint", "audit_signing_keys"} {
		for _, statement := range []string{"DELETE FROM " + table, "TRUNCATE " + table + " CASCADE"} {
			if _, err := r.sealer.Exec(ctx, statement); err == nil {
				t.Errorf("the signer could: %s", statement)
			}
			if _, err := r.super.Exec(ctx, statement); err == nil {
				t.Errorf("the triggers let a superuser: %s", statement)
			}
		}
	}
	check(t, r.writer.CheckWriter(ctx))
	check(t, r.sealer.CheckSigner(ctx))
	if r.sealer.CheckWriter(ctx) == nil || r.writer.CheckSigner(ctx) == nil || r.super.CheckSigner(ctx) == nil {
		t.Error("a role passes for another")
	}
	r.intact(t)
}

// A database that went back is not signed, whoever remembers: the process, or after a restart the sink alone.
func TestADatabaseThatWentBackIsNotSignedUntilTheLossIsAccepted(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.append(t, 5)
	r.seal(t)
	dump, err := cluster.Dump(ctx, r.database.Name)
	check(t, err)
	r.append(t, 7)
	r.seal(t)
	lost := r.newest(t)

	check(t, cluster.Restore(ctx, r.database, dump))
	r.append(t, 20) // longer than what was lost: the length alone would not tell
	_, err = r.signer.Seal(ctx)
	if !errors.Is(err, signer.ErrWentBack) {
		t.Fatalf("the process that signed the lost part says %v", err)
	}
	r.signer = r.fresh(t)
	_, err = r.signer.Seal(ctx)
	if !errors.Is(err, signer.ErrWentBack) {
		t.Fatalf("a new process says %v", err)
	}
	if lost, err := r.signer.Lost(ctx); err != nil || !lost {
		t.Errorf("there is no loss to accept: %v", err)
	}
	if status := r.signer.Status(); !status.Stopped || status.Problem == nil {
		t.Errorf("the status is %+v", status)
	}
	if got := r.newest(t); got != lost {
		t.Errorf("something was published: %v", got)
	}
	r.append(t, 1) // events go on
	if n := r.count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.sealing_stopped'`); n == 0 {
		t.Error("the log does not say that sealing stopped")
	}

	loss, err := r.signer.AcceptLoss(ctx, "the disk broke", keyheraldtest.Admin())
	check(t, err)
	if loss.Epoch != 2 || loss.Surviving != 7 || loss.Published != lost {
		t.Errorf("the loss is %+v", loss)
	}
	r.seal(t)
	r.seal(t) // the event that sealing goes on
	r.intact(t)
	if c := r.newest(t); c.Epoch != 2 {
		t.Errorf("the new checkpoint is %v", c)
	}
	if n := r.count(t, `SELECT COUNT(*) FROM audit_leaf JOIN audit_log ON id = event_id WHERE leaf_index = 7 AND action = 'audit.loss_accepted'
		AND detail->>'remembered_size' = $1 AND detail->>'surviving_size' = '7'`, fmt.Sprint(lost.Size)); n != 1 {
		t.Error("the first leaf of the epoch does not name the gap")
	}
	if _, err := r.signer.AcceptLoss(ctx, "again", keyheraldtest.Admin()); !errors.Is(err, signer.ErrNothingLost) {
		t.Errorf("a loss is accepted where nothing is lost: %v", err)
	}
	if _, err := r.signer.AcceptLoss(ctx, " ", keyheraldtest.Admin()); !errors.Is(err, audit.ErrNoReason) {
		t.Errorf("a loss is accepted without a reason: %v", err)
	}
	for _, why := range []string{"nothing_lost", "no_reason"} {
		if n := r.count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.loss_accepted' AND outcome = 'refused' AND detail->>'refusal' = $1`, why); n != 1 {
			t.Errorf("%d events say that it was refused: %s", n, why)
		}
	}
	if lost, err := r.signer.Lost(ctx); err != nil || lost {
		t.Errorf("there is a loss to accept: %v, %v", lost, err)
	}
	// Put back once more, before the loss was accepted: that is another loss.
	check(t, cluster.Restore(ctx, r.database, dump))
	r.signer = r.fresh(t)
	if _, err := r.signer.Seal(ctx); !errors.Is(err, signer.ErrWentBack) {
		t.Errorf("a database of the epoch before is signed: %v", err)
	}
}

func TestALogThatWasWrittenAnewIsNotSigned(t *testing.T) {
	t.Parallel()
	for name, tamper := range map[string]struct {
		statements []string
		want       error
	}{
		"a leaf and all nodes over it, with the checkpoint": {[]string{"DELETE FROM audit_checkpoint", "DELETE FROM audit_node", "DELETE FROM audit_leaf",
			"INSERT INTO audit_pending SELECT id FROM audit_event", "UPDATE audit_event SET body = body || ' '"}, signer.ErrWentBack},
		"a node at the edge of the tree":      {[]string{"UPDATE audit_node SET hash = sha256(hash) WHERE level = 1 AND n = 2"}, signer.ErrDiverged},
		"a node that is gone":                 {[]string{"DELETE FROM audit_node WHERE level = 2"}, postgres.ErrTreeDamaged},
		"the last leaves, with what is above": {[]string{"DELETE FROM audit_leaf WHERE leaf_index > 3", "DELETE FROM audit_node WHERE (n + 1) * (1 << level) > 4"}, signer.ErrWentBack},
		"the newest checkpoint":               {[]string{"UPDATE audit_checkpoint SET root_hash = sha256(root_hash)"}, postgres.ErrTreeDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			ctx := t.Context()
			r.append(t, 5)
			r.seal(t)
			check(t, r.super.Txn(ctx, func(ctx context.Context) error {
				for _, table := range []string{"audit_event", "audit_leaf", "audit_node", "audit_checkpoint"} {
					if _, err := r.super.Exec(ctx, "ALTER TABLE "+table+" DISABLE TRIGGER ALL"); err != nil {
						return err
					}
				}
				for _, statement := range tamper.statements {
					if _, err := r.super.Exec(ctx, statement); err != nil {
						return fmt.Errorf("%s: %w", statement, err)
					}
				}
				_, err := r.super.Exec(ctx, "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER enqueue")
				return err
			}))
			r.append(t, 1)
			r.signer = r.fresh(t)
			if _, err := r.signer.Seal(ctx); !errors.Is(err, tamper.want) || !signer.Stops(err) {
				t.Errorf("it is %v", err)
			}
		})
	}
}

func TestAnEventThatIsDeletedBeforeItIsSealedIsMissed(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.append(t, 2)
	for _, statement := range []string{"ALTER TABLE audit_event DISABLE TRIGGER ALL", "ALTER TABLE audit_detail DISABLE TRIGGER ALL",
		"DELETE FROM audit_detail WHERE event_id = (SELECT MIN(id::text)::uuid FROM audit_event)", "DELETE FROM audit_event WHERE id = (SELECT MIN(id::text)::uuid FROM audit_event)",
		"ALTER TABLE audit_event ENABLE ALWAYS TRIGGER enqueue"} {
		_, err := r.super.Exec(ctx, statement)
		check(t, err)
	}
	r.seal(t)
	r.seal(t)
	r.intact(t)
	if n := r.count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.event_missing'`); n != 1 {
		t.Errorf("%d events say that one is missing", n)
	}
}

func TestAnEventThatWasKeptFromTheQueueIsSealedAllTheSame(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := r.super.Exec(ctx, "ALTER TABLE audit_event DISABLE TRIGGER enqueue")
	check(t, err)
	r.append(t, 3)
	var running sync.WaitGroup
	running.Go(func() { r.signer.Run(ctx) })
	check(t, keyheraldtest.Until(ctx, 20*time.Second, func() error {
		if n := r.count(t, `SELECT COUNT(*) FROM audit_event e JOIN audit_leaf l ON l.event_id = e.id`); n < 3 {
			return fmt.Errorf("%d events are sealed", n)
		}
		return nil
	}))
	cancel()
	running.Wait()
}

func TestNothingIsSignedWhileNoSinkSaysWhatWasPublished(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.append(t, 1)
	r.shelf.fail(errors.New("the store does not answer"))
	if _, err := r.signer.Seal(t.Context()); err == nil || signer.Stops(err) {
		t.Errorf("it is %v", err)
	}
	if n := r.count(t, `SELECT COUNT(*) FROM audit_checkpoint`); n != 0 {
		t.Errorf("%d checkpoints", n)
	}
	r.shelf.fail(nil)
	r.seal(t)
	r.intact(t)
	if r.signer.Status().Problem != nil {
		t.Error("the problem stays")
	}
}

func TestACheckpointThatCouldNotBePublishedIsPublishedLater(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.append(t, 1)
	// The database takes it, and the process ends before the sink has it.
	deaf := &shelf{}
	first, err := signer.New(signer.Config{DB: r.sealer, Keys: r.keys, Sinks: []signer.Sink{deaf}, Log: zerolog.Nop()})
	check(t, err)
	_, err = first.Seal(t.Context())
	check(t, err)
	r.seal(t)
	r.intact(t)
}

func TestAChangeOfTheSigningKeyIsAnEventThatBothKeysSign(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.append(t, 3)
	r.seal(t)
	old := r.keys
	both := newKeys(t, "new.key")
	both.Signers, both.Public = append(both.Signers, old.Signers...), append(both.Public, old.Public...)
	both.Verifiers = either{both.Verifiers, old.Verifiers}
	r.keys = both
	r.signer = r.fresh(t)
	r.append(t, 1)
	r.seal(t)
	r.intact(t)
	note, err := r.shelf.Newest(ctx)
	check(t, err)
	if _, err := checkpoint.Open(logName, note, old.Verifiers); err != nil {
		t.Errorf("the former key does not sign the change: %v", err)
	}
	if n := r.count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.signing_keys_changed'`); n != 2 {
		t.Errorf("%d events tell of signing keys", n)
	}
}

// either knows the keys of both.
type either [2]note.Verifiers

func (e either) Verifier(name string, hash uint32) (note.Verifier, error) {
	if v, err := e[0].Verifier(name, hash); err == nil {
		return v, nil
	}
	return e[1].Verifier(name, hash)
}

func TestTwoReplicasDoNotSealTheSameEvents(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx, cancel := context.WithCancel(t.Context())
	var replicas sync.WaitGroup
	signers := []*signer.Signer{r.fresh(t), r.fresh(t)}
	for _, s := range signers {
		replicas.Go(func() { s.Run(ctx) })
	}
	r.append(t, 50)
	check(t, keyheraldtest.Until(ctx, 20*time.Second, func() error {
		if n := r.count(t, `SELECT COUNT(*) FROM audit_pending`); n > 0 {
			return fmt.Errorf("%d events wait", n)
		}
		return nil
	}))
	if signers[0].Status().Leading == signers[1].Status().Leading {
		t.Error("not exactly one of them leads")
	}
	cancel()
	replicas.Wait()
	r.seal(t)
	r.intact(t)
}
