package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

// resetBackup makes a key-backup version of the user's own, with a room key that only it has, as a client does that
// leaves the recovery copy true.
func (w *world) resetBackup(t *testing.T) backupkey.Key {
	t.Helper()
	key, err := backup.NewMegolmBackupKey()
	check(t, err)
	// What goes into it is ready before, since the device may notice at once.
	data, err := backup.EncryptSessionDataWithPubkey(key.PublicKey(), backup.MegolmSessionData{Algorithm: id.AlgorithmMegolmV1, SessionKey: "only this backup has it"})
	check(t, err)
	encoded, err := json.Marshal(data)
	check(t, err)
	w.resets++
	request := &mautrix.ReqKeyBackup{Rooms: map[id.RoomID]mautrix.ReqRoomKeyBackup{"!own:" + keyheraldtest.ServerName: {
		Sessions: map[id.SessionID]mautrix.ReqKeyBackupData{id.SessionID(fmt.Sprint("session", w.resets)): {SessionData: encoded}}}}}
	version, err := w.stock.CreateBackup(t.Context(), key, w.recoveryKey)
	check(t, err)
	_, err = w.stock.PutKeysInBackup(t.Context(), version, request)
	check(t, err)
	own, err := backupkey.FromBytes(key.Bytes())
	check(t, err)
	return own
}

func TestAResetByTheUserIsReportedAndLeftAsItIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	own := w.resetBackup(t)
	wait(t, "the drift to be reported", func() bool {
		d := w.status(t).Drifted
		return d != nil && d.Kind == protocol.DriftBackup
	})
	before := w.status(t).At.Time()
	wait(t, "some statuses", func() bool { return w.status(t).At.Time().Sub(before) > 2*time.Second })
	current, err := w.stock.GetKeyBackupLatestVersion(t.Context())
	check(t, err)
	if !own.Fits(string(current.AuthData.PublicKey)) {
		t.Error("the user's own key backup is not the current one any more")
	}
	if _, version := w.kmsKey(t, ""); version != "1" {
		t.Errorf("the KMS has version %s", version)
	}
}

func TestAResetByTheUserIsAdoptedWhereTheAccountSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	receiver := w.verifiedReceiver(t, "TARGET")
	w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.OnDrift = device.DriftAdopt })
	w.notify(t, "n1", "1")
	w.waitDone(t)
	own := w.resetBackup(t)
	version := ""
	wait(t, "the KMS to have the user's key", func() bool {
		var key backupkey.Key
		key, version = w.kmsKey(t, "")
		return key.PublicKey() == own.PublicKey()
	})
	w.notify(t, "told", version)
	w.waitDone(t)
	wait(t, "the push", func() bool { return pushesOf(t, receiver, own) == 2 })
	wait(t, "the drift to be over", func() bool { return w.status(t).Drifted == nil && w.status(t).HoldsKey })
}

func TestAResetByTheUserIsReclaimedOnceADayWithWhatItHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.deviceNow = w.clock.Now
	key := w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.OnDrift = device.DriftReclaim })
	w.notify(t, "n1", "1")
	w.waitDone(t)
	ours := func() (bool, int) {
		t.Helper()
		current, err := w.stock.GetKeyBackupLatestVersion(ctx)
		check(t, err)
		return key.Fits(string(current.AuthData.PublicKey)), current.Count
	}
	w.resetBackup(t)
	wait(t, "the KMS's key to be the user's again, with the room key of his own", func() bool { is, n := ours(); return is && n == 1 })
	settled := func() bool {
		s := w.status(t)
		return s.Drifted == nil && s.LastStage == protocol.StagePushed && w.inStore(t, "managed", `SELECT COUNT(*) FROM journal WHERE NOT ended`) == 0
	}
	wait(t, "the device to be at its end", settled)
	w.resetBackup(t)
	wait(t, "the drift to be reported", func() bool { return w.status(t).Drifted != nil })
	before := w.status(t).At.Time()
	wait(t, "some statuses", func() bool { return w.status(t).At.Time().Sub(before) > 3*time.Second })
	if is, _ := ours(); is {
		t.Error("a second reset within a day is fought")
	}
	w.clock.Advance(25 * time.Hour)
	wait(t, "it to be reclaimed the next day", func() bool { is, n := ours(); return is && n == 2 })
}
