package signer_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
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
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
	"github.com/keyherald/keyherald/postgres"
)

var cluster *keyheraldtest.Postgres

func TestMain(m *testing.M) {
	os.Exit(keyheraldtest.RunWithPostgres(&cluster, m.Run))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// room is a log with what its tests look at.
type room struct{ *sealedlog.Log }

func newRoom(t *testing.T) room {
	t.Helper()
	return room{sealedlog.New(t, cluster)}
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

// intact checks that everything appended is sealed, and that the newest checkpoint on the shelf is over exactly that.
func (r room) intact(t *testing.T) {
	t.Helper()
	bodies := r.Bodies(t)
	if events := r.Count(t, `SELECT COUNT(*) FROM audit_event`); events != len(bodies) {
		t.Errorf("%d of %d events are sealed", len(bodies), events)
	}
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_pending`); n != 0 {
		t.Errorf("%d events wait", n)
	}
	if c := r.Newest(t); c.Size != int64(len(bodies)) || c.Root != rootOf(bodies) {
		t.Errorf("the checkpoint is over %d events, and there are %d", c.Size, len(bodies))
	}
}

func TestEventsOfManyWritersAreSealedWithoutGapsAndEachOnce(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() { r.Append(t, 100) })
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		_, err := r.Signer.Seal(ctx)
		check(t, err)
	}
	r.Seal(t)
	r.intact(t)
	// 800 and the one that names the signing key.
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_leaf`); n != 801 {
		t.Errorf("%d leaves", n)
	}
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_checkpoint`); n < 2 {
		t.Errorf("%d checkpoints: the batches came to one", n)
	}
}

func TestWhoeverAppendsQueuesForSealingAndCannotUnqueue(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.Append(t, 1)
	for _, statement := range []string{"DELETE FROM audit_pending", "INSERT INTO audit_pending SELECT id FROM audit_event", "INSERT INTO audit_epoch VALUES (2, gen_random_uuid(), now())",
		"INSERT INTO audit_leaf SELECT 0, id, sha256(body) FROM audit_event"} {
		if _, err := r.Writer.Exec(ctx, statement); err == nil {
			t.Errorf("the writer could: %s", statement)
		}
	}
	r.Seal(t)
	for _, table := range []string{"audit_leaf", "audit_node", "audit_checkpoint", "audit_signing_keys"} {
		for _, statement := range []string{"DELETE FROM " + table, "TRUNCATE " + table + " CASCADE"} {
			if _, err := r.Sealer.Exec(ctx, statement); err == nil {
				t.Errorf("the signer could: %s", statement)
			}
			if _, err := r.Super.Exec(ctx, statement); err == nil {
				t.Errorf("the triggers let a superuser: %s", statement)
			}
		}
	}
	check(t, r.Writer.CheckWriter(ctx))
	check(t, r.Sealer.CheckSigner(ctx))
	if r.Sealer.CheckWriter(ctx) == nil || r.Writer.CheckSigner(ctx) == nil || r.Super.CheckSigner(ctx) == nil {
		t.Error("a role passes for another")
	}
	r.intact(t)
}

// A database that went back is not signed, whoever remembers: the process, or after a restart the sink alone.
func TestADatabaseThatWentBackIsNotSignedUntilTheLossIsAccepted(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.Append(t, 5)
	r.Seal(t)
	dump, err := cluster.Dump(ctx, r.Database.Name)
	check(t, err)
	r.Append(t, 7)
	r.Seal(t)
	lost := r.Newest(t)

	check(t, cluster.Restore(ctx, r.Database, dump))
	r.Append(t, 20) // longer than what was lost: the length alone would not tell
	_, err = r.Signer.Seal(ctx)
	if !errors.Is(err, signer.ErrWentBack) {
		t.Fatalf("the process that signed the lost part says %v", err)
	}
	r.Signer = r.NewSigner(t)
	_, err = r.Signer.Seal(ctx)
	if !errors.Is(err, signer.ErrWentBack) {
		t.Fatalf("a new process says %v", err)
	}
	if lost, err := r.Signer.Lost(ctx); err != nil || !lost {
		t.Errorf("there is no loss to accept: %v", err)
	}
	if status := r.Signer.Status(); !status.Stopped || status.Problem == nil {
		t.Errorf("the status is %+v", status)
	}
	if got := r.Newest(t); got != lost {
		t.Errorf("something was published: %v", got)
	}
	r.Append(t, 1) // events go on
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.sealing_stopped'`); n == 0 {
		t.Error("the log does not say that sealing stopped")
	}

	if seen, err := r.Signer.Inspect(ctx); err != nil || seen.Altered == "" {
		t.Errorf("of a log that went back it says %+v, %v", seen, err)
	}
	loss, err := r.Signer.AcceptLoss(ctx, "the disk broke", keyheraldtest.Admin())
	check(t, err)
	if seen, err := r.Signer.Inspect(ctx); err != nil || seen.Altered != "" {
		t.Errorf("of a loss that was accepted a moment ago it says %+v, %v", seen, err)
	}
	if loss.Epoch != 2 || loss.Surviving != 6 || loss.Published != lost {
		t.Errorf("the loss is %+v", loss)
	}
	r.Seal(t)
	r.Seal(t) // the event that sealing goes on
	r.intact(t)
	if seen, err := r.Signer.Inspect(ctx); err != nil || seen.Altered != "" {
		t.Errorf("of a loss that is sealed it says %+v, %v", seen, err)
	}
	if c := r.Newest(t); c.Epoch != 2 {
		t.Errorf("the new checkpoint is %v", c)
	}
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_leaf JOIN audit_log ON id = event_id WHERE leaf_index = 6 AND action = 'audit.loss_accepted'
		AND detail->>'remembered_size' = $1 AND detail->>'surviving_size' = '6'`, fmt.Sprint(lost.Size)); n != 1 {
		t.Error("the first leaf of the epoch does not name the gap")
	}
	if _, err := r.Signer.AcceptLoss(ctx, "again", keyheraldtest.Admin()); !errors.Is(err, signer.ErrNothingLost) {
		t.Errorf("a loss is accepted where nothing is lost: %v", err)
	}
	if _, err := r.Signer.AcceptLoss(ctx, " ", keyheraldtest.Admin()); !errors.Is(err, audit.ErrNoReason) {
		t.Errorf("a loss is accepted without a reason: %v", err)
	}
	for _, why := range []string{"nothing_lost", "no_reason"} {
		if n := r.Count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.loss_accepted' AND outcome = 'refused' AND detail->>'refusal' = $1`, why); n != 1 {
			t.Errorf("%d events say that it was refused: %s", n, why)
		}
	}
	if lost, err := r.Signer.Lost(ctx); err != nil || lost {
		t.Errorf("there is a loss to accept: %v, %v", lost, err)
	}
	// Put back once more, before the loss was accepted: that is another loss.
	check(t, cluster.Restore(ctx, r.Database, dump))
	r.Signer = r.NewSigner(t)
	if _, err := r.Signer.Seal(ctx); !errors.Is(err, signer.ErrWentBack) {
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
		"every checkpoint is gone":            {[]string{"DELETE FROM audit_checkpoint"}, postgres.ErrTreeDamaged},
		"the newest checkpoint's signature":   {[]string{"UPDATE audit_checkpoint SET note = replace(note, chr(10) || chr(8212) || ' ', chr(10) || chr(8212) || ' not-')"}, postgres.ErrTreeDamaged},
		"the newest checkpoint":               {[]string{"UPDATE audit_checkpoint SET root_hash = sha256(root_hash)"}, postgres.ErrTreeDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			ctx := t.Context()
			r.Append(t, 5)
			r.Seal(t)
			check(t, r.Super.Txn(ctx, func(ctx context.Context) error {
				for _, table := range []string{"audit_event", "audit_leaf", "audit_node", "audit_checkpoint"} {
					if _, err := r.Super.Exec(ctx, "ALTER TABLE "+table+" DISABLE TRIGGER ALL"); err != nil {
						return err
					}
				}
				for _, statement := range tamper.statements {
					if _, err := r.Super.Exec(ctx, statement); err != nil {
						return fmt.Errorf("%s: %w", statement, err)
					}
				}
				_, err := r.Super.Exec(ctx, "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER enqueue")
				return err
			}))
			r.Append(t, 1)
			r.Signer = r.NewSigner(t)
			if _, err := r.Signer.Seal(ctx); !errors.Is(err, tamper.want) || !signer.Stops(err) {
				t.Errorf("it is %v", err)
			}
			lost, err := r.Signer.Lost(ctx)
			check(t, err)
			_, err = r.Signer.AcceptLoss(ctx, "it was found so", keyheraldtest.Admin())
			if name == "a node that is gone" {
				// There is no tree to go on from.
				if !lost || !errors.Is(err, postgres.ErrTreeDamaged) {
					t.Errorf("lost is %t, and accepting it ends with %v", lost, err)
				}
				return
			}
			check(t, err)
			if _, err := r.Signer.Seal(ctx); err != nil || !lost {
				t.Errorf("lost is %t, and after it was accepted sealing ends with %v", lost, err)
			}
		})
	}
}

