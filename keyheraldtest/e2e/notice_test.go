package e2e

import (
	"context"
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

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// person is a user with a plain client, who reads what the bot says.
type person struct {
	*mautrix.Client
	syncs *int
}

func (w *world) person(t *testing.T, name string) person {
	t.Helper()
	ctx := t.Context()
	user, err := w.hs.CreateUser(ctx, name, password)
	check(t, err)
	return w.reader(t, user)
}

func (w *world) reader(t *testing.T, user id.UserID) person {
	t.Helper()
	client, err := mautrix.NewClient(w.hs.URL, "", "")
	check(t, err)
	_, err = client.Login(t.Context(), &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: "READER", StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	check(t, err)
	return person{client, new(int)}
}

// said is a message of the bot's.
type said struct {
	Content map[string]any `json:"content"`
	Sender  id.UserID      `json:"sender"`
	Type    string         `json:"type"`
}

func (s said) body() string { body, _ := s.Content["body"].(string); return body }

// rooms are the rooms that the person was invited to or is in.
func (p person) rooms(t *testing.T) (invited, joined []id.RoomID) {
	t.Helper()
	// Synapse answers the same /sync from a cache for two minutes; each of these waits a millisecond more than the last.
	*p.syncs++
	answer, err := p.FullSyncRequest(t.Context(), mautrix.ReqSync{Timeout: *p.syncs, FullState: true})
	check(t, err)
	for room := range answer.Rooms.Invite {
		invited = append(invited, room)
	}
	for room := range answer.Rooms.Join {
		joined = append(joined, room)
	}
	return invited, joined
}

// enter accepts the one invitation that there is.
func (p person) enter(t *testing.T) id.RoomID {
	t.Helper()
	var invited []id.RoomID
	wait(t, "an invitation", func() bool { invited, _ = p.rooms(t); return len(invited) > 0 })
	if len(invited) != 1 {
		t.Fatalf("%s is invited to %v", p.UserID, invited)
	}
	_, err := p.JoinRoomByID(t.Context(), invited[0])
	check(t, err)
	wait(t, "the room to be his", func() bool { _, joined := p.rooms(t); return len(joined) == 1 })
	return invited[0]
}

// messages is what was said in a room, oldest first.
func (p person) messages(t *testing.T, room id.RoomID) []said {
	t.Helper()
	var page struct {
		Chunk []said `json:"chunk"`
	}
	url := p.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "rooms", room, "messages"}, map[string]string{"dir": "b", "limit": "100"})
	_, err := p.MakeRequest(t.Context(), http.MethodGet, url, nil, &page)
	check(t, err)
	var all []said
	for i := len(page.Chunk) - 1; i >= 0; i-- {
		if page.Chunk[i].Type == event.EventMessage.Type {
			all = append(all, page.Chunk[i])
		}
	}
	return all
}

// read waits for so many messages in a room, and returns all of them: Dendrite lets a person read what was said a moment after
// he is in.
func (p person) read(t *testing.T, room id.RoomID, want int) (all []said) {
	t.Helper()
	wait(t, fmt.Sprintf("%d messages", want), func() bool { all = p.messages(t, room); return len(all) >= want })
	if len(all) != want {
		t.Fatalf("there are %d messages, want %d: %v", len(all), want, all)
	}
	return all
}

// ended puts a rotation of a user there that came to an end, or needs attention.
func (w *world) ended(t *testing.T, user id.UserID, facts rotation.Facts) uuid.UUID {
	t.Helper()
	ctx := t.Context()
	now := w.clock.Now()
	key := uuid.Must(uuid.NewV7())
	r := postgres.Rotation{ID: key, UserID: user, Secret: protocol.SecretMegolmBackup, KMS: protocol.KMSRef{Name: "dev", Path: "keyherald/" + user.Localpart(), Version: key.String()},
		Source: "dev", Facts: rotation.Facts{State: rotation.Working}, CreatedAt: now}
	check(t, w.db.InsertRotations(ctx, []postgres.Rotation{r}))
	r.Facts = facts
	check(t, w.db.UpdateRotation(ctx, r, now))
	w.notices.Wake()
	return key
}

