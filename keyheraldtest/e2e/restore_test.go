package e2e

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/rotation"
)

func TestADatabaseThatWentBackIsNotUsedUntilTheRestoreIsDeclared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	w.manage(t, "managed")
	w.manage(t, "second")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	dump, err := cluster.Dump(ctx, w.database.Name)
	check(t, err)
	w.newKey(t, "2")
	w.notify(t, "n2", "2")
	w.waitDone(t)
	before := w.botDevices(t)

	check(t, cluster.Restore(ctx, w.database, dump))
	wait(t, "the bot to see that the database went back", func() bool { return !w.bot.Leading() })
	wait(t, "the log to say that it stands still", func() bool { return w.logHas(t, "bot.stopped", "went_back") })
	fresh := w.newKey(t, "3")
	w.notify(t, "n3", "3")

	device, err := appservice.NewDeviceID()
	check(t, err)
	restored, err := w.engine.Restore(ctx, device, "the disk was lost", keyheraldtest.Admin())
	check(t, err)
	if restored.OldDevice != before[0] || restored.NewDevice != device {
		t.Errorf("the restore says %+v, and the bot's device was %s", restored, before)
	}
	w.waitDone(t)
	w.notify(t, "n2", "2")
	if late := w.onlyRotation(t); late.Facts.State != rotation.Superseded {
		t.Errorf("the lost notification, sent again, is %s", late.Facts.State)
	}
	if current, err := w.stock.GetKeyBackupLatestVersion(ctx); err != nil || !fresh.Fits(current.AuthData.PublicKey.String()) {
		t.Errorf("the current key-backup version is not the newest key's: %v", err)
	}
	wait(t, "the old device to be logged out", func() bool {
		now := w.botDevices(t)
		return len(now) == 1 && now[0] == device
	})
	seen := map[id.DeviceID]bool{}
	wait(t, "statuses of both managed devices through the new device", func() bool {
		devices, err := w.db.Devices(ctx, w.alice)
		check(t, err)
		for _, d := range devices {
			if d.LastSeen.After(restored.Since) {
				seen[d.DeviceID] = true
			}
		}
		return len(seen) == 2
	})
	// Not one message may have come out of the restored ratchets.
	lines, err := w.db.Log(ctx, "", 1000)
	check(t, err)
	var after []string
	for _, line := range lines {
		if line.Time.After(restored.Since) {
			after = append(after, line.Action)
		}
	}
	declared := slices.Index(after, "database.restored")
	if declared < 0 || slices.Contains(after[:declared], "trigger.queued") || !slices.Contains(after[declared:], "device.greeted") {
		t.Errorf("after the restore the audit log has %v", after)
	}
}

// botDevices are the bot's devices, as the homeserver tells them to Alice.
func (w *world) botDevices(t *testing.T) []id.DeviceID {
	t.Helper()
	bot := id.NewUserID("keyherald", keyheraldtest.ServerName)
	answer, err := w.stock.QueryKeys(t.Context(), &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{bot: {}}})
	check(t, err)
	var devices []id.DeviceID
	for device := range answer.DeviceKeys[bot] {
		devices = append(devices, device)
	}
	return devices
}
