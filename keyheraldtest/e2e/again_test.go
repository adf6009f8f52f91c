package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// pushesOf counts the messages with this key that a receiver decrypted, after it asked once more.
func pushesOf(t *testing.T, receiver *keyheraldtest.Receiver, key backupkey.Key) (n int) {
	t.Helper()
	check(t, receiver.Receive(t.Context()))
	for _, message := range receiver.Messages() {
		if strings.Contains(message.Content, key.RevealBase64()) {
			n++
		}
	}
	return n
}

func TestADeviceThatIsVerifiedAfterwardsIsPushedToAndNobodyElseAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	early, late := w.verifiedReceiver(t, "EARLY"), w.receiver(t, "LATE")
	key := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	r := w.onlyRotation(t)
	wait(t, "the first device's push", func() bool { return pushesOf(t, early, key) == 2 })
	if n := pushesOf(t, late, key); n != 0 {
		t.Fatalf("a device that nobody verified got %d pushes", n)
	}
	signing, identity, err := late.Endpoint.Keys(ctx)
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(ctx, &id.Device{UserID: w.alice, DeviceID: "LATE", SigningKey: signing, IdentityKey: identity}))
	wait(t, "the later device's push", func() bool { return pushesOf(t, late, key) == 2 })
	wait(t, "its outcome", func() bool {
		deliveries, err := w.db.Deliveries(ctx, r.ID)
		check(t, err)
		for _, d := range deliveries {
			if d.DeviceID == "LATE" {
				return d.Outcome == protocol.OutcomeSent
			}
		}
		return false
	})
	before := w.status(t).At.Time()
	wait(t, "some statuses", func() bool { return w.status(t).At.Time().Sub(before) > 3*time.Second })
	if a, b := pushesOf(t, early, key), pushesOf(t, late, key); a != 2 || b != 2 {
		t.Errorf("in the end the devices have %d and %d pushes", a, b)
	}
}

func TestEveryTargetIsPushedToOnceMoreAfterAWhileInAnotherCiphertext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	receiver := w.verifiedReceiver(t, "TARGET")
	key := w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Push.RepeatAfter = 2 * time.Second })
	w.notify(t, "n1", "1")
	w.waitDone(t)
	wait(t, "the repetition", func() bool { return pushesOf(t, receiver, key) == 4 })
	for _, times := range receiver.Decryptions() {
		if times != 1 {
			t.Errorf("a ciphertext was decrypted %d times", times)
		}
	}
	before := w.status(t).At.Time()
	wait(t, "some statuses", func() bool { return w.status(t).At.Time().Sub(before) > 5*time.Second })
	if n := pushesOf(t, receiver, key); n != 4 {
		t.Errorf("it was repeated again: %d", n)
	}
}

func TestATargetThatBeginsANewOlmSessionIsPushedToOnceADay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.deviceNow = w.clock.Now
	// It is noon, so that the day does not end in between.
	now := w.clock.Now()
	w.clock.Advance(now.Truncate(24 * time.Hour).Add(12 * time.Hour).Sub(now))
	receiver := w.verifiedReceiver(t, "TARGET")
	key := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	wait(t, "the push", func() bool { return pushesOf(t, receiver, key) == 2 })
	managed, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	begin := func(n int) {
		t.Helper()
		identities, err := receiver.Endpoint.Identities(ctx, w.alice)
		check(t, err)
		to := identities[w.alice].Devices[managed[0].DeviceID]
		claims, err := receiver.Endpoint.Claim(ctx, true, to)
		check(t, err)
		check(t, receiver.Endpoint.InTxn(ctx, func(ctx context.Context) error {
			return receiver.Endpoint.Queue(ctx, todevice.Outgoing{Key: fmt.Sprint("hello", n), To: to, Type: event.ToDeviceDummy.Type, Content: struct{}{}}, claims)
		}))
		_, err = receiver.Endpoint.Flush(ctx, nil)
		check(t, err)
	}
	begin(1)
	wait(t, "the push after a new session", func() bool { return pushesOf(t, receiver, key) == 4 })
	begin(2)
	wait(t, "the second session to be seen", func() bool {
		return w.inStore(t, "managed", `SELECT COUNT(*) FROM todevice_inbox WHERE sender = '@alice:`+keyheraldtest.ServerName+`' AND state = 'done'`) >= 2
	})
	before := w.status(t).At.Time()
	wait(t, "some statuses", func() bool { return w.status(t).At.Time().Sub(before) > 2*time.Second })
	if n := pushesOf(t, receiver, key); n != 4 {
		t.Errorf("after two sessions in a day it has %d pushes", n)
	}
}

