package e2e

import (
	"errors"
	"testing"
	"time"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

func TestACancelledRotationStopsOnItsDeviceAndARetryGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.manage(t, "managed")
	// The KMS has no key yet, so the device keeps looking.
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionKMSForbidden)
	key := w.onlyRotation(t).ID
	check(t, w.engine.Cancel(ctx, key, keyheraldtest.Admin()))
	wait(t, "the device to be told", func() bool { return w.logHas(t, "rotation.cancel_queued", "attempt") })
	if err := w.engine.Cancel(ctx, key, keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("cancelling again gave %v", err)
	}
	wait(t, "the device to stop", func() bool { return w.inStore(t, "managed", `SELECT COUNT(*) FROM journal WHERE NOT ended`) == 0 })
	// Now there is a key, and a device that did not stop would use it.
	fresh, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, "1", fresh, fresh.PublicKey())
	before := w.status(t).At.Time()
	wait(t, "some statuses", func() bool { return w.status(t).At.Time().Sub(before) > 5*time.Second })
	if _, err := w.stock.GetKeyBackupLatestVersion(ctx); err == nil {
		t.Fatal("a cancelled rotation created a key-backup version")
	}
	if state := w.onlyRotation(t).Facts.State; state != rotation.Cancelled {
		t.Errorf("the rotation is %s", state)
	}
	check(t, w.engine.Retry(ctx, key, keyheraldtest.Admin()))
	w.waitDone(t)
	if err := w.engine.Retry(ctx, key, keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("retrying what is done gave %v", err)
	}
	for _, action := range []string{"rotation.cancelled", "rotation.retried", "rotation.done"} {
		if !w.logHas(t, action, "") {
			t.Errorf("the audit log has no %s", action)
		}
	}
}

func TestWhileFrozenNothingIsTriggeredAndNothingIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	w.manage(t, "managed")
	check(t, w.engine.Freeze(ctx, keyheraldtest.Admin()))
	if err := w.engine.Freeze(ctx, keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("freezing again gave %v", err)
	}
	w.notify(t, "n1", "1")
	before := w.status(t).At.Time()
	wait(t, "some statuses, each of which would wake the bot", func() bool { return w.status(t).At.Time().Sub(before) > 2*time.Second })
	if state := w.onlyRotation(t).Facts.State; state != rotation.Received || w.logHas(t, "trigger.queued", "") {
		t.Fatalf("the rotation is %s", state)
	}
	check(t, w.engine.Thaw(ctx, keyheraldtest.Admin()))
	w.waitDone(t)
	for _, action := range []string{"triggers.frozen", "triggers.thawed"} {
		if !w.logHas(t, action, "") {
			t.Errorf("the audit log has no %s", action)
		}
	}
}
