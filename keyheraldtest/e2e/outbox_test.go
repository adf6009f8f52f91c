package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// limiter stands between the bot and the homeserver, and may answer what the bot sends to devices in its place.
type limiter struct {
	*httptest.Server

	mu     sync.Mutex // guards the rest
	answer func(w http.ResponseWriter, body []byte) (answered bool)
	at     []time.Time // when messages came
}

func newLimiter(t *testing.T, target string) *limiter {
	t.Helper()
	u, err := url.Parse(target)
	check(t, err)
	l := &limiter{}
	proxy := httputil.NewSingleHostReverseProxy(u)
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/sendToDevice/") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			l.mu.Lock()
			l.at = append(l.at, time.Now())
			answered := l.answer != nil && l.answer(w, body)
			l.mu.Unlock()
			if answered {
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(l.CloseClientConnections)
	return l
}

func (l *limiter) set(answer func(http.ResponseWriter, []byte) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer, l.at = answer, nil
}

func (l *limiter) times() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]time.Time(nil), l.at...)
}

// newLimited is a server behind a limiter, and members of a crowd with an enrolled device each.
func newLimited(t *testing.T, n int) (*world, *limiter, []keyheraldtest.Member) {
	t.Helper()
	w := newParts(t)
	l := newLimiter(t, w.hs.URL)
	w.serve(t, l.URL)
	members, err := w.crowd.Make(t.Context(), w.hs, n)
	check(t, err)
	for _, m := range members {
		check(t, w.db.PutDevice(t.Context(), postgres.Device{ID: uuid.New(), UserID: m.UserID, DeviceID: m.Device.DeviceID, IdentityKey: m.Device.IdentityKey,
			SigningKey: m.Device.SigningKey, MasterKey: m.MasterKey, EnrolledAt: time.Now()}))
	}
	return w, l, members
}

// change has the KMS tell of a new version for each member.
func (w *world) change(t *testing.T, version string, members ...keyheraldtest.Member) {
	t.Helper()
	for _, m := range members {
		_, err := w.engine.Accept(t.Context(), intake.Notification{Source: "dev", ID: m.UserID.String() + version, User: m.UserID.String(),
			Secret: protocol.SecretMegolmBackup, KMS: "dev", Path: "keyherald/" + m.UserID.Localpart(), Version: version})
		check(t, err)
	}
}

func (w *world) triggersSent(t *testing.T) (n int) {
	t.Helper()
	check(t, w.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM attempt WHERE sent_at IS NOT NULL`).Scan(&n))
	return n
}

func TestTheBotSendsNothingWhileTheHomeserverAsksForAPause(t *testing.T) {
	t.Parallel()
	w, l, members := newLimited(t, 2)
	for i, limited := range []func(http.ResponseWriter){
		func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "2")
			http.Error(w, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow down"}`, http.StatusTooManyRequests)
		},
		func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow down","retry_after_ms":2000}`)
		},
	} {
		said := false
		l.set(func(w http.ResponseWriter, _ []byte) bool {
			if said {
				return false
			}
			said = true
			limited(w)
			return true
		})
		w.change(t, string(rune('1'+i)), members...)
		wait(t, "the triggers to be sent", func() bool { return w.triggersSent(t) == 2*(i+1) })
		times := l.times()
		if len(times) < 2 || times[1].Sub(times[0]) < 2*time.Second {
			t.Errorf("messages came at %v, in spite of the pause of two seconds", times)
		}
	}
}

func TestAMessageThatTheHomeserverRefusesIsFoundAmongTheOthers(t *testing.T) {
	t.Parallel()
	w, l, members := newLimited(t, 5)
	ctx := t.Context()
	bad := members[3].UserID
	l.set(func(w http.ResponseWriter, body []byte) bool {
		if !bytes.Contains(body, []byte(bad)) {
			return false
		}
		http.Error(w, `{"errcode":"M_BAD_JSON","error":"not this one"}`, http.StatusBadRequest)
		return true
	})
	check(t, w.engine.Freeze(ctx, keyheraldtest.Admin()))
	w.change(t, "1", members...)
	check(t, w.engine.Thaw(ctx, keyheraldtest.Admin()))
	wait(t, "the other four triggers to be sent", func() bool { return w.triggersSent(t) == 4 })
	refused := func() postgres.Rotation {
		rotations, err := w.db.Rotations(ctx, bad, false)
		check(t, err)
		return rotations[0]
	}
	wait(t, "the admin to be told", func() bool { return refused().Facts.Attention == protocol.AttentionTriggerRefused })
	if refused().NextAction != rotation.NextAction(protocol.AttentionTriggerRefused) || !w.logHas(t, "trigger.refused_by_homeserver", "attempt") {
		t.Errorf("the next action is %q", refused().NextAction)
	}
	happened.Store(protocol.AttentionTriggerRefused, true)
	if n := len(l.times()); n < 3 || n > 8 {
		t.Errorf("five messages took %d requests: they were not sent together and split", n)
	}
	l.set(nil)
	check(t, w.engine.Retry(ctx, refused().ID, keyheraldtest.Admin()))
	wait(t, "the refused one to be sent", func() bool { return w.triggersSent(t) == 5 })
	if refused().Facts.Attention != "" {
		t.Errorf("it still needs attention: %s", refused().Facts.Attention)
	}
}

// A replica that was killed leaves its lease behind, and its work.
func TestAnotherReplicaTakesTheWorkOfADeadOneOverWithinAMinute(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	ctx := t.Context()
	died := time.Now()
	const life = 15 * time.Second
	epoch, taken, err := w.db.TakeLease(ctx, "dead", life)
	check(t, err)
	if epoch == 0 || !taken {
		t.Fatal("the lease was not free")
	}
	members, err := w.crowd.Make(ctx, w.hs, 1)
	check(t, err)
	check(t, w.db.PutDevice(ctx, postgres.Device{ID: uuid.New(), UserID: members[0].UserID, DeviceID: members[0].Device.DeviceID,
		IdentityKey: members[0].Device.IdentityKey, SigningKey: members[0].Device.SigningKey, MasterKey: members[0].MasterKey, EnrolledAt: time.Now()}))
	w.engine, _ = w.server(t, w.db, w.hs.URL)
	w.change(t, "1", members...)
	w.serve(t, w.hs.URL)
	wait(t, "the open rotation's trigger", func() bool { return w.triggersSent(t) == 1 })
	if took := time.Since(died); took < life {
		t.Errorf("the lease of the dead replica was taken after %s: it was not waited for", took)
	}
}
