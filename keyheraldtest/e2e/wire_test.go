package e2e

import (
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
)

func (w *world) receiver(t *testing.T, deviceID id.DeviceID) *keyheraldtest.Receiver {
	t.Helper()
	receiver, err := keyheraldtest.NewReceiver(t.Context(), w.hs.URL, w.alice, password, deviceID, w.dir)
	check(t, err)
	t.Cleanup(func() { _ = receiver.Close() })
	return receiver
}

func TestOnTheWireAPushHasNameAndSecretAndNoRequestID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	receiver := w.receiver(t, "WIRE")
	signing, identity, err := receiver.Endpoint.Keys(ctx)
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(ctx, &id.Device{UserID: w.alice, DeviceID: "WIRE", SigningKey: signing, IdentityKey: identity}))

	key := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)

	wait(t, "both forms to arrive", func() bool {
		check(t, receiver.Receive(ctx))
		return len(receiver.Payloads()) >= 2
	})
	want := `{"name":"m.megolm_backup.v1","secret":"` + key.RevealBase64() + `"}`
	for _, form := range []string{"m.secret.send", "io.element.msc4385.secret.push"} {
		if receiver.Payloads()[form] != want {
			t.Errorf("%s does not have exactly name and secret", form)
		}
	}
	for _, times := range receiver.Decryptions() {
		if times != 1 {
			t.Errorf("a ciphertext was decrypted %d times", times)
		}
	}
}