func TestAnEventThatIsDeletedBeforeItIsSealedIsMissed(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.Append(t, 2)
	for _, statement := range []string{"ALTER TABLE audit_event DISABLE TRIGGER ALL", "ALTER TABLE audit_detail DISABLE TRIGGER ALL",
		"DELETE FROM audit_detail WHERE event_id = (SELECT MIN(id::text)::uuid FROM audit_event)", "DELETE FROM audit_event WHERE id = (SELECT MIN(id::text)::uuid FROM audit_event)",
		"ALTER TABLE audit_event ENABLE ALWAYS TRIGGER enqueue"} {
		_, err := r.Super.Exec(ctx, statement)
		check(t, err)
	}
	r.Seal(t)
	r.Seal(t)
	r.intact(t)
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.event_missing'`); n != 1 {
		t.Errorf("%d events say that one is missing", n)
	}
}

func TestAnEventThatWasKeptFromTheQueueIsSealedAllTheSame(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := r.Super.Exec(ctx, "ALTER TABLE audit_event DISABLE TRIGGER enqueue")
	check(t, err)
	r.Append(t, 3)
	var running sync.WaitGroup
	running.Go(func() { r.Signer.Run(ctx) })
	check(t, keyheraldtest.Until(ctx, time.Minute, func() error {
		if n := r.Count(t, `SELECT COUNT(*) FROM audit_event e JOIN audit_leaf l ON l.event_id = e.id`); n < 3 {
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
	r.Append(t, 1)
	r.Shelf.Fail(errors.New("the store does not answer"))
	if _, err := r.Signer.Seal(t.Context()); err == nil || signer.Stops(err) {
		t.Errorf("it is %v", err)
	}
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_checkpoint`); n != 0 {
		t.Errorf("%d checkpoints", n)
	}
	r.Shelf.Fail(nil)
	r.Seal(t)
	r.intact(t)
	if r.Signer.Status().Problem != nil {
		t.Error("the problem stays")
	}
}

func TestACheckpointThatCouldNotBePublishedIsPublishedLater(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.Append(t, 1)
	// The database takes it, and the process ends before the sink has it.
	deaf := &sealedlog.Shelf{}
	first, err := signer.New(signer.Config{DB: r.Sealer, Keys: r.Keys, Sinks: []signer.Sink{deaf}, Log: zerolog.Nop()})
	check(t, err)
	_, err = first.Seal(t.Context())
	check(t, err)
	r.Seal(t)
	r.intact(t)
}

func TestAChangeOfTheSigningKeyIsAnEventThatBothKeysSign(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	r.Append(t, 3)
	r.Seal(t)
	old := r.Keys
	_, both := sealedlog.NewKey(t)
	both.Signers, both.Public = append(both.Signers, old.Signers...), append(both.Public, old.Public...)
	both.Verifiers = either{both.Verifiers, old.Verifiers}
	r.Keys = both
	r.Signer = r.NewSigner(t)
	r.Append(t, 1)
	r.Seal(t)
	r.intact(t)
	note, err := r.Shelf.Newest(ctx)
	check(t, err)
	if _, err := checkpoint.Open(sealedlog.Name, note, old.Verifiers); err != nil {
		t.Errorf("the former key does not sign the change: %v", err)
	}
	if n := r.Count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'audit.signing_keys_changed'`); n != 2 {
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
	signers := []*signer.Signer{r.NewSigner(t), r.NewSigner(t)}
	for _, s := range signers {
		replicas.Go(func() { s.Run(ctx) })
	}
	r.Append(t, 50)
	check(t, keyheraldtest.Until(ctx, time.Minute, func() error {
		if n := r.Count(t, `SELECT COUNT(*) FROM audit_pending`); n > 0 {
			return fmt.Errorf("%d events wait", n)
		}
		return nil
	}))
	if signers[0].Status().Leading == signers[1].Status().Leading {
		t.Error("not exactly one of them leads")
	}
	cancel()
	replicas.Wait()
	r.Seal(t)
	r.intact(t)
}
