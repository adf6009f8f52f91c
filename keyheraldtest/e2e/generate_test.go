package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms/filesecret"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// kmsKey is the key that the directory KMS has as a version, the current one for an empty version.
func (w *world) kmsKey(t *testing.T, version string) (backupkey.Key, string) {
	t.Helper()
	kms, err := filesecret.New(filesecret.Config{Dir: w.dir + "/kms"})
	check(t, err)
	value, err := kms.Fetch(t.Context(), "keyherald/alice", version)
	check(t, err)
	check(t, value.Verify())
	return value.Key, value.Version
}

func TestADeviceMakesTheKeyItselfAndTheKMSsWordAboutItIsAnEcho(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	receiver, excluded := w.verifiedReceiver(t, "TARGET"), w.verifiedReceiver(t, "STOLEN")
	first := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	wait(t, "the first key", func() bool { return pushesOf(t, excluded, first) == 2 })

	grace := time.Hour
	asked, err := w.engine.Rotate(ctx, relay.RotateRequest{UserID: w.alice, Exclude: []id.DeviceID{"STOLEN"}, Reason: rotation.ReasonCompromise, OldBackupGrace: &grace}, keyheraldtest.Admin())
	check(t, err)
	w.waitDone(t)
	r := w.onlyRotation(t)
	key, version := w.kmsKey(t, "")
	if r.ID != asked || r.KMS.Version != version || version == "1" || r.Action != protocol.ActionRotate || r.Reason != rotation.ReasonCompromise {
		t.Errorf("the rotation is %s of version %s, and the KMS has %s", r.ID, r.KMS.Version, version)
	}
	if key.PublicKey() == first.PublicKey() {
		t.Error("the key is the old one")
	}
	wait(t, "the key that was made", func() bool { return pushesOf(t, receiver, key) == 2 })
	// The KMS tells of what the device wrote: no rotation comes of it.
	w.notify(t, "echo", version)
	if again := w.onlyRotation(t); again.ID != asked || again.Facts.State != rotation.Done {
		t.Errorf("the echo opened rotation %s, which is %s", again.ID, again.Facts.State)
	}
	if n := pushesOf(t, excluded, key); n != 0 {
		t.Errorf("the excluded device got %d pushes", n)
	}
	wait(t, "the status with the old key backup", func() bool { return len(w.status(t).OldBackups) > 0 })
	old := w.status(t).OldBackups
	if len(old) != 1 || time.Until(old[0].Until.Time()) > time.Hour {
		t.Errorf("the old key backups are %+v", old)
	}

	// An exclusion binds later rotations as well, and the repetition that lifts it.
	second, err := w.engine.Rotate(ctx, relay.RotateRequest{UserID: w.alice}, keyheraldtest.Admin())
	check(t, err)
	w.waitDone(t)
	newest, _ := w.kmsKey(t, "")
	wait(t, "the next key", func() bool { return pushesOf(t, receiver, newest) == 2 })
	if n := pushesOf(t, excluded, newest); n != 0 {
		t.Errorf("the excluded device got %d pushes of the next key", n)
	}
	check(t, w.engine.Include(ctx, w.alice, "STOLEN", keyheraldtest.Admin()))
	if err := w.engine.Include(ctx, w.alice, "STOLEN", keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("lifting it again gave %v", err)
	}
	check(t, w.engine.Repeat(ctx, second, keyheraldtest.Admin()))
	wait(t, "the repetition", func() bool { return pushesOf(t, excluded, newest) >= 2 && pushesOf(t, receiver, newest) == 4 })
}

// The KMS's word comes before the device's: it is an echo all the same.
func TestAnEchoThatComesBeforeTheDevicesWordOpensNoRotation(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	g := newGate(t, w.hs.URL)
	w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })
	w.notify(t, "n1", "1")
	w.waitDone(t)
	g.set(true) // nothing that the device says is heard
	asked, err := w.engine.Rotate(ctx, relay.RotateRequest{UserID: w.alice}, keyheraldtest.Admin())
	check(t, err)
	var version string
	wait(t, "the device to write to the KMS", func() bool {
		_, version = w.kmsKey(t, "")
		return version != "1"
	})
	w.notify(t, "echo", version)
	g.set(false)
	w.waitDone(t)
	if r := w.onlyRotation(t); r.ID != asked || r.KMS.Version != version {
		t.Errorf("the newest rotation is %s of version %s", r.ID, r.KMS.Version)
	}
}

func TestARotationThatCannotBeAskedForIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, _ := newDatabase(t)
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x"})
	check(t, err)
	for name, test := range map[string]struct {
		request relay.RotateRequest
		want    string
	}{
		"a user id that is none":       {relay.RotateRequest{UserID: "alice"}, "not a Matrix user id"},
		"a user whose key is nobody's": {relay.RotateRequest{UserID: "@alice:example.org"}, "--kms"},
		"a KMS without a path":         {relay.RotateRequest{UserID: "@alice:example.org", KMS: "dev"}, "name both"},
	} {
		if _, err := engine.Rotate(ctx, test.request, keyheraldtest.Admin()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	events, err := db.Log(ctx, "", 10)
	check(t, err)
	refused := 0
	for _, e := range events {
		if e.Action == string(audit.RotationAsked) && e.Outcome == string(audit.Refused) {
			refused++
		} else if e.Action != string(audit.DatabaseMigrated) {
			t.Errorf("it came to %s", e.Action)
		}
	}
	if refused != 3 {
		t.Errorf("%d events say that it was refused", refused)
	}
}
