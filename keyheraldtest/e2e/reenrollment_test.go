package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// reset gives Alice another identity, and the device's account its recovery key.
func (w *world) reset(t *testing.T) {
	t.Helper()
	var err error
	w.recoveryKey, err = w.stock.Bootstrap(t.Context(), password)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(w.dir, "recovery"), []byte(w.recoveryKey), 0o600))
}

// askAgain has the device verify itself with the new identity and ask, and wants it to wait.
func (w *world) askAgain(t *testing.T, account *device.Account) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := account.Verify(ctx, nil)
	check(t, err)
	waits, err := account.EnrollAgain(ctx)
	check(t, err)
	if !waits {
		t.Fatal("the device does not wait for an admin")
	}
}

func (w *world) waiting(t *testing.T) []postgres.Reenrollment {
	t.Helper()
	queue, err := w.db.Reenrollments(t.Context(), postgres.ReenrollmentFilter{Waiting: true})
	check(t, err)
	return queue
}

func TestADeviceAsksAgainAfterAnIdentityResetAndIsTrustedOnlyWhenReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	account := w.open(t, "managed")
	w.enroll(t, account)
	before, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	w.reset(t)
	w.askAgain(t, account)
	w.askAgain(t, account) // the same is asked once
	queue := w.waiting(t)
	if len(queue) != 1 || queue[0].OldMasterKey != before[0].MasterKey || queue[0].NewMasterKey == before[0].MasterKey {
		t.Fatalf("the queue has %+v", queue)
	}
	run(t, account.Run)
	w.notify(t, "n1", "1")
	wait(t, "the rotation to wait", func() bool { return w.onlyRotation(t).Facts.State == rotation.WaitingForEnrollment })
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	if devices[0].State != postgres.NeedsEnrollment || devices[0].MasterKey != before[0].MasterKey {
		t.Errorf("without a release the device is %s", devices[0].State)
	}
	check(t, w.engine.ReleaseReenrollment(ctx, queue[0].ID, keyheraldtest.Admin()))
	// The device is told while it runs, and the rotation goes on by itself.
	w.waitDone(t)
	if enrolled, err := account.Enrolled(ctx); err != nil || !enrolled {
		t.Errorf("the device does not know that it is enrolled: %v", err)
	}
	if err := w.engine.ReleaseReenrollment(ctx, queue[0].ID, keyheraldtest.Admin()); err == nil {
		t.Error("it was released twice")
	}
	counts := countedByOutcome(t, w.db)
	if counts["reenrollment.queued accepted"] != 1 || counts["reenrollment.released accepted"] != 1 || counts["reenrollment.released refused"] != 1 || counts["device.enrolled accepted"] != 2 || counts["device.needs_enrollment refused"] != 1 {
		t.Errorf("the audit log has %v", counts)
	}
}

// What is released is the identity that was asked with: one that came after it was looked at is none of it.
func TestAReleaseIsForTheIdentityThatWasAskedWithAndNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.open(t, "managed")
	w.enroll(t, account)
	w.reset(t)
	w.askAgain(t, account)
	queue := w.waiting(t)
	w.reset(t)
	check(t, w.engine.ReleaseReenrollment(ctx, queue[0].ID, keyheraldtest.Admin()))
	wait(t, "the bot to find another identity", func() bool { return w.logHas(t, "enrollment.refused", string(protocol.RefusedMasterKeyMismatch)) })
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	if devices[0].State != postgres.NeedsEnrollment {
		t.Errorf("the device is %s", devices[0].State)
	}
}

func TestADeviceThatIsRejectedNeedsACode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.open(t, "managed")
	w.enroll(t, account)
	w.reset(t)
	w.askAgain(t, account)
	check(t, w.engine.RejectReenrollment(ctx, w.waiting(t)[0].ID, "she did not reset it", keyheraldtest.Admin()))
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := account.EnrollAgain(limited); err == nil {
		t.Error("it may ask on and on")
	}
	if !w.logHas(t, "reenrollment.rejected", "did not reset") || len(w.waiting(t)) != 0 {
		t.Error("the audit log does not tell why, or it still waits")
	}
	w.enroll(t, account)
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	if devices[0].State != postgres.Enrolled {
		t.Errorf("with a code it is %s", devices[0].State)
	}
}

// A running device asks by itself as soon as the user's new identity has signed it, as a client does after an emoji
// verification.
func TestARunningDeviceAsksByItselfOnceTheNewIdentityHasSignedIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.manage(t, "managed")
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	w.reset(t)
	own, err := w.stock.OwnDevices(ctx)
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(ctx, own[devices[0].DeviceID]))
	wait(t, "the device to ask", func() bool { return len(w.waiting(t)) == 1 })
	check(t, w.engine.ReleaseReenrollment(ctx, w.waiting(t)[0].ID, keyheraldtest.Admin()))
	wait(t, "the device to be enrolled", func() bool {
		enrolled, err := account.Enrolled(ctx)
		check(t, err)
		return enrolled
	})
}
