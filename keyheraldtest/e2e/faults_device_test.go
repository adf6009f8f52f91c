package e2e

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Every write of the managed device on the way of a rotation fails once, before and after it took effect, and so does
// every request to its KMS.
func TestTheDevicesWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	t.Parallel()
	newFaulty(t).tryAll(t, func() {}, func(label string) bool { return !ofServer(label) })
}

// One-time keys move in few rotations, so here each one has a target that is new to the device, and homeserver and bot
// have few keys left.
func TestOneTimeKeysMayFailToBeClaimedAndToBeFilledUp(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	managed, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	var bot id.DeviceID
	check(t, w.db.QueryRow(t.Context(), `SELECT device_id FROM bot_device`).Scan(&bot))
	w.tryAll(t, func() {
		w.targets++
		w.verified(t, id.DeviceID(fmt.Sprintf("EXTRA%d", w.targets)))
		// The next answer to a sync says that there are few left.
		w.drain(t, w.alice, managed[0].DeviceID)
		w.drain(t, w.identity.UserID, bot)
	}, func(label string) bool {
		return strings.Contains(label, " keys/") || strings.Contains(label, "crypto_account")
	})
}

// A key that the device makes is made once: what it journals of it, and each request to the KMS, fails once.
func TestAKeyThatTheDeviceMakesIsWrittenOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	w.asked = true
	versions := func() int {
		all, err := w.kms.Versions(t.Context(), kmsPath)
		if err != nil {
			return 0
		}
		return len(all)
	}
	made := 0
	w.tryAll(t, func() {
		if n := versions(); made > 0 && n != made {
			t.Errorf("the KMS has %d versions after %d rotations", n, made)
		}
		made++
	}, func(label string) bool {
		return strings.HasPrefix(label, "device to KMS") || strings.Contains(label, "INSERT sealed") || strings.Contains(label, "sealed, ")
	})
}

// drain claims a device's one-time keys until so few are left that it has to make new ones.
func (w *faulty) drain(t *testing.T, user id.UserID, device id.DeviceID) {
	t.Helper()
	for range 26 {
		_, err := w.stock.ClaimKeys(t.Context(), &mautrix.ReqClaimKeys{OneTimeKeys: mautrix.OneTimeKeysRequest{
			user: {device: id.KeyAlgorithmSignedCurve25519}}})
		check(t, err)
	}
}
