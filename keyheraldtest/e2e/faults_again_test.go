package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

// quiet says what is still on its way between device and server.
func (w *faulty) quiet(t *testing.T) error {
	t.Helper()
	w.tend(t)
	for what, n := range map[string]int{
		"the bot's inbox":      w.count(t, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'pending'`),
		"the bot's outbox":     w.count(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`),
		"the device's inbox":   w.inStore(t, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'pending'`),
		"the device's outbox":  w.inStore(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`),
		"the device's rounds":  w.inStore(t, `SELECT COUNT(*) FROM push_round WHERE ended = ''`),
		"the device's journal": w.inStore(t, `SELECT COUNT(*) FROM journal WHERE NOT ended`),
		"what was reported": w.inStore(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'sent' AND (key LIKE 'report/%' OR key LIKE 'status/%')`) -
			w.count(t, `SELECT COUNT(*) FROM report`),
	} {
		if n != 0 {
			return fmt.Errorf("%s: %d", what, n)
		}
	}
	return nil
}

// A device that is verified after a rotation gets the key once, and nobody else gets it again, whatever fails on the way. No
// status comes to the rescue: the next one is an hour away.
func TestADeviceThatIsVerifiedAfterwardsIsPushedToOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	ctx := t.Context()
	key := w.rotate(t)
	w.checkAll(t, key)
	r := w.onlyRotation(t)
	n := 0
	do := func(t *testing.T) {
		n++
		name := id.DeviceID(fmt.Sprint("LATER", n))
		later := w.verified(t, name)
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			if err := w.quiet(t); err != nil {
				return err
			}
			if got := pushesOf(t, later, key); got < len(forms) {
				return fmt.Errorf("it has %d pushes", got)
			}
			deliveries, err := w.db.Deliveries(ctx, r.ID)
			if err != nil {
				return err
			}
			for _, delivery := range deliveries {
				if delivery.DeviceID == name && delivery.Outcome == protocol.OutcomeSent {
					return nil
				}
			}
			return errors.New("the server does not know that it was pushed to")
		}))
		if got := pushesOf(t, later, key); got != len(forms) {
			t.Errorf("it has %d pushes, and there are %d forms", got, len(forms))
		}
		for _, times := range later.Decryptions() {
			if times != 1 {
				t.Errorf("a ciphertext was decrypted %d times", times)
			}
		}
		w.checkCiphertexts(t, key)
	}
	w.tryEach(t, func() {}, do, func(label string) bool { return !ofServer(label) })
}

// An admin's word that a key is to be pushed once more is carried out once, and where he hears that it failed it may have
// been kept.
func TestAPushThatIsAskedForIsMadeOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	ctx := t.Context()
	key := w.rotate(t)
	w.checkAll(t, key)
	r := w.onlyRotation(t)
	asked := func() int { return len(w.acts(t, "rotation.repeat_asked")) }
	do := func(t *testing.T) {
		before := asked()
		had, _ := w.received.ciphertexts(payloadOf(forms[0], key))
		rounds := had + 1
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			w.tend(t)
			if asked() > before {
				return nil // What was said to have failed had been committed.
			}
			return w.engine.Repeat(ctx, r.ID, keyheraldtest.Admin())
		}))
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			if err := w.quiet(t); err != nil {
				return err
			}
			for _, form := range forms {
				if distinct, _ := w.received.ciphertexts(payloadOf(form, key)); distinct < rounds {
					return fmt.Errorf("RECEIVER has %d of %d rounds as %s", distinct, rounds, form)
				}
			}
			return nil
		}))
		for _, form := range forms {
			if distinct, times := w.received.ciphertexts(payloadOf(form, key)); distinct != rounds || times != rounds {
				t.Errorf("RECEIVER got %d ciphertexts of %s in %d rounds, and decrypted %d times", distinct, form, rounds, times)
			}
		}
		if n := asked() - before; n != 1 {
			t.Errorf("the log says that it was asked for %d times", n)
		}
	}
	w.tryEach(t, func() {}, do, func(label string) bool {
		return strings.Contains(label, "push_round") || strings.Contains(label, "repeat") || strings.Contains(label, "outbox") || strings.Contains(label, "sendToDevice")
	})
}
