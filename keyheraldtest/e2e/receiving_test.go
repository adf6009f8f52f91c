package e2e

import (
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/protocol"
)

func (w *world) status(t *testing.T) protocol.Status {
	t.Helper()
	devices, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	var status protocol.Status
	check(t, json.Unmarshal(devices[0].Status, &status))
	return status
}

func TestABackupTheUserResetIsReportedAndOnlyAnUnrequestedPushOfItsKeyIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	g := newGate(t, w.hs.URL)
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })
	w.notify(t, "n1", "1")
	w.waitDone(t)

	// The device sees the reset when it is whole: between the two it would find the key in the recovery copy.
	g.refuse("/room_keys/version")
	own, version := w.ownBackup(t)
	check(t, w.stock.SetAccountData(ctx, backupSecret.Type, map[string]any{}))
	g.refuse("")
	wait(t, "the drift to be reported", func() bool { return w.logHas(t, "drift.reported", string(protocol.DriftBackup)) })
	if status := w.status(t); status.BackupVersion != version.String() {
		t.Errorf("the status names version %s", status.BackupVersion)
	}
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	fetched, err := w.stock.OwnDevices(ctx)
	check(t, err)
	send := func(content map[string]any) {
		t.Helper()
		target := fetched[devices[0].DeviceID]
		check(t, w.stock.Machine.SendEncryptedToDevice(ctx, target, event.ToDeviceSecretSend, event.Content{Raw: content}))
	}
	secret, err := backupkey.FromBytes(own.Bytes())
	check(t, err)
	before := w.status(t)
	// With a request_id it is an answer, handled as before MSC4385; nobody asked, so it is not taken.
	send(map[string]any{"request_id": "never-sent", "secret": secret.RevealBase64()})
	send(map[string]any{"request_id": "", "name": protocol.SecretMegolmBackup, "secret": secret.RevealBase64()})
	wait(t, "two more statuses", func() bool { return w.status(t).At.Time().Sub(before.At.Time()).Seconds() > 2 })
	if w.status(t).HoldsKey {
		t.Fatal("an answer that nobody asked for was taken")
	}
	send(map[string]any{"name": protocol.SecretMegolmBackup, "secret": secret.RevealBase64()})
	wait(t, "the push to be taken", func() bool { return w.status(t).HoldsKey })
}

func TestARecoveryCopyThatCannotBeWrittenStopsTheRotationUnlessAllowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	w.manage(t, "strict")
	// The user sets up recovery anew: the 4S key that the device keeps opens nothing any more.
	fresh, err := w.stock.Machine.SSSS.GenerateAndUploadKey(ctx, "")
	check(t, err)
	check(t, w.stock.Machine.SSSS.SetDefaultKeyID(ctx, fresh.ID))
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionRecoveryCopyNotWritable)
	if _, err := w.stock.GetKeyBackupLatestVersion(ctx); err == nil {
		t.Error("a key-backup version was created")
	}
	if len(w.stock.Pushes()) != 0 {
		t.Error("the key was pushed")
	}
}

func TestAStaleRecoveryCopyIsAllowedWhereTheOperatorSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	w.manage(t, "lenient", func(c *device.AccountConfig) { c.Recovery = "allow_stale" })
	fresh, err := w.stock.Machine.SSSS.GenerateAndUploadKey(ctx, "")
	check(t, err)
	check(t, w.stock.Machine.SSSS.SetDefaultKeyID(ctx, fresh.ID))
	w.notify(t, "n1", "1")
	w.waitDone(t)
	if copied := w.onlyRotation(t).Facts.RecoveryCopy; copied != protocol.RecoveryCopyStale {
		t.Errorf("the recovery copy is said to be %s", copied)
	}
}
