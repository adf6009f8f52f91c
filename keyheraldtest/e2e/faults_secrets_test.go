package e2e

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/protocol"
)

// What another device asks for is answered once and told once, whatever fails on the way.
func TestASecretIsAnsweredOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t, func(w *faulty) {
		w.account = func(c *device.AccountConfig) {
			c.Answer.Names, c.Answer.PerHour = []string{protocol.SecretMegolmBackup}, 10_000
		}
	})
	key := w.rotate(t)
	w.checkAll(t, key)
	n := 0
	do := func(t *testing.T) {
		n++
		requestID := fmt.Sprintf("asks-%d-times", n)
		w.request(t, w.managedID(t), event.SecretRequestEventContent{Action: event.SecretRequestRequest, Name: protocol.SecretMegolmBackup,
			RequestID: requestID, RequestingDeviceID: "RECEIVER"})
		check(t, keyheraldtest.Until(t.Context(), patience, func() error {
			if err := w.quiet(t); err != nil {
				return err
			}
			if told := len(w.acts(t, "secret_request.answered")); told < n {
				return fmt.Errorf("the log has %d of %d answers", told, n)
			}
			if answers, _ := w.received.having(requestID); answers == 0 {
				return fmt.Errorf("there is no answer to %s", requestID)
			}
			return nil
		}))
		if distinct, times := w.received.having(requestID); distinct != 1 || times != 1 {
			t.Errorf("RECEIVER got %d answers and decrypted %d times", distinct, times)
		}
		if told := len(w.acts(t, "secret_request.answered")); told != n {
			t.Errorf("the log has %d answers, and %d were given", told, n)
		}
		w.checkCiphertexts(t, key)
	}
	w.tryEach(t, func() {}, do, func(label string) bool {
		return !ofServer(label) && (strings.Contains(label, "asked") || strings.Contains(label, " act") || strings.Contains(label, "outbox") ||
			strings.Contains(label, "sendToDevice") || strings.Contains(label, "sync"))
	})
}

// What a person decides over a secret that waits is carried out and told once. Where he hears that it failed, either it
// waits still and the second try is through, or it was done.
func TestASecretThatWaitsIsDecidedOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t, func(w *faulty) {
		w.account = func(c *device.AccountConfig) {
			c.Receive.Accept = map[string]string{protocol.SecretSelfSigning: "ask"}
		}
	})
	ctx := t.Context()
	w.checkAll(t, w.rotate(t))
	seed := w.stock.Machine.CrossSigningKeys.SelfSigningKey.Seed()
	told := map[string]int{}
	parked := func() int { return w.inStore(t, `SELECT COUNT(*) FROM received WHERE state = 'parked'`) }
	decide := func(t *testing.T, accept bool, fault faults.Fault) (points []faults.Point) {
		t.Helper()
		own, err := w.stock.OwnDevices(ctx)
		check(t, err)
		check(t, w.stock.Machine.SendEncryptedToDevice(ctx, own[w.managedID(t)], event.ToDeviceSecretPush, event.Content{Raw: map[string]any{
			"name": protocol.SecretSelfSigning, "secret": base64.RawStdEncoding.EncodeToString(seed)}}))
		wait(t, "the secret to wait", func() bool { return parked() == 1 })
		w.device.stop(t)
		try := func() (int, error) {
			account := w.openDevice(t)
			defer func() { check(t, account.Close()) }()
			if accept {
				kept, err := account.AcceptPending(ctx)
				return len(kept), err
			}
			dropped, err := account.RejectPending(ctx)
			return len(dropped), err
		}
		w.faults.Arm(fault, nil)
		n, err := try()
		// The server writes beside it, when its time is.
		points = slices.DeleteFunc(w.faults.Points(), func(point faults.Point) bool { return ofServer(point.Label) })
		if w.faults.Fired() != (fault.Label != "") {
			t.Fatalf("the fault did not happen: %v", w.faults.Points())
		}
		if err != nil && parked() == 1 {
			n, err = try()
		}
		if err == nil && n != 1 || err != nil && fault.Label == "" {
			t.Errorf("%d were decided, %v", n, err)
		}
		w.device.start()
		if accept {
			told["secret.accepted"]++
			told["secret.kept"]++
		} else {
			told["secret.rejected"]++
		}
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			for action, want := range told {
				if got := len(w.acts(t, action)); got < want {
					return fmt.Errorf("the log has %d of %d %s", got, want, action)
				}
			}
			return w.quiet(t)
		}))
		for action, want := range told {
			if got := len(w.acts(t, action)); got != want {
				t.Errorf("the log has %d %s, and it happened %d times", got, action, want)
			}
		}
		if left := w.inStore(t, `SELECT COUNT(*) FROM received`); left != 0 {
			t.Errorf("%d secrets are left", left)
		}
		return points
	}
	for name, accept := range map[string]bool{"accepted": true, "rejected": false} {
		t.Run(name, func(t *testing.T) {
			var dry [2][]faults.Point
			for i := range dry {
				dry[i] = decide(t, accept, faults.Fault{})
			}
			table := faults.Table(dry[:]...)
			if len(table) == 0 {
				t.Fatal("no write was found")
			}
			for _, fault := range table {
				t.Run(fault.String(), func(t *testing.T) { decide(t, accept, fault) })
			}
		})
	}
}
