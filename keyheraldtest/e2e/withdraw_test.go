package e2e

import (
	"database/sql"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// gate stands between one device and the homeserver. While shut it refuses what the device would send to others, and it
// can hold the request that makes a key-backup version until it is let go.
type gate struct {
	*httptest.Server

	mu   sync.Mutex // guards the rest
	shut bool
	path string // what else is refused
	hold chan struct{}
	held chan struct{}
	// paths are of every request that came.
	paths []string
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	u, err := url.Parse(target)
	check(t, err)
	g := &gate{held: make(chan struct{}, 1)}
	proxy := httputil.NewSingleHostReverseProxy(u)
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		shut, path, hold := g.shut, g.path, g.hold
		g.paths = append(g.paths, r.URL.Path)
		g.mu.Unlock()
		if shut && strings.Contains(r.URL.Path, "/sendToDevice/") || path != "" && strings.Contains(r.URL.Path, path) {
			http.Error(w, `{"errcode":"M_UNKNOWN","error":"shut"}`, http.StatusServiceUnavailable)
			return
		}
		if hold != nil && r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/room_keys/version") {
			select {
			case g.held <- struct{}{}:
			default:
			}
			<-hold
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(g.CloseClientConnections)
	return g
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
}

// seen counts the requests whose path ended so.
func (g *gate) seen(suffix string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, path := range g.paths {
		if strings.HasSuffix(path, suffix) {
			n++
		}
	}
	return n
}

// refuse refuses requests whose path has this in it; empty ends it.
func (g *gate) refuse(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.path = path
}

// holdVersions holds requests that make a key-backup version until the returned function is called.
func (g *gate) holdVersions() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	hold := make(chan struct{})
	g.hold = hold
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.hold = nil
		close(hold)
	})
}

// verifiedReceiver is a receiver that the user's identity has signed.
func (w *world) verifiedReceiver(t *testing.T, deviceID id.DeviceID) *keyheraldtest.Receiver {
	t.Helper()
	receiver := w.receiver(t, deviceID)
	signing, identity, err := receiver.Endpoint.Keys(t.Context())
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(t.Context(), &id.Device{UserID: w.alice, DeviceID: deviceID, SigningKey: signing, IdentityKey: identity}))
	return receiver
}

// inStore asks a device's store, which the device may be using, for one number.
func (w *world) inStore(t *testing.T, name, query string, args ...any) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+w.store(name)+"?mode=ro&_pragma=busy_timeout(5000)")
	check(t, err)
	defer func() { _ = db.Close() }()
	check(t, db.QueryRowContext(t.Context(), query, args...).Scan(&n))
	return n
}

const pendingPushes = `SELECT COUNT(*) FROM todevice_outbox WHERE key LIKE 'push/%' AND state = 'pending'`

func (w *world) rotationOf(t *testing.T, version string) postgres.Rotation {
	t.Helper()
	rotations, err := w.db.Rotations(t.Context(), w.alice, false)
	check(t, err)
	for _, r := range rotations {
		if r.KMS.Version == version {
			return r
		}
	}
	t.Fatalf("there is no rotation of version %s", version)
	return postgres.Rotation{}
}

func holds(receiver *keyheraldtest.Receiver, key backupkey.Key) bool {
	for _, message := range receiver.Messages() {
		if strings.Contains(message.Content, key.RevealBase64()) {
			return true
		}
	}
	return false
}

func (w *world) outcomes(t *testing.T, key uuid.UUID) map[string]int {
	t.Helper()
	outcomes, err := w.db.Outcomes(t.Context(), key)
	check(t, err)
	return outcomes
}

func TestPushesOfASupersededVersionThatWereNotSentAreWithdrawn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	receiver := w.verifiedReceiver(t, "WIRE")
	g := newGate(t, w.hs.URL)
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })

	g.set(true)
	old := w.newKey(t, "1")
	w.notify(t, "n1", "1")
	// Two targets, the stock client and the receiver, in two forms.
	wait(t, "pushes of the first version in the outbox", func() bool { return w.inStore(t, "managed", pendingPushes) == 4 })
	fresh := w.newKey(t, "2")
	w.notify(t, "n2", "2")
	wait(t, "the first version's pushes to be withdrawn and the second's to be queued", func() bool {
		return w.inStore(t, "managed", `SELECT COUNT(*) FROM todevice_outbox WHERE key LIKE 'push/%' AND state = 'withdrawn'`) == 4 &&
			w.inStore(t, "managed", pendingPushes) == 4
	})
	g.set(false)
	w.waitDone(t)
	wait(t, "the new key to arrive", func() bool {
		check(t, receiver.Receive(ctx))
		return holds(receiver, fresh)
	})
	first := w.rotationOf(t, "1")
	wait(t, "the withdrawn targets to be reported", func() bool { return w.outcomes(t, first.ID)["superseded"] == 2 })
	if first = w.rotationOf(t, "1"); first.Facts.State != rotation.Superseded || first.Facts.Pushed || w.outcomes(t, first.ID)["sent"] != 0 {
		t.Errorf("the first rotation is %+v, with outcomes %v", first.Facts, w.outcomes(t, first.ID))
	}
	if !w.logHas(t, "delivery.reported", string(protocol.OutcomeSuperseded)) {
		t.Error("the withdrawal is not in the audit log")
	}
	if second := w.rotationOf(t, "2"); w.outcomes(t, second.ID)["sent"] != 2 {
		t.Errorf("the second rotation has outcomes %v", w.outcomes(t, second.ID))
	}
	if holds(receiver, old) {
		t.Error("the receiver got the key of the superseded version")
	}
}