// noticeStates counts the notices of an audience by state.
func (w *world) noticeStates(t *testing.T, audience string) map[string]int {
	t.Helper()
	rows, err := w.db.Query(t.Context(), `SELECT state, COUNT(*) FROM notice WHERE audience = $1 GROUP BY state`, audience)
	check(t, err)
	defer func() { _ = rows.Close() }()
	states := map[string]int{}
	for rows.Next() {
		var state string
		var n int
		check(t, rows.Scan(&state, &n))
		states[state] = n
	}
	check(t, rows.Err())
	return states
}

// waitSent waits until so many notices for an audience are sent and none waits.
func (w *world) waitSent(t *testing.T, audience string, want int) {
	t.Helper()
	wait(t, fmt.Sprintf("%d notices for %s", want, audience), func() bool {
		w.notices.Wake()
		states := w.noticeStates(t, audience)
		return states["sent"] == want && states["pending"] == 0
	})
}

func TestAUserIsToldWhichDevicesDidNotGetTheKey(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.says = notice.Config{DB: w.db}
	w.serve(t, w.hs.URL)
	w.people(t)
	ctx := t.Context()
	w.ownBackup(t)
	w.newKey(t, "1")
	stranger := w.login(t, "STRANGER")
	check(t, stranger.SetDeviceInfo(ctx, "STRANGER", &mautrix.ReqDeviceInfo{DisplayName: "<b>evil.example</b> @room"}))
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	w.waitSent(t, string(w.alice), 1)

	p := w.reader(t, w.alice)
	room := p.enter(t)
	m := p.read(t, room, 1)[0]
	for _, part := range []string{"did not get", "- STOCK\n", "- b evil example b room (STRANGER)", "not verified"} {
		if !strings.Contains(m.body(), part) {
			t.Errorf("it does not say %q:\n%s", part, m.body())
		}
	}
	if m.Sender != w.identity.UserID || m.Content["msgtype"] != "m.notice" || m.Content["format"] != "org.matrix.custom.html" || strings.Contains(fmt.Sprint(m.Content["formatted_body"]), "<b>") {
		t.Errorf("the message is %v", m)
	}
	if mentions, ok := m.Content["m.mentions"].(map[string]any); !ok || len(mentions) != 0 {
		t.Errorf("it mentions %v", m.Content["m.mentions"])
	}
	nobodyWrites(t, p, room)

	// The next one is in the same room, and a rotation that flaps says each thing once.
	r := w.ended(t, w.alice, rotation.Facts{State: rotation.Working, Attention: protocol.AttentionOldKeyMissing})
	w.waitSent(t, string(w.alice), 2)
	for _, attention := range []protocol.ErrorCode{protocol.AttentionBackupChanged, protocol.AttentionOldKeyMissing, protocol.AttentionBackupChanged} {
		changed, ok, err := w.db.Rotation(ctx, r)
		if err != nil || !ok {
			t.Fatal(err)
		}
		changed.Facts.Attention = attention
		check(t, w.db.UpdateRotation(ctx, changed, w.clock.Now()))
		w.waitTold(t)
	}
	w.waitSent(t, string(w.alice), 3)
	p.read(t, room, 3)
	if _, joined := p.rooms(t); len(joined) != 1 {
		t.Errorf("she is in %v", joined)
	}
	// And nobody gets more than five a day.
	for range 4 {
		w.ended(t, w.alice, rotation.Facts{State: rotation.Failed})
	}
	w.waitTold(t)
	w.waitSent(t, string(w.alice), 5)
	w.clock.Advance(25 * time.Hour)
	w.ended(t, w.alice, rotation.Facts{State: rotation.Failed})
	w.waitSent(t, string(w.alice), 6)
	counts := countedByOutcome(t, w.db)
	if counts["room.created accepted"] != 1 || counts["notice.queued accepted"] != 6 || counts["notice.sent accepted"] != 6 {
		t.Errorf("the log has %v", counts)
	}
	var kept int
	check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM notice WHERE plain <> '' OR html <> ''`).Scan(&kept))
	if kept != 0 {
		t.Errorf("%d texts are kept after they were sent", kept)
	}
}

// waitTold waits until nobody is to be told of anything that is not decided.
func (w *world) waitTold(t *testing.T) {
	t.Helper()
	wait(t, "every rotation to be looked at", func() bool {
		w.notices.Wake()
		untold, err := w.db.UntoldRotations(t.Context(), 1)
		check(t, err)
		return len(untold) == 0
	})
}

// nobodyWrites checks that a member can send nothing, change nothing, and invite nobody.
func nobodyWrites(t *testing.T, p person, room id.RoomID) {
	t.Helper()
	ctx := t.Context()
	_, err := p.SendMessageEvent(ctx, room, event.EventMessage, map[string]any{"msgtype": "m.text", "body": "freeze"})
	refused := map[string]error{"a message": err}
	_, refused["a reaction"] = p.SendMessageEvent(ctx, room, event.EventReaction, map[string]any{"m.relates_to": map[string]any{}})
	_, refused["a name"] = p.SendStateEvent(ctx, room, event.StateRoomName, "", map[string]any{"name": "x"})
	_, refused["a state of a kind that nobody knows"] = p.SendStateEvent(ctx, room, event.Type{Type: "org.example.x", Class: event.StateEventType}, "", map[string]any{})
	_, refused["encryption"] = p.SendStateEvent(ctx, room, event.StateEncryption, "", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"})
	_, refused["an invitation"] = p.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: id.NewUserID("erin", p.UserID.Homeserver())})
	for what, err := range refused {
		if err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func TestAUserWhoLeavesIsLeftAloneForAMonth(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.says = notice.Config{DB: w.db}
	w.serve(t, w.hs.URL)
	p := w.person(t, "bob")
	tell := func() { w.ended(t, p.UserID, rotation.Facts{State: rotation.Failed}) }
	tell()
	w.waitSent(t, string(p.UserID), 1)
	room := p.enter(t)
	leave := func() {
		_, err := p.LeaveRoom(t.Context(), room)
		check(t, err)
	}
	refused := func(want int) {
		t.Helper()
		wait(t, "the notice to be given up", func() bool { return w.noticeStates(t, string(p.UserID))["refused"] == want })
		if invited, joined := p.rooms(t); len(invited)+len(joined) != 0 {
			t.Fatalf("he is invited to %v and in %v", invited, joined)
		}
	}
	leave()
	tell()
	refused(1)
	for again := range 2 {
		w.clock.Advance(31 * 24 * time.Hour)
		tell()
		w.waitSent(t, string(p.UserID), 2+again)
		if back := p.enter(t); back != room {
			t.Errorf("he is invited to %s and was in %s", back, room)
		}
		leave()
	}
	w.clock.Advance(365 * 24 * time.Hour)
	tell()
	refused(2)
	if counts := countedByOutcome(t, w.db); counts["room.created accepted"] != 1 || counts["room.invited accepted"] != 2 || counts["notice.sent refused"] != 2 {
		t.Errorf("the log has %v", counts)
	}
}

func TestRoomsAreMadeNoFasterThanAllowed(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.says = notice.Config{DB: w.db, RoomsPerMinute: 2}
	w.serve(t, w.hs.URL)
	for i := range 5 {
		user, err := w.hs.CreateUser(t.Context(), fmt.Sprintf("user%d", i), password)
		check(t, err)
		w.ended(t, user, rotation.Facts{State: rotation.Failed})
	}
	made := func() (n int) {
		check(t, w.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM notice WHERE state = 'sent'`).Scan(&n))
		return n
	}
	w.waitTold(t)
	wait(t, "the first rooms", func() bool { w.notices.Wake(); return made() == 2 })
	for range 10 {
		w.notices.Wake()
	}
	w.clock.Advance(20 * time.Second)
	if n := made(); n != 2 {
		t.Errorf("%d rooms were made in 20 seconds where 2 a minute are allowed", n)
	}
	w.clock.Advance(40 * time.Second)
	wait(t, "two more", func() bool { w.notices.Wake(); return made() == 4 })
	w.clock.Advance(time.Minute)
	wait(t, "all of them", func() bool { w.notices.Wake(); return made() == 5 })
}

