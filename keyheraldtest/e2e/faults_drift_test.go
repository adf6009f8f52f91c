package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// holds says what the current key-backup version lacks to be a key's with all of the history in it.
func (w *faulty) holds(t *testing.T, key backupkey.Key) error {
	t.Helper()
	current, err := w.stock.GetKeyBackupLatestVersion(t.Context())
	if err != nil {
		return err
	}
	if !key.Fits(string(current.AuthData.PublicKey)) || current.Count != w.roomKeys {
		return fmt.Errorf("key-backup version %s has %d of %d room keys, and the key's is it: %t", current.Version, current.Count, w.roomKeys, key.Fits(string(current.AuthData.PublicKey)))
	}
	return nil
}

// A key backup of the user's own is made the company's once: his key is one version of the KMS's, and the rotation that
// follows makes no other key backup and loses nothing, whichever request to the KMS fails.
func TestAResetThatIsAdoptedIsWrittenOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t, func(w *faulty) {
		w.statusInterval = time.Second
		w.account = func(c *device.AccountConfig) { c.OnDrift = device.DriftAdopt }
	})
	ctx := t.Context()
	w.checkAll(t, w.rotate(t))
	do := func(t *testing.T) {
		before, err := w.kms.Versions(ctx, kmsPath)
		check(t, err)
		own := w.resetBackup(t)
		w.roomKeys++
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			w.tend(t)
			value, err := w.kms.Fetch(ctx, kmsPath, "")
			if err == nil && value.Key.PublicKey() != own.PublicKey() {
				err = errors.New("the KMS does not have the user's key")
			}
			w.kmsVersion = value.Version
			return err
		}))
		w.notifyOf(t, w.kmsVersion)
		check(t, keyheraldtest.Until(ctx, patience, func() error { w.tend(t); return errors.Join(w.unsettled(t, own), w.holds(t, own)) }))
		after, err := w.kms.Versions(ctx, kmsPath)
		check(t, err)
		if len(after) != len(before)+1 {
			t.Errorf("the KMS had %d versions, and has %d", len(before), len(after))
		}
		w.checkCiphertexts(t, own)
	}
	w.tryEach(t, func() {}, do, func(label string) bool { return strings.HasPrefix(label, "device to KMS") })
}

// The company's key is made the user's again with what his own key backup held, in one more version, whichever write fails.
func TestAResetThatIsReclaimedLosesNothingWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t, func(w *faulty) {
		w.deviceNow, w.statusInterval = w.clock.Now, time.Second
		w.account = func(c *device.AccountConfig) { c.OnDrift = device.DriftReclaim }
	})
	ctx := t.Context()
	key := w.rotate(t)
	w.checkAll(t, key)
	reclaimed := 1
	do := func(t *testing.T) {
		reclaimed++
		w.clock.Advance(25 * time.Hour)
		w.resetBackup(t)
		w.roomKeys++
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			if err := errors.Join(w.quiet(t), w.holds(t, key)); err != nil {
				return err
			}
			for _, form := range forms {
				if distinct, _ := w.received.ciphertexts(payloadOf(form, key)); distinct < reclaimed {
					return fmt.Errorf("RECEIVER has %d of %d pushes", distinct, reclaimed)
				}
			}
			return nil
		}))
		for _, form := range forms {
			if distinct, times := w.received.ciphertexts(payloadOf(form, key)); distinct != reclaimed || times != reclaimed {
				t.Errorf("RECEIVER got %d ciphertexts of %s for %d versions, and decrypted %d times", distinct, form, reclaimed, times)
			}
		}
	}
	w.tryEach(t, func() {}, do, func(label string) bool {
		return !ofServer(label) && (strings.Contains(label, "journal") || strings.Contains(label, "carry") || strings.Contains(label, "room_keys") || strings.Contains(label, "account_data"))
	})
}
