package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// told is a source that tells of reads, as the real handler and recorder take it.
type told struct{ web *echo.Echo }

func newTold(t *testing.T, engine *relay.Engine, server string) told {
	t.Helper()
	handler, err := intake.New(intake.Config{Sources: map[string]intake.Source{"kms": {
		Keys:       []intake.Key{{ID: "k", Secret: signingSecret}},
		Mapping:    intake.Mapping{Pattern: "keyherald/(?P<user>[a-z0-9]*)", User: "@{user}:" + server, KMS: "dev"},
		Disclosure: &intake.Disclosure{Rotate: true, Readers: []string{"device/{user}"}},
	}}}, intake.Deps{Recorder: engine, Log: zerolog.Nop()})
	check(t, err)
	web := echo.New()
	handler.Register(web)
	return told{web}
}

// read tells that somebody read a version, the current one for none, and returns what it came to.
func (o told) read(t *testing.T, id, user, version, reader string) (result string, opened uuid.UUID) {
	t.Helper()
	data, err := json.Marshal(map[string]string{"version": version, "reader": reader})
	check(t, err)
	answer := send(t, o.web, post{body: fmt.Sprintf(`{"specversion":"1.0","type":%q,"source":"/kms","id":%q,"subject":"keyherald/%s","datacontenttype":"application/json","data":%s}`, intake.ReadType, id, user, data)})
	var said struct {
		Result   string    `json:"result"`
		Rotation uuid.UUID `json:"rotation_id"`
	}
	if err := json.Unmarshal(answer.Body.Bytes(), &said); err != nil || answer.Code != http.StatusAccepted {
		t.Fatalf("got %d %s", answer.Code, answer.Body)
	}
	return said.Result, said.Rotation
}

// A read by anybody but the device brings a new key, by the KMS's own word.
func TestAKeyThatSomebodyElseReadIsReplaced(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	receiver := w.verifiedReceiver(t, "TARGET")
	w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	second := w.newKey(t, "2")
	w.notify(t, "n2", "2")
	w.waitDone(t)
	wait(t, "the key", func() bool { return pushesOf(t, receiver, second) == 2 })
	kms := newTold(t, w.engine, keyheraldtest.ServerName)
	rotations := func() int {
		t.Helper()
		all, err := w.db.Rotations(ctx, w.alice, false)
		check(t, err)
		return len(all)
	}

	for _, test := range []struct{ id, version, reader, want string }{
		{"own", "2", "device/alice", "expected_reader"},
		{"old", "1", "mallory", "old_version"},
		{"old-unnamed", "1", "", "old_version"},
	} {
		if result, _ := kms.read(t, test.id, "alice", test.version, test.reader); result != test.want || rotations() != 2 {
			t.Fatalf("%s: it came to %q and %d rotations", test.id, result, rotations())
		}
	}
	result, opened := kms.read(t, "read", "alice", "2", "mallory")
	if result != "accepted" || rotations() != 3 {
		t.Fatalf("a read by somebody else came to %q and %d rotations", result, rotations())
	}
	w.waitDone(t)
	r := w.onlyRotation(t)
	key, version := w.kmsKey(t, "")
	if r.ID != opened || r.Reason != rotation.ReasonDisclosed || r.Action != protocol.ActionRotate || r.Source != "kms" || r.KMS.Version != version || version != "3" || r.ReadVersion != "2" {
		t.Errorf("the rotation is %+v, and the KMS has %s", r, version)
	}
	if key.PublicKey() == second.PublicKey() {
		t.Error("the key is the one that was read")
	}
	wait(t, "the key that was made", func() bool { return pushesOf(t, receiver, key) == 2 })
	// What the KMS tells of the device's own writing and reading changes nothing.
	w.notify(t, "echo", version)
	if result, _ := kms.read(t, "own-again", "alice", version, "device/alice"); result != "expected_reader" || rotations() != 3 {
		t.Errorf("the device's own read came to %q and %d rotations", result, rotations())
	}
	// Whoever else read that version is told, and opens nothing; the same event again is not told twice.
	for _, want := range []string{"accepted", "duplicate"} {
		if result, same := kms.read(t, "another", "alice", "2", "eve"); result != want || same != opened || rotations() != 3 {
			t.Errorf("another reader of it came to %q, rotation %s of %d", result, same, rotations())
		}
	}
	for _, reader := range []string{"mallory", "eve"} {
		if !w.logHas(t, string(audit.RotationAsked), `"reader": "`+reader+`"`) {
			t.Errorf("the log does not say that %s read the key", reader)
		}
	}
	// Somebody who reads each new key is for people.
	_, held := kms.read(t, "again", "alice", version, "mallory")
	if r := w.onlyRotation(t); r.ID != held || !r.Held || r.HeldFor != rotation.HoldReadAgain || r.NextAction == "" {
		t.Errorf("the rotation is %+v", r)
	}
	if _, same := kms.read(t, "and again", "alice", "", "mallory"); same != held {
		t.Errorf("a further read opened %s beside %s", same, held)
	}
	w.checkDerived(t)
	if n, err := w.engine.Release(ctx, []uuid.UUID{held}, keyheraldtest.Admin()); err != nil || n != 1 {
		t.Fatalf("releasing it: %d, %v", n, err)
	}
	w.waitDone(t)
	if r := w.onlyRotation(t); r.ID != held || r.KMS.Version != "4" {
		t.Errorf("the rotation is %+v", r)
	}
	w.checkDerived(t)
}

