package e2e

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// isAwaited returns when somebody's query like this one waits for a row that the transaction of txn has locked.
func (w *world) isAwaited(t *testing.T, txn context.Context, query string) error {
	t.Helper()
	var holder int
	if err := w.db.QueryRow(txn, `SELECT pg_backend_pid()`).Scan(&holder); err != nil {
		return err
	}
	return keyheraldtest.Until(t.Context(), patience, func() error {
		var waiting int
		err := w.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)) AND query LIKE $2`, holder, "%"+query+"%").Scan(&waiting)
		if err == nil && waiting == 0 {
			err = errors.New("nobody waits: " + query)
		}
		return err
	})
}

// enrolledDevice is Alice's only device.
func (w *world) enrolledDevice(t *testing.T) postgres.Device {
	t.Helper()
	devices, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	if len(devices) != 1 {
		t.Fatalf("there are %d devices", len(devices))
	}
	return devices[0]
}

// An enrollment by a code does not overtake the revocation of the same device.
func TestADeviceThatIsRevokedWhileItEnrollsWithACodeStaysRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.open(t, "managed")
	w.enroll(t, account)
	d := w.enrolledDevice(t)
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	answer := make(chan error, 1)
	check(t, w.db.Txn(ctx, func(ctx context.Context) error {
		if err := w.engine.Revoke(ctx, w.alice, d.DeviceID, "lost", keyheraldtest.Admin()); err != nil {
			return err
		}
		go func() {
			limited, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			answer <- account.Enroll(limited, code)
		}()
		return w.isAwaited(t, ctx, "FROM device")
	}))
	var refused device.Refused
	if err := <-answer; !errors.As(err, &refused) || refused.Reason != protocol.RefusedIdentityKeyChanged {
		t.Errorf("it is answered %v", err)
	}
	if d := w.enrolledDevice(t); d.State != postgres.Revoked {
		t.Errorf("the device is %s", d.State)
	}
}

// The batch that triggers has locked the rotations, and refers to the devices at its end.
func TestADeviceIsRevokedWhileItsUserIsTriggered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.manage(t, "managed")
	d := w.enrolledDevice(t)
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionKMSForbidden)
	r := w.onlyRotation(t)
	done := make(chan error, 1)
	check(t, w.db.Txn(ctx, func(ctx context.Context) error {
		if _, _, err := w.db.LockRotation(ctx, r.ID); err != nil {
			return err
		}
		go func() { done <- w.engine.Revoke(t.Context(), w.alice, d.DeviceID, "lost", keyheraldtest.Admin()) }()
		if err := w.isAwaited(t, ctx, "FROM rotation"); err != nil {
			return err
		}
		return w.db.InsertAttempts(ctx, []postgres.Attempt{{RotationID: r.ID, Number: 100, Device: d.ID, Sequence: time.Now().UnixMicro()}}, w.clock.Now())
	}))
	check(t, <-done)
	if d := w.enrolledDevice(t); d.State != postgres.Revoked {
		t.Errorf("the device is %s", d.State)
	}
}

// The bot looks after each trigger whether the device still is what was enrolled; what is decided meanwhile stands.
func TestADeviceThatIsRevokedWhileTheHomeserverIsAskedStaysRevoked(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	var hold atomic.Bool
	asked, release := make(chan struct{}, 100), make(chan struct{})
	proxy := before(t, w.hs.URL, id.NewUserID("alice", keyheraldtest.ServerName), func(ctx context.Context) {
		if !hold.Load() {
			return
		}
		asked <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
	})
	w.serve(t, proxy.URL)
	w.people(t)
	account := w.open(t, "managed")
	w.enroll(t, account)
	d := w.enrolledDevice(t)
	w.reset(t)
	hold.Store(true)
	w.notify(t, "n1", "1")
	select {
	case <-asked:
	case <-time.After(patience):
		t.Fatal("the bot does not look")
	}
	check(t, w.engine.Revoke(t.Context(), w.alice, d.DeviceID, "stolen", keyheraldtest.Admin()))
	hold.Store(false)
	close(release)
	wait(t, "the device to be told", func() (told bool) {
		check(t, w.db.QueryRow(t.Context(), `SELECT revocation_told_at IS NOT NULL FROM device WHERE id = $1`, d.ID).Scan(&told))
		return told
	})
	if d := w.enrolledDevice(t); d.State != postgres.Revoked || w.logHas(t, "device.needs_enrollment", "") {
		t.Errorf("the device is %s", d.State)
	}
}
