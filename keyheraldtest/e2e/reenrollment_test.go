package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"maunium.net/go/mautrix/id"

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
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := account.Verify(ctx, nil)
	check(t, err)
	waits, err := account.EnrollAgain(ctx)
	check(t, err)
	if !waits {
		t.Fatal("the device does not wait for an admin")
	}
}

// thatWaits is an enrolled device that asked again after its user's identity was reset.
func (w *world) thatWaits(t *testing.T) *device.Account {
	t.Helper()
	account := w.open(t, "managed")
	w.enroll(t, account)
	w.reset(t)
	w.askAgain(t, account)
	return account
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
	waits := func() int {
		t.Helper()
		all, err := w.db.Counts(ctx)
		check(t, err)
		return all.Reenrollments
	}
	if n := waits(); n != 1 {
		t.Errorf("%d are counted to wait", n)
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
	if n := waits(); n != 0 {
		t.Errorf("once one was released %d are counted to wait", n)
	}
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
	w.thatWaits(t)
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
	account := w.thatWaits(t)
	check(t, w.engine.RejectReenrollment(ctx, w.waiting(t)[0].ID, "she did not reset it", keyheraldtest.Admin()))
	limited, cancel := context.WithTimeout(ctx, patience)
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

// before is the homeserver behind look, which is called with each question about a user's keys before it is asked.
func before(t *testing.T, homeserver string, user id.UserID, look func(ctx context.Context)) *httptest.Server {
	t.Helper()
	onward := forward(t, homeserver)
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		if strings.HasSuffix(req.URL.Path, "/keys/query") && bytes.Contains(body, []byte(user)) {
			look(req.Context())
		}
		onward.ServeHTTP(rw, req)
	}))
	t.Cleanup(proxy.Close)
	return proxy
}

// meeting is the homeserver, where two looks at a user's keys are answered together.
func meeting(t *testing.T, homeserver string, user id.UserID) *httptest.Server {
	t.Helper()
	var looks atomic.Int32
	both := make(chan struct{})
	return before(t, homeserver, user, func(ctx context.Context) {
		if looks.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
		case <-ctx.Done():
		}
	})
}

// A device that begins makes two statuses at once; both find the new identity.
func TestADeviceThatFindsANewIdentityTwiceAtOnceAsksOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	first := w.open(t, "managed")
	w.enroll(t, first)
	check(t, first.Close())
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	w.reset(t)
	own, err := w.stock.OwnDevices(ctx)
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(ctx, own[devices[0].DeviceID]))
	proxy := meeting(t, w.hs.URL, w.alice)
	account := w.open(t, "managed", func(c *device.AccountConfig) { c.Homeserver = proxy.URL })
	run(t, account.Run)
	store := w.look(t, "managed")
	wait(t, "the device to be answered", func() bool {
		var answered bool
		check(t, store.QueryRowContext(ctx, `SELECT COUNT(*) FILTER (WHERE state = 'pending') = 0 AND COUNT(*) > 1 FROM todevice_outbox WHERE key LIKE 'enroll/%'`).Scan(&answered))
		return answered && len(w.waiting(t)) == 1
	})
	var requests int
	check(t, store.QueryRowContext(ctx, `SELECT COUNT(*) FROM todevice_outbox WHERE key LIKE 'enroll/%'`).Scan(&requests))
	// The first enrollment is one.
	if counts := countedByOutcome(t, w.db); requests != 2 || counts["reenrollment.queued accepted"] != 1 || counts["enrollment.refused refused"] != 0 {
		t.Errorf("it sent %d requests, and the log has %v", requests, counts)
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
