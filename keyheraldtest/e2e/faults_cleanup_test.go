package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// An old key backup whose grace is over goes, once. A room key that came into it late is carried over first; whatever fails
// on the way, nothing is deleted before the homeserver has all of it in the current version.
func TestAnOldKeyBackupGoesOnceAllOfItIsInTheNewOneWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t, func(w *faulty) {
		w.deviceNow, w.statusInterval = w.clock.Now, time.Second
		w.account = func(c *device.AccountConfig) { c.OldBackup.Grace = time.Hour }
	})
	ctx := t.Context()
	var held, key backupkey.Key
	var old string
	cleanedUp := func() int {
		return w.count(t, `SELECT COUNT(*) FROM audit_log WHERE action = 'progress.reported' AND detail->>'stage' = 'cleaned_up'`)
	}
	gone := func() int { return w.inStore(t, `SELECT COUNT(*) FROM carry WHERE state = 'deleted'`) }
	over := func() error {
		w.tend(t)
		switch kept, told := w.inStore(t, `SELECT COUNT(*) FROM carry WHERE state <> 'deleted'`), cleanedUp(); {
		case kept > 0:
			return fmt.Errorf("%d old versions are kept", kept)
		case told != gone():
			return fmt.Errorf("%d deletions are in the log, and %d versions are gone", told, gone())
		case w.inStore(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`) > 0:
			return errors.New("the device's outbox is not empty")
		}
		return nil
	}
	before := func() {
		held = key
		if old != "" {
			old = w.currentVersion(t)
		}
		key = w.rotate(t)
		w.checkAll(t, key)
		if old == "" { // The first one replaced what another client made.
			held, old = key, w.currentVersion(t)
			key = w.rotate(t)
			w.checkAll(t, key)
		}
		w.behind.cameLate(t, old, id.SessionID(fmt.Sprint("late", old)), held)
		w.roomKeys++
	}
	do := func(t *testing.T) {
		w.clock.Advance(2 * time.Hour)
		check(t, keyheraldtest.Until(ctx, patience, over))
		current, err := w.stock.GetKeyBackupLatestVersion(ctx)
		check(t, err)
		private, err := backup.MegolmBackupKeyFromBytes(key.Reveal())
		check(t, err)
		keys, err := w.stock.GetKeyBackupForRoom(ctx, current.Version, lateRoom)
		check(t, err)
		late, ok := keys.Sessions[id.SessionID(fmt.Sprint("late", old))]
		if _, err := late.SessionData.Decrypt(private); current.Count != w.roomKeys || !ok || err != nil {
			t.Errorf("the current version has %d of %d room keys, and the late one: %t, %v", current.Count, w.roomKeys, ok, err)
		}
		if _, err := w.stock.GetKeyBackupVersion(ctx, id.KeyBackupVersion(old)); !errors.Is(err, mautrix.MNotFound) {
			t.Errorf("the old version is said to be deleted, and is there: %v", err)
		}
	}
	// The first time there is also what another client made.
	before()
	do(t)
	w.behind.onDelete(func(version string) {
		current, err := w.stock.GetKeyBackupLatestVersion(ctx)
		if err != nil || current.Count != w.roomKeys || current.Version.String() == version {
			t.Errorf("version %s is deleted, and the current one has %v of %d room keys, %v", version, current, w.roomKeys, err)
		}
	})
	w.tryEach(t, before, do, func(label string) bool {
		return strings.Contains(label, "carry") || strings.Contains(label, "room_keys")
	})

	// What does not open may be a key, so the version stays, however often it is looked at.
	before()
	foreign, err := backupkey.Generate()
	check(t, err)
	w.behind.cameLate(t, old, "foreign", foreign)
	was := gone()
	reads := w.behind.readsOf(old)
	w.clock.Advance(2 * time.Hour)
	wait(t, "the old version to be looked at twice", func() bool { return w.behind.readsOf(old) >= reads+2 })
	if _, err := w.stock.GetKeyBackupVersion(ctx, id.KeyBackupVersion(old)); err != nil || gone() != was {
		t.Errorf("a version that was not carried over in whole is deleted: %v", err)
	}
}