func TestTheAdminRoomTellsHowThingsStandAndTakesNoWord(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	carol, err := w.hs.CreateUser(t.Context(), "carol", password)
	check(t, err)
	dave, err := w.hs.CreateUser(t.Context(), "dave", password)
	check(t, err)
	w.says = notice.Config{DB: w.db, Send: notice.SendNever, Admins: []id.UserID{carol, dave}}
	first := newServing(t, w)
	ctx := t.Context()
	p, q := w.reader(t, carol), w.reader(t, dave)
	room := p.enter(t)
	if q.enter(t) != room {
		t.Fatal("the admins are in two rooms")
	}
	told := 0
	tells := func(parts ...string) {
		t.Helper()
		told++
		w.waitSent(t, postgres.AudienceAdmins, told)
		messages := p.read(t, room, told)
		for _, part := range parts {
			if !strings.Contains(messages[told-1].body(), part) {
				t.Errorf("it does not say %q:\n%s", part, messages[told-1].body())
			}
		}
	}
	check(t, w.notices.TellAdmins(ctx, "started/1", audit.NoticeServerStarted, notice.Started("v1", "host")))
	check(t, w.notices.TellAdmins(ctx, "started/1", audit.NoticeServerStarted, notice.Started("v1", "host")))
	tells("Keyherald starts")
	check(t, w.engine.Freeze(ctx, audit.ByLocal("root", "admin.example.org")))
	tells("All triggers are stopped", "local root admin example org")
	check(t, w.engine.Thaw(ctx, audit.ByLocal("root", "admin.example.org")))
	tells("Triggers go again")
	w.ended(t, w.identity.UserID, rotation.Facts{State: rotation.Working, Attention: protocol.AttentionKMSForbidden})
	w.clock.Advance(11 * time.Minute)
	tells("kms forbidden: 1")
	nobodyWrites(t, p, room)

	// What a forger has the homeserver say in the room changes nothing; the room is of this homeserver alone.
	var create map[string]any
	check(t, p.StateEvent(ctx, room, event.StateCreate, "", &create))
	if create["m.federate"] != false {
		t.Errorf("the room was made with %v", create)
	}

	// Dave leaves and is left alone; then the configuration has him no more, and has him again.
	_, err = q.LeaveRoom(ctx, room)
	check(t, err)
	restart := func(admins ...id.UserID) {
		first()
		w.says.Admins = admins
		first = newServing(t, w)
		told++
		check(t, w.notices.TellAdmins(ctx, fmt.Sprintf("started/%d", told), audit.NoticeServerStarted, notice.Started("v1", "host")))
		w.waitSent(t, postgres.AudienceAdmins, told)
	}
	restart(carol, dave)
	if invited, _ := q.rooms(t); len(invited) != 0 {
		t.Error("who left was invited again")
	}
	restart(carol)
	restart(carol, dave)
	q.enter(t)
	restart(carol)
	wait(t, "him to be removed", func() bool { _, joined := q.rooms(t); return len(joined) == 0 })
	if counts := counted(t, w.db); counts["room.created"] != 1 || counts["room.invited"] != 3 || counts["room.member_removed"] != 1 {
		t.Errorf("the log has %v", counts)
	}
}

// newServing runs a replica until stop, or the test's end.
func newServing(t *testing.T, w *world) (stop func()) {
	t.Helper()
	return w.serving(t, w.hs.URL)
}

func (w *world) serving(t *testing.T, homeserver string) (stop func()) {
	t.Helper()
	db := w.db
	if w.serverDB != nil {
		db = w.serverDB
	}
	engine, bot := w.server(t, db, homeserver)
	w.engine, w.bot = engine, bot
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- bot.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		check(t, <-done)
	}
	t.Cleanup(stop)
	waitFor(t, time.Minute, "the bot to lead", bot.Leading)
	return stop
}

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
			case <-time.After(30 * time.Second):
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
	w.clock.Advance(59 * time.Minute)
	other := w.person(t, "carol")
	w.ended(t, other.UserID, rotation.Facts{State: rotation.Failed})
	w.waitTold(t)
	if asked.Load() != 1 {
		t.Error("something was sent during the pause")
	}
	w.clock.Advance(2 * time.Minute)
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
