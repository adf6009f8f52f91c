package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

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
	key := uuid.New()
	check(t, w.db.PutDevice(ctx, postgres.Device{ID: key, UserID: w.identity.UserID, DeviceID: "RESET", IdentityKey: "i", SigningKey: "s", MasterKey: "before", EnrolledAt: w.clock.Now()}))
	check(t, w.db.SetDeviceState(ctx, key, postgres.NeedsEnrollment))
	check(t, w.db.QueueReenrollment(ctx, postgres.Reenrollment{ID: uuid.New(), Device: key, OldMasterKey: "before", NewMasterKey: "after", AskedAt: w.clock.Now()}))
	w.clock.Advance(11 * time.Minute)
	tells("enrolled again: 1", "after an identity reset: 1", "keyherald reenrollments release")
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
	wait(t, "the bot to lead", bot.Leading)
	return stop
}