func TestNothingIsPushedAgainOnceTheVersionIsNotOursOrToWhoIsExcluded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.deviceNow = w.clock.Now
	receiver, excluded := w.verifiedReceiver(t, "TARGET"), w.verifiedReceiver(t, "GONE")
	key := w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Push.RepeatAfter = time.Hour })
	// A managed device that was revoked is on every exclude list.
	check(t, w.db.PutDevice(ctx, w.enrolledAs(t, excluded, "GONE")))
	check(t, w.engine.Revoke(ctx, w.alice, "GONE", "", keyheraldtest.Admin()))
	w.notify(t, "n1", "1")
	w.waitDone(t)
	w.clock.Advance(2 * time.Hour)
	wait(t, "the repetition", func() bool { return pushesOf(t, receiver, key) == 4 })
	if n := pushesOf(t, excluded, key); n != 0 {
		t.Errorf("the excluded device got %d pushes", n)
	}

	second := w.newKey(t, "2")
	w.notify(t, "n2", "2")
	w.waitDone(t)
	wait(t, "the push", func() bool { return pushesOf(t, receiver, second) == 2 })
	// The user resets his key backup before the repetition is due.
	w.ownBackup(t)
	w.clock.Advance(2 * time.Hour)
	wait(t, "the round to end", func() bool {
		return w.inStore(t, "managed", `SELECT COUNT(*) FROM push_round WHERE ended = 'backup_changed'`) == 1
	})
	if n := pushesOf(t, receiver, second); n != 2 {
		t.Errorf("a key whose version is gone was pushed again: %d", n)
	}
}

func TestAnOldKeyBackupIsDeletedAfterItsGraceIfAllOfItWasCarriedOver(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	old, version := w.ownBackup(t)
	_, _, err := w.stock.WriteHistory(ctx, version, old, history)
	check(t, err)
	w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.OldBackup.Grace = 3 * time.Second })
	hold := strings.TrimSuffix(w.store("managed"), ".db") + ".hold"
	check(t, os.WriteFile(hold, nil, 0o600))
	w.notify(t, "n1", "1")
	w.waitDone(t)
	state := func() protocol.OldBackup {
		t.Helper()
		for _, o := range w.status(t).OldBackups {
			if o.Version == version.String() {
				return o
			}
		}
		return protocol.OldBackup{}
	}
	wait(t, "the old backup to be held", func() bool { return state().State == protocol.OldBackupHeld && state().CarriedOver })
	before := w.status(t).At.Time()
	wait(t, "its grace to be over", func() bool { return w.status(t).At.Time().Sub(before) > 4*time.Second })
	if _, err := w.stock.GetKeyBackupVersion(ctx, version); err != nil {
		t.Fatalf("the old backup went though it was held: %v", err)
	}
	check(t, os.Remove(hold))
	wait(t, "the old backup to be deleted", func() bool { return state().State == protocol.OldBackupDeleted })
	if _, err := w.stock.GetKeyBackupVersion(ctx, version); err == nil {
		t.Error("it is said to be deleted, and is there")
	}
	current, err := w.stock.GetKeyBackupLatestVersion(ctx)
	if err != nil || current.Count != 1 {
		t.Errorf("the current version has %v, %v", current, err)
	}
	wait(t, "the log to say so", func() bool { return w.logHas(t, "progress.reported", `"stage": "cleaned_up"`) })
	if r := w.onlyRotation(t); r.Facts.State != rotation.Done {
		t.Errorf("the rotation is %s", r.Facts.State)
	}
}

// enrolledAs is a receiver as if it were a managed device.
func (w *world) enrolledAs(t *testing.T, receiver *keyheraldtest.Receiver, deviceID id.DeviceID) postgres.Device {
	t.Helper()
	signing, identity, err := receiver.Endpoint.Keys(t.Context())
	check(t, err)
	return postgres.Device{ID: uuid.New(), UserID: w.alice, DeviceID: deviceID, IdentityKey: identity, SigningKey: signing, MasterKey: "m", EnrolledAt: time.Now()}
}
