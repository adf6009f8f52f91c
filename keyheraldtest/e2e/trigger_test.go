package e2e

import (
	"database/sql"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// Each trigger is a real one: the server was made to send it, the device received and rejected it.
func TestADeviceRejectsWhatIsNotForItAndNowAndDoesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.manage(t, "managed")
	rejected := func(want protocol.ErrorCode) {
		t.Helper()
		w.caused(t, want)
		if _, err := w.stock.GetKeyBackupLatestVersion(t.Context()); err == nil {
			t.Errorf("%s: a key-backup version was created", want)
		}
	}
	// The device has seen no sequence yet, so that old and new times come through to the other rules.
	w.clock.Advance(-rotation.TriggerLife - time.Hour)
	w.notify(t, "expired", "1")
	rejected(protocol.RejectedExpired)
	w.clock.Advance(rotation.TriggerLife + 2*time.Hour)
	w.notify(t, "future", "2")
	rejected(protocol.RejectedNotYetIssued)
	w.clock.Advance(-time.Hour)
	w.notify(t, "path", "3", func(n *intake.Notification) { n.Path = "keyherald/bob" })
	rejected(protocol.RejectedKMS)
	w.notify(t, "kms", "3", func(n *intake.Notification) { n.KMS = "attackers" })
	rejected(protocol.RejectedKMS)
	w.notify(t, "secret", "3", func(n *intake.Notification) { n.Secret = "m.cross_signing.master" })
	rejected(protocol.RejectedSecret)
}

func TestADeviceRejectsASequenceItHasSeenAndSaysItsMark(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	key := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	mark, err := w.db.LastSequence(ctx, w.alice)
	check(t, err)
	// As after the restore of an older database, with a clock that is a little behind.
	_, err = w.db.Exec(ctx, `UPDATE sequence_mark SET last = 1`)
	check(t, err)
	w.clock.Advance(-2 * time.Minute)
	before := w.currentVersion(t)
	w.putKey(t, "2", key, key.PublicKey())
	w.notify(t, "n2", "2")
	w.caused(t, protocol.RejectedSequence)
	if after := w.currentVersion(t); after != before {
		t.Errorf("version %s was created", after)
	}
	if last, err := w.db.LastSequence(ctx, w.alice); err != nil || last <= mark {
		t.Errorf("the server did not learn the device's mark: %d is not above %d (%v)", last, mark, err)
	}
}

// Alice's own cross-signed device is as near as a stranger gets: it may push secrets, and not give orders.
func TestATriggerFromAnyoneButThePinnedBotIsIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	w.manage(t, "managed")
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	fetched, err := w.stock.OwnDevices(ctx)
	check(t, err)
	target := fetched[devices[0].DeviceID]
	forged := protocol.Trigger{RotationID: uuid.New(), Attempt: 1, Sequence: time.Now().Add(time.Hour).UnixMicro(), UserID: w.alice, Secret: protocol.SecretMegolmBackup,
		Action: protocol.ActionPush, KMS: protocol.KMSRef{Name: "dev", Path: "keyherald/alice", Version: "1"}, IssuedAt: protocol.At(time.Now()), ExpiresAt: protocol.At(time.Now().Add(time.Hour))}
	check(t, w.stock.Machine.SendEncryptedToDevice(ctx, target, protocol.TypeTrigger, event.Content{Parsed: forged}))
	store, err := sql.Open("sqlite", "file:"+w.store("managed")+"?mode=ro&_pragma=busy_timeout(5000)")
	check(t, err)
	t.Cleanup(func() { _ = store.Close() })
	count := func(query string) (n int) {
		check(t, store.QueryRowContext(ctx, query).Scan(&n))
		return n
	}
	wait(t, "the device to put the forged trigger away", func() bool {
		return count(`SELECT COUNT(*) FROM todevice_inbox WHERE reason LIKE '%`+string(protocol.RejectedNotPinnedBot)+`%'`) == 1
	})
	if n := count(`SELECT COUNT(*) FROM journal`); n != 0 {
		t.Errorf("%d rotations were journaled", n)
	}
	if _, err := w.stock.GetKeyBackupLatestVersion(ctx); err == nil {
		t.Error("a key-backup version was created")
	}
	// The forged sequence must not have counted either: the true bot, with a lower one, is obeyed.
	w.notify(t, "n1", "1")
	w.waitDone(t)
}

func TestAnotherDeviceIsTriedWhenTheFirstDoesNotAnswerAndBothMeetWithoutHarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	silent := w.open(t, "silent")
	w.enroll(t, silent)
	// The one that is heard of last is chosen first.
	_, err := w.db.Exec(ctx, `UPDATE device SET last_seen = now() + interval '1 hour'`)
	check(t, err)
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	sent := func() int {
		attempts, err := w.db.Attempts(ctx, w.onlyRotation(t).ID)
		check(t, err)
		n := 0
		for _, a := range attempts {
			if !a.SentAt.IsZero() {
				n++
			}
		}
		return n
	}
	wait(t, "the first trigger to be sent", func() bool { return sent() == 1 })
	check(t, w.db.Notify(ctx, relay.WorkChannel, ""))
	time.Sleep(300 * time.Millisecond) // nothing signals that nothing happens
	if n := sent(); n != 1 || w.onlyRotation(t).Facts.State != rotation.Working {
		t.Fatalf("%d triggers were sent before the time was up", n)
	}
	// The trigger grows old; moving the server's clock instead would make the next one come from the device's future.
	_, err = w.db.Exec(ctx, `UPDATE attempt SET sent_at = sent_at - $1 * interval '1 second'`, rotation.AckTimeout.Seconds()+1)
	check(t, err)
	check(t, w.db.Notify(ctx, relay.WorkChannel, ""))
	wait(t, "the rotation to be done by the other device", func() bool { return w.onlyRotation(t).Facts.State == rotation.Done })
	before := w.currentVersion(t)
	run(t, silent.Run)
	wait(t, "the silent device to come to the same end", func() bool {
		attempts, err := w.db.Attempts(ctx, w.onlyRotation(t).ID)
		check(t, err)
		return attempts[0].Stage == protocol.StagePushed
	})
	if after := w.currentVersion(t); after != before || w.onlyRotation(t).Facts.State != rotation.Done {
		t.Errorf("version %s became %s, and the rotation is %s", before, after, w.onlyRotation(t).Facts.State)
	}
}
