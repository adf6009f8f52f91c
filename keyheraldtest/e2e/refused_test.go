package e2e

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// What an admin or operator asked for and did not get is one event, with its reason, and nothing else has changed.
func TestWhatIsRefusedIsInTheLogAndDoesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, _ := newDatabase(t)
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 2, Users: 1}})
	check(t, err)
	admin := keyheraldtest.Admin()
	open := func(user, version string) uuid.UUID {
		t.Helper()
		receipt, err := engine.Accept(ctx, notification(user+version, user, version))
		check(t, err)
		return uuid.MustParse(receipt.RotationID)
	}
	free := open("alice", "1")
	held, second := open("bob", "1"), open("carol", "1")
	ended := open("alice", "2")
	check(t, engine.Cancel(ctx, ended, admin))
	check(t, db.PutDevice(ctx, postgres.Device{ID: uuid.New(), UserID: "@alice:example.org", DeviceID: "GONE", IdentityKey: "i", SigningKey: "s", MasterKey: "m", EnrolledAt: time.Now()}))
	check(t, engine.Revoke(ctx, "@alice:example.org", "GONE", "lost in the train", admin))
	unknown := uuid.New()
	key, err := backupkey.Generate()
	check(t, err)

	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	says := func(want string) func(error) bool {
		return func(err error) bool { return err != nil && strings.Contains(err.Error(), want) }
	}
	release := func(keys ...uuid.UUID) func() error {
		return func() error { _, err := engine.Release(ctx, keys, admin); return err }
	}
	code := func(user id.UserID, life time.Duration) func() error {
		return func() error { _, err := engine.NewCode(ctx, user, life, admin); return err }
	}
	restore := func(reason string) func() error {
		return func() error { _, err := engine.Restore(ctx, "FRESH", reason, admin); return err }
	}
	for _, test := range []struct {
		name   string
		do     func() error
		fails  func(error) bool
		action audit.Action
		why    []audit.Refusal // of each event, in their order
	}{
		{"retrying a rotation that nobody knows", func() error { return engine.Retry(ctx, unknown, admin) }, says("there is no rotation"), audit.RotationRetried, []audit.Refusal{audit.RefusedUnknownRotation}},
		{"retrying what a newer version overtook", func() error { return engine.Retry(ctx, free, admin) }, is(relay.ErrNotPossible), audit.RotationRetried, []audit.Refusal{audit.RefusedEnded}},
		{"retrying what is held", func() error { return engine.Retry(ctx, held, admin) }, is(relay.ErrNotPossible), audit.RotationRetried, []audit.Refusal{audit.RefusedHeld}},
		{"cancelling a rotation that nobody knows", func() error { return engine.Cancel(ctx, unknown, admin) }, says("there is no rotation"), audit.RotationCancelled, []audit.Refusal{audit.RefusedUnknownRotation}},
		{"cancelling again", func() error { return engine.Cancel(ctx, ended, admin) }, is(relay.ErrNotPossible), audit.RotationCancelled, []audit.Refusal{audit.RefusedEnded}},
		{"releasing what is not held, and others with it", release(held, free, unknown), is(relay.ErrNotPossible), audit.RotationReleased,
			[]audit.Refusal{audit.RefusedBesideOthers, audit.RefusedNotHeld, audit.RefusedUnknownRotation}},
		{"freezing again", func() error { return errors.Join(engine.Freeze(ctx, admin), engine.Freeze(ctx, admin)) }, is(relay.ErrNotPossible), audit.TriggersFrozen, []audit.Refusal{audit.RefusedAlreadySo}},
		{"thawing again", func() error { return errors.Join(engine.Thaw(ctx, admin), engine.Thaw(ctx, admin)) }, is(relay.ErrNotPossible), audit.TriggersThawed, []audit.Refusal{audit.RefusedAlreadySo}},
		{"revoking a device that nobody knows", func() error { return engine.Revoke(ctx, "@alice:example.org", "NOBODY", "", admin) }, says("no enrolled device"), audit.DeviceRevoked, []audit.Refusal{audit.RefusedUnknownDevice}},
		{"revoking another user's device", func() error { return engine.Revoke(ctx, "", "GONE", "", admin) }, says("no enrolled device"), audit.DeviceRevoked, []audit.Refusal{audit.RefusedUnknownDevice}},
		{"revoking again", func() error { return engine.Revoke(ctx, "@alice:example.org", "GONE", "", admin) }, is(relay.ErrNotPossible), audit.DeviceRevoked, []audit.Refusal{audit.RefusedAlreadySo}},
		{"revoking with a key for a reason", func() error {
			return engine.Revoke(ctx, "@alice:example.org", "GONE", "it had "+key.RevealBase64(), admin)
		}, is(audit.ErrSecretReason), audit.DeviceRevoked, []audit.Refusal{audit.RefusedReason}},
		{"a code for what is no user id", code("alice", time.Hour), says("not a Matrix user id"), audit.CodeCreated, []audit.Refusal{audit.RefusedNoUserID}},
		{"a code that lives for ever", code("@alice:example.org", 1000*time.Hour), says("30 days"), audit.CodeCreated, []audit.Refusal{audit.RefusedLife}},
		{"a restore without a reason", restore(" "), is(audit.ErrNoReason), audit.DatabaseRestored, []audit.Refusal{audit.RefusedNoReason}},
		{"a restore with two lines for a reason", restore("the disk\nbroke"), is(audit.ErrUnusualReason), audit.DatabaseRestored, []audit.Refusal{audit.RefusedReason}},
		{"releasing all", func() error { return errors.Join(release()(), release()()) }, func(err error) bool { return err == nil }, audit.RotationReleased, []audit.Refusal{audit.RefusedNotHeld}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := newest(t, db)
			if err := test.do(); !test.fails(err) {
				t.Errorf("it ended with %v", err)
			} else if err != nil && strings.Contains(err.Error(), key.RevealBase64()) {
				t.Error("the error has the key")
			}
			var why []audit.Refusal
			for _, line := range since(t, db, before) {
				if line.Outcome != string(audit.Refused) {
					continue
				}
				var detail struct{ Refusal audit.Refusal }
				check(t, json.Unmarshal(line.Detail, &detail))
				if line.Action != string(test.action) || line.Actor != admin.String() {
					t.Errorf("%s did %s", line.Actor, line.Action)
				}
				why = append(why, detail.Refusal)
			}
			if len(why) != len(test.why) {
				t.Fatalf("the log says %v", why)
			}
			for i := range why {
				if why[i] != test.why[i] {
					t.Errorf("the log says %v", why)
				}
			}
		})
	}
	if r, _, err := db.Rotation(ctx, second); err != nil || r.Held {
		t.Errorf("releasing all left one held: %v", err)
	}
}

