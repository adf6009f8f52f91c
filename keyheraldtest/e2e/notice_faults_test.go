package e2e

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// Every write on the way of a first notice, to PostgreSQL and to the homeserver, fails once, before and after it took effect,
// with the server going on and with a server that ends there and another one in its place: there is one room, with the
// message in it once, and the log tells each thing once.
func TestARoomIsMadeOnceAndANoticeIsSentOnceWhateverFails(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	recorder := &faults.Recorder{}
	proxy, err := recorder.Proxy("bot", w.hs.URL, faults.Homeserver, nil)
	check(t, err)
	t.Cleanup(func() { _ = proxy.Close() })
	connector, err := pq.NewConnector(w.database.WriterURL)
	check(t, err)
	db, err := postgres.OpenWith(t.Context(), sql.OpenDB(recorder.Connector("PostgreSQL", connector)), w.database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	w.says = notice.Config{DB: db, RoomsPerMinute: 1000}
	w.serverDB = db
	stop := w.serving(t, proxy.URL)
	n := 0
	tell := func(t *testing.T, struck <-chan struct{}, killed bool) {
		t.Helper()
		n++
		p := w.person(t, fmt.Sprintf("user%d", n))
		w.ended(t, p.UserID, rotation.Facts{State: rotation.Failed})
		if killed {
			select {
			case <-struck:
			case <-time.After(patience):
				t.Fatalf("it did not come to this write: %v", recorder.Points())
			}
			stop()
			stop = w.serving(w.whole, proxy.URL)
		}
		wait(t, "the notice to be sent", func() bool {
			w.clock.Advance(5 * time.Second)
			w.notices.Wake()
			return w.noticeStates(t, string(p.UserID))["sent"] == 1
		})
		room := p.enter(t)
		p.read(t, room, 1)
		if invited, joined := p.rooms(t); len(invited)+len(joined) != 1 {
			t.Errorf("he is invited to %v and in %v", invited, joined)
		}
		nobodyWrites(t, p, room)
	}
	w.whole = t
	var dry [2][]faults.Point
	for i := range dry {
		recorder.Begin()
		tell(t, nil, false)
		for _, point := range recorder.Points() {
			if strings.Contains(point.Label, "notice") || strings.Contains(point.Label, "createRoom") || strings.Contains(point.Label, "rooms/") {
				dry[i] = append(dry[i], point)
			}
		}
	}
	table := faults.Table(dry[:]...)
	if len(table) < 10 {
		t.Fatalf("there are %d faults: %v", len(table), table)
	}
	for _, fault := range table {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed: %v", fault, killed), func(t *testing.T) {
				struck := make(chan struct{})
				recorder.Arm(fault, func() { close(struck) })
				tell(t, struck, killed)
				if !recorder.Fired() {
					t.Errorf("it did not come to this write: %v", recorder.Points())
				}
			})
		}
	}
	counts := countedByOutcome(t, w.db)
	if counts["room.created accepted"] != n || counts["notice.queued accepted"] != n || counts["notice.sent accepted"] != n || counts["room.invited accepted"] != 0 {
		t.Errorf("of %d notices the log has %v", n, counts)
	}
}

// A homeserver that asks for a pause is left alone for as long as it says, and the notice is sent then.
func TestNoticesWaitForAsLongAsTheHomeserverSays(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.says = notice.Config{DB: w.db}
	target, err := url.Parse(w.hs.URL)
	check(t, err)
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	var asked atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/send/m.room.message/") && asked.Add(1) == 1 {
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(http.StatusTooManyRequests)
			_, _ = rw.Write([]byte(`{"errcode":"M_LIMIT_EXCEEDED","error":"slow down","retry_after_ms":3600000}`))
			return
		}
		forward.ServeHTTP(rw, r)
	}))
	t.Cleanup(front.Close)
	w.serving(t, front.URL)
	p := w.person(t, "bob")
	w.ended(t, p.UserID, rotation.Facts{State: rotation.Failed})
	wait(t, "the pause", func() (paused bool) {
		check(t, w.db.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM notice WHERE error <> '')`).Scan(&paused))
		return paused
	})
	w.clock.Advance(30 * time.Minute)
	other := w.person(t, "carol")
	w.ended(t, other.UserID, rotation.Facts{State: rotation.Failed})
	w.waitTold(t)
	if asked.Load() != 1 {
		t.Error("something was sent during the pause")
	}
	w.clock.Advance(31 * time.Minute)
	w.waitSent(t, string(p.UserID), 1)
	w.waitSent(t, string(other.UserID), 1)
	p.read(t, p.enter(t), 1)
}

// A database that was restored has lost the rooms that were made since; they are found again.
func TestRoomsThatTheDatabaseLostAreFoundAgain(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.says = notice.Config{DB: w.db}
	stop := w.serving(t, w.hs.URL)
	p := w.person(t, "bob")
	w.ended(t, p.UserID, rotation.Facts{State: rotation.Failed})
	w.waitSent(t, string(p.UserID), 1)
	room := p.enter(t)
	stop()
	_, err := w.db.Exec(t.Context(), `DELETE FROM notice_room`)
	check(t, err)
	w.serving(t, w.hs.URL)
	w.ended(t, p.UserID, rotation.Facts{State: rotation.Failed})
	w.waitSent(t, string(p.UserID), 2)
	p.read(t, room, 2)
	if _, joined := p.rooms(t); len(joined) != 1 {
		t.Errorf("he is in %v", joined)
	}
	lines, err := w.db.Log(t.Context(), "", 10_000)
	check(t, err)
	found := 0
	for _, line := range lines {
		var detail map[string]any
		check(t, json.Unmarshal(line.Detail, &detail))
		if line.Action == string(audit.RoomCreated) && detail["found"] == true {
			found++
		}
	}
	if found != 1 {
		t.Errorf("the log has %d rooms that were found", found)
	}
}
