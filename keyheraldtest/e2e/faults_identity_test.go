package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// A user who resets his identity is found out by the next rotation, which waits until the device is enrolled again and then
// goes on, whichever write of the server fails. His device is told so once in the log.
func TestAnIdentityResetIsFoundOutWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	ctx := t.Context()
	w.checkAll(t, w.rotate(t))
	do := func(t *testing.T) {
		before := len(w.acts(t, "device.needs_enrollment"))
		key, err := backupkey.Generate()
		check(t, err)
		w.kmsVersion, err = w.setec.PutKey(ctx, kmsPath, key)
		check(t, err)
		w.notifyOf(t, w.kmsVersion)
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			w.tend(t)
			devices, err := w.db.Devices(ctx, w.alice)
			if err != nil {
				return err
			}
			r := w.onlyRotation(t)
			if r.Facts.State != rotation.WaitingForEnrollment || devices[0].State != postgres.NeedsEnrollment {
				return fmt.Errorf("the rotation is %s, and the device %s", r.Facts.State, devices[0].State)
			}
			if w.count(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`) > 0 {
				return errors.New("the bot's outbox is not empty")
			}
			return nil
		}))
		if told := len(w.acts(t, "device.needs_enrollment")); told != before+1 {
			t.Errorf("the log says %d times that the device needs enrollment, and it was so once", told-before)
		}
		w.device.stop(t)
		check(t, os.WriteFile(filepath.Join(w.dir, "recovery"), []byte(w.recoveryKey), 0o600))
		account := w.openDevice(t)
		w.enroll(t, account)
		check(t, account.Close())
		w.device.start()
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			w.tend(t)
			// What the device said before is of no use to the server, so not every report is counted there.
			if r := w.onlyRotation(t); r.KMS.Version != w.kmsVersion || r.Facts.State != rotation.Done {
				return fmt.Errorf("the rotation is %s %s", r.Facts.State, r.Facts.Attention)
			}
			for _, form := range forms {
				if n, _ := w.received.ciphertexts(payloadOf(form, key)); n == 0 {
					return fmt.Errorf("RECEIVER has no %s", form)
				}
			}
			return nil
		}))
		w.checkHomeserver(t, key)
	}
	before := func() {
		var err error
		w.recoveryKey, err = w.stock.Bootstrap(ctx, password)
		check(t, err)
		w.resign(t, "RECEIVER")
	}
	w.tryEach(t, before, do, func(label string) bool {
		// What a message of the device's makes it write, an enrollment too, is not meant here.
		return strings.HasPrefix(label, "PostgreSQL") && !strings.Contains(label, "_inbox") && (strings.Contains(label, "attempt") || strings.Contains(label, " device,"))
	})
}

// resign has the user's identity of now sign one of his devices.
func (w *faulty) resign(t *testing.T, deviceID id.DeviceID) {
	t.Helper()
	own, err := w.stock.OwnDevices(t.Context())
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(t.Context(), own[deviceID]))
}