// newest is the newest event's id, and since are the events after one.
func newest(t *testing.T, db *postgres.DB) uuid.UUID {
	t.Helper()
	key, _, err := db.LastEvent(t.Context())
	check(t, err)
	return key
}

func since(t *testing.T, db *postgres.DB, event uuid.UUID) []postgres.LogLine {
	t.Helper()
	var n int
	check(t, db.QueryRow(t.Context(), `SELECT COUNT(*) FROM audit_event WHERE id > $1`, event).Scan(&n))
	if n == 0 {
		return nil
	}
	lines, err := db.Log(t.Context(), "", n)
	check(t, err)
	return lines
}

// A status is an event where it is news, and once a day; each event has its status, and each status that was news its event.
func TestAStatusThatSaysNothingNewIsNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	count := func(query string) (n int) {
		t.Helper()
		check(t, w.db.QueryRow(ctx, query).Scan(&n))
		return n
	}
	statuses := func() int { return count(`SELECT COUNT(*) FROM report WHERE rotation_id IS NULL`) }
	events := func() int {
		return count(`SELECT COUNT(*) FROM audit_log WHERE action IN ('status.reported', 'drift.reported')`)
	}
	more := func() {
		t.Helper()
		from := statuses()
		wait(t, "some more statuses", func() bool { return statuses() >= from+3 })
	}
	wait(t, "a status that says that the key is held", func() bool { return w.status(t).HoldsKey })
	told := events()
	more()
	if now := events(); now != told {
		t.Errorf("statuses that say nothing new are %d events", now-told)
	}
	receiver := w.login(t, "RECEIVER")
	check(t, receiver.Verify(ctx, w.recoveryKey))
	wait(t, "the news of another device", func() bool { return w.logHas(t, "status.reported", `"targets_verified": 2`) })
	told = events()
	w.clock.Advance(25 * time.Hour)
	wait(t, "the status of another day", func() bool { return events() == told+1 })
	more()
	if now := events(); now != told+1 {
		t.Errorf("a day's status is %d events", now-told)
	}
	var unpaired int
	check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT id::text AS report FROM report WHERE news) r FULL JOIN
		(SELECT detail->>'report' AS report FROM audit_log WHERE action IN ('status.reported', 'drift.reported')) e USING (report) WHERE r.report IS NULL OR e.report IS NULL`).Scan(&unpaired))
	if unpaired != 0 {
		t.Errorf("%d statuses and events do not belong together", unpaired)
	}
}

// Whoever may write to anybody could fill the log: what is dropped is counted by the minute.
func TestWhatIsDroppedUnreadIsCountedByTheMinute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	bot, err := w.db.BotDevice(ctx, w.identity.UserID, "")
	check(t, err)
	w.clock.Stand() // else the minute may end by itself
	const n = 5
	for range n {
		_, err := w.stock.SendToDevice(ctx, event.ToDeviceRoomKeyRequest, &mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{
			w.identity.UserID: {bot: {Raw: map[string]any{}}}}})
		check(t, err)
	}
	dropped := func() (n int) {
		t.Helper()
		check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'dropped'`).Scan(&n))
		return n
	}
	wait(t, "the messages to be dropped", func() bool { return dropped() == n })
	if w.logHas(t, "message.dropped", "") {
		t.Error("they are told before their minute is over")
	}
	w.clock.Advance(2 * time.Minute)
	w.bot.Wake()
	wait(t, "the count", func() bool { return w.logHas(t, "message.dropped", `"refusal": "not_encrypted"`) })
	var told int
	check(t, w.db.QueryRow(ctx, `SELECT SUM((detail->>'count')::int) FROM audit_log WHERE action = 'message.dropped'`).Scan(&told))
	if told != n {
		t.Errorf("%d are told of %d", told, n)
	}
	w.bot.Wake()
	w.clock.Advance(2 * time.Minute)
	w.bot.Wake()
	time.Sleep(200 * time.Millisecond)
	check(t, w.db.QueryRow(ctx, `SELECT SUM((detail->>'count')::int) FROM audit_log WHERE action = 'message.dropped'`).Scan(&told))
	if told != n {
		t.Errorf("%d are told of %d, some of them twice", told, n)
	}
}

