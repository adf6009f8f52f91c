package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// holding is the homeserver, where the answer about a user's keys comes when it is let go; asked is told of each question.
func holding(t *testing.T, homeserver string, user string, hold *atomic.Bool) (proxy *httptest.Server, asked chan struct{}, release func()) {
	t.Helper()
	to, err := url.Parse(homeserver)
	check(t, err)
	forward := &httputil.ReverseProxy{Rewrite: func(out *httputil.ProxyRequest) { out.SetURL(to) },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }}
	asked = make(chan struct{}, 100)
	released := make(chan struct{})
	proxy = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if !hold.Load() || !strings.HasSuffix(req.URL.Path, "/keys/query") {
			forward.ServeHTTP(rw, req)
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		recorder := httptest.NewRecorder()
		forward.ServeHTTP(recorder, req)
		if bytes.Contains(body, []byte(user)) {
			asked <- struct{}{}
			select {
			case <-released:
			case <-req.Context().Done():
			}
		}
		rw.WriteHeader(recorder.Code)
		_, _ = rw.Write(recorder.Body.Bytes())
	}))
	t.Cleanup(proxy.Close)
	return proxy, asked, func() { close(released) }
}

// The bot looks after each trigger whether the device still is what was enrolled; what is decided meanwhile stands.
func TestADeviceThatIsRevokedWhileTheHomeserverIsAskedStaysRevoked(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	var hold atomic.Bool
	proxy, asked, release := holding(t, w.hs.URL, "@alice:", &hold)
	w.serve(t, proxy.URL)
	w.people(t)
	account := w.open(t, "managed")
	w.enroll(t, account)
	d := w.enrolledDevice(t)
	w.reset(t)
	hold.Store(true)
	w.notify(t, "n1", "1")
	<-asked
	check(t, w.engine.Revoke(t.Context(), w.alice, d.DeviceID, "stolen", keyheraldtest.Admin()))
	hold.Store(false)
	release()
	wait(t, "the device to be told", func() (told bool) {
		check(t, w.db.QueryRow(t.Context(), `SELECT revocation_told_at IS NOT NULL FROM device WHERE id = $1`, d.ID).Scan(&told))
		return told
	})
	if d := w.enrolledDevice(t); d.State != postgres.Revoked || w.logHas(t, "device.needs_enrollment", "") {
		t.Errorf("the device is %s", d.State)
	}
}
