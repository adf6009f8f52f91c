package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// twice is the homeserver, but when it is told to it gives a one-time key out that it gave out before, as Dendrite on
// PostgreSQL does where two claim at once, and as a homeserver may that was put back to a backup. The bot has forgotten
// the key by then, and cannot read the session that is made of it.
type twice struct {
	*httptest.Server
	mu     sync.Mutex
	answer []byte
	again  bool
}

func newTwice(t *testing.T, homeserver string) *twice {
	t.Helper()
	p, onward := &twice{}, forward(t, homeserver)
	onward.ModifyResponse = p.claimed
	p.Server = httptest.NewServer(onward)
	t.Cleanup(p.Close)
	return p
}

func (p *twice) claimed(resp *http.Response) error {
	if !strings.HasSuffix(resp.Request.URL.Path, "/keys/claim") {
		return nil
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.again {
		p.again, answer = false, p.answer
	}
	p.answer = answer
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(answer)), int64(len(answer))
	resp.Header.Del("Content-Length")
	return nil
}

// next makes the next claim one that is answered with the key of the last.
func (p *twice) next() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.again = true
}

func (p *twice) on(c *device.AccountConfig) { c.Homeserver = p.URL }

// wasUnread waits until the bot could not read something, once.
func (w *world) wasUnread(t *testing.T) {
	t.Helper()
	wait(t, "a message that cannot be read", func() bool { return counted(t, w.db)["message.undecryptable"] > 0 })
}

// forgetSessions has a managed device lose its Olm sessions.
func (w *world) forgetSessions(t *testing.T, name string) {
	t.Helper()
	store, err := sql.Open("sqlite", "file:"+w.store(name)+"?_pragma=busy_timeout(5000)")
	check(t, err)
	_, err = store.ExecContext(t.Context(), `DELETE FROM crypto_olm_session`)
	check(t, errors.Join(err, store.Close()))
}

func TestADeviceIsEnrolledThoughTheServerCouldNotReadItsRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newTwice(t, w.hs.URL)
	w.enroll(t, w.open(t, "first", p.on))
	p.next()
	w.enroll(t, w.open(t, "second", p.on))
	w.wasUnread(t)
	if counts := countedByOutcome(t, w.db); counts["device.enrolled accepted"] != 2 {
		t.Errorf("the log has %v", counts)
	}
}

// What a device told in vain it tells again, everything once in the log and nothing lost.
func TestWhatTheServerCouldNotReadOfADeviceIsToldAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newTwice(t, w.hs.URL)
	account := w.open(t, "managed", p.on)
	w.enroll(t, account)
	check(t, account.Close())
	w.newKey(t, "1")
	p.next()
	run(t, w.open(t, "managed", p.on).Run)
	store := w.look(t, "managed")
	w.wasUnread(t)
	w.notify(t, "n1", "1")
	w.waitDone(t)
	wait(t, "the server to have all that the device told", func() bool {
		var told, has int
		check(t, store.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM todevice_outbox WHERE key LIKE 'report/%' OR key LIKE 'status/%'`).Scan(&told))
		check(t, w.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM report`).Scan(&has))
		return told == has
	})
}

func TestADeviceThatAsksToBeEnrolledAgainIsHeardThoughItsRequestCouldNotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newTwice(t, w.hs.URL)
	account := w.open(t, "managed", p.on)
	w.enroll(t, account)
	w.reset(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.forgetSessions(t, "managed") // the request begins one
	p.next()
	w.askAgain(t, account)
	w.wasUnread(t)
	check(t, w.engine.ReleaseReenrollment(ctx, w.waiting(t)[0].ID, keyheraldtest.Admin()))
	run(t, account.Run)
	wait(t, "the device to be enrolled again", func() bool {
		enrolled, err := account.Enrolled(ctx)
		check(t, err)
		devices, err := w.db.Devices(ctx, w.alice)
		check(t, err)
		return enrolled && devices[0].State == postgres.Enrolled
	})
}

// A trigger is not sent twice: the rotation gets another attempt.
func TestATriggerThatTheDeviceCouldNotReadIsFollowedByAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.open(t, "managed")
	w.enroll(t, account)
	w.newKey(t, "1")
	w.notify(t, "n1", "1")
	wait(t, "the trigger to be sent", func() (sent bool) {
		check(t, w.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM todevice_outbox WHERE key LIKE 'trigger/%' AND state = 'sent')`).Scan(&sent))
		return sent
	})
	w.forgetSessions(t, "managed") // the one that the trigger was encrypted with
	run(t, account.Run)
	w.waitDone(t)
	if counts := countedByOutcome(t, w.db); counts["rotation.retried accepted"] != 1 || counts["rotation.done accepted"] != 1 {
		t.Errorf("the log has %v", counts)
	}
	if attempts, err := w.db.Attempts(ctx, w.onlyRotation(t).ID); err != nil || len(attempts) != 2 {
		t.Errorf("there are %d attempts: %v", len(attempts), err)
	}
}