func TestWhoMayWriteToTheBotWhileSomebodysCodeIsOpenIsBounded(t *testing.T) {
	t.Parallel()
	db, _, _ := newDatabase(t)
	ctx := t.Context()
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x"})
	check(t, err)
	session := engine.Session(nil)
	admit := func(sender id.UserID) string {
		t.Helper()
		admission, err := session.Admit(ctx, todevice.Envelope{Sender: sender, Type: event.ToDeviceEncrypted.Type, Content: json.RawMessage("{}")})
		check(t, err)
		return admission.Drop
	}
	if why := admit("@stranger:example.org"); why != string(audit.RefusedUnknownSender) {
		t.Errorf("a stranger while no code is open: %q", why)
	}
	_, err = engine.NewCode(ctx, "@alice:example.org", time.Hour, keyheraldtest.Admin())
	check(t, err)
	taken, refused := 0, 0
	for range 200 {
		switch why := admit("@stranger:example.org"); why {
		case "":
			taken++
		case string(audit.RefusedTooMany):
			refused++
		default:
			t.Fatalf("a stranger is refused: %s", why)
		}
		if why := admit("@alice:example.org"); why != "" {
			t.Fatalf("who has an open code is refused: %s", why)
		}
	}
	// The minute may have ended once meanwhile.
	if taken < 60 || taken > 120 || taken+refused != 200 {
		t.Errorf("%d of a stranger's messages are taken, and %d not", taken, refused)
	}
}