// The limits of changes are those of reads, and a read that is told before the change it is about stands.
func TestReadsComeToRotationsByTheRulesOfChanges(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, database := newDatabase(t)
	clock := &keyheraldtest.Clock{}
	engine, err := relay.New(relay.Config{DB: db, Now: clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 2, Users: 3}})
	check(t, err)
	kms := newTold(t, engine, "example.org")
	for i := range 5 {
		_, opened := kms.read(t, fmt.Sprint("storm", i), fmt.Sprint("user", i), "7", "mallory")
		r, _, err := db.Rotation(ctx, opened)
		check(t, err)
		if want := i >= 3; r.Held != want || want && r.HeldFor != rotation.HoldStorm {
			t.Errorf("the rotation of user %d: held %v for %q", i, r.Held, r.HeldFor)
		}
	}
	change := func(user, version string) uuid.UUID {
		t.Helper()
		receipt, err := engine.Accept(ctx, intake.Notification{Source: "dev", ID: user + version, User: "@" + user + ":example.org",
			Secret: protocol.SecretMegolmBackup, KMS: "dev", Path: "keyherald/" + user, Version: version})
		check(t, err)
		return uuid.MustParse(receipt.RotationID)
	}
	clock.Advance(rotation.StormWindow + time.Minute)
	_, opened := kms.read(t, "before", "alice", "7", "")
	if same := change("alice", "7"); same != opened {
		t.Errorf("the change of the version that was read opened %s beside %s", same, opened)
	}
	newer := change("alice", "8")
	if old, _, err := db.Rotation(ctx, opened); err != nil || newer == opened || old.Facts.State != rotation.Superseded {
		t.Errorf("a newer version: %s, %v", old.Facts.State, err)
	}
	if result, _ := kms.read(t, "late", "alice", "7", "eve"); result != "accepted" {
		t.Errorf("a further word of the version that was read came to %q", result)
	}
	if result, _ := kms.read(t, "older", "alice", "6", "eve"); result != "old_version" {
		t.Errorf("a read of an older version came to %q", result)
	}
	// Many reads of one version are one rotation.
	var all []uuid.UUID
	for i := range 4 {
		_, opened := kms.read(t, fmt.Sprint("many", i), "bob", "1", fmt.Sprint("reader", i))
		all = append(all, opened)
	}
	for _, opened := range all {
		if opened != all[0] {
			t.Errorf("many reads of one version opened %v", all)
		}
	}
	(&world{database: database}).checkDerived(t)
	counts := countedByOutcome(t, db)
	if counts["rotation.asked accepted"] != 11 || counts["rotation.held accepted"] != 2 || counts["notification.ignored accepted"] != 1 {
		t.Errorf("the audit log has %v, want 11 reads, 2 held and one ignored", counts)
	}
}