func TestACancelWithdrawsPushesAndARetryPushesThemInAnotherRound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	receiver := w.verifiedReceiver(t, "WIRE")
	g := newGate(t, w.hs.URL)
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })

	g.set(true)
	key := w.newKey(t, "1")
	w.notify(t, "n1", "1")
	wait(t, "pushes in the outbox", func() bool { return w.inStore(t, "managed", pendingPushes) == 4 })
	check(t, w.engine.Cancel(ctx, w.onlyRotation(t).ID, keyheraldtest.Admin()))
	wait(t, "the pushes to be withdrawn", func() bool { return w.inStore(t, "managed", pendingPushes) == 0 })
	g.set(false)
	wait(t, "the withdrawn targets to be reported", func() bool { return w.outcomes(t, w.onlyRotation(t).ID)["superseded"] == 2 })
	if state := w.onlyRotation(t).Facts.State; state != rotation.Cancelled {
		t.Errorf("the rotation is %s", state)
	}
	check(t, receiver.Receive(ctx))
	if holds(receiver, key) {
		t.Fatal("the receiver got the key of a cancelled rotation")
	}
	check(t, w.engine.Retry(ctx, w.onlyRotation(t).ID, keyheraldtest.Admin()))
	w.waitDone(t)
	wait(t, "the key to arrive", func() bool {
		check(t, receiver.Receive(ctx))
		return len(receiver.Messages()) >= 2
	})
	if outcomes := w.outcomes(t, w.onlyRotation(t).ID); outcomes["sent"] != 2 || !holds(receiver, key) || len(receiver.Messages()) != 2 {
		t.Errorf("the outcomes are %v, and the receiver has %d messages", outcomes, len(receiver.Messages()))
	}
}

// The older version is being made on the homeserver while the newer trigger comes: neither its journal row nor its pushes
// come back, and the history that only the version before it holds is not forgotten.
func TestWorkThatIsSupersededWhileItMakesAVersionDoesNotComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	firstKey, version := w.ownBackup(t)
	room, message, err := w.stock.WriteHistory(ctx, version, firstKey, history)
	check(t, err)
	receiver := w.verifiedReceiver(t, "WIRE")
	reader := w.login(t, "READER")
	check(t, reader.Verify(ctx, w.recoveryKey))
	g := newGate(t, w.hs.URL)
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })

	release := g.holdVersions()
	defer release()
	old := w.newKey(t, "1")
	w.notify(t, "n1", "1")
	<-g.held
	fresh := w.newKey(t, "2")
	w.notify(t, "n2", "2")
	wait(t, "the newer trigger on the device", func() bool { return w.inStore(t, "managed", `SELECT COUNT(*) FROM journal`) == 2 })
	release()
	w.waitDone(t)
	wait(t, "the new key to arrive", func() bool {
		check(t, receiver.Receive(ctx))
		return holds(receiver, fresh)
	})
	if n := w.inStore(t, "managed", `SELECT COUNT(*) FROM journal WHERE last_error = 'superseded' AND ended AND plan = '' AND new_version = ''`); n != 1 {
		t.Error("the superseded work wrote its journal row")
	}
	if holds(receiver, old) {
		t.Error("the receiver got the key of the superseded version")
	}
	wait(t, "both older versions to be carried over", func() bool { return w.inStore(t, "managed", `SELECT COUNT(*) FROM carry WHERE finished`) == 2 })
	private, err := backup.MegolmBackupKeyFromBytes(fresh.Reveal())
	check(t, err)
	text, err := reader.ReadHistory(ctx, room, message, private)
	check(t, err)
	if text != history {
		t.Errorf("the reader reads %q", text)
	}
}
