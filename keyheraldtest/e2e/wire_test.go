package e2e

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// wire is an instrumented receiver: it keeps the decrypted payloads byte for byte, and counts by ciphertext.
type wire struct {
	payloads map[string]string
	hashes   map[[32]byte]int
}

func (w *wire) Admit(context.Context, todevice.Envelope) (todevice.Admission, error) {
	return todevice.Admission{}, nil
}

func (w *wire) Handle(_ context.Context, message *todevice.Message) error {
	w.payloads[message.Type] = string(message.Content)
	w.hashes[message.CiphertextHash]++
	return nil
}

func (w *wire) Undecryptable(context.Context, todevice.Envelope, string) error { return nil }

// endpoint logs a device in whose every message the test sees.
func (w *world) endpoint(t *testing.T, deviceID id.DeviceID) *todevice.Endpoint {
	t.Helper()
	ctx := t.Context()
	client, err := mautrix.NewClient(w.hs.URL, "", "")
	check(t, err)
	_, err = client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: deviceID, StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: w.alice.String()}})
	check(t, err)
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, string(deviceID)+".wire.db")+"?_txlock=immediate&_pragma=journal_mode(WAL)")
	check(t, err)
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	for _, schema := range todevice.Databases(db) {
		check(t, schema.Upgrade(ctx))
	}
	endpoint, err := todevice.New(todevice.Config{DB: db, Client: client, AccountID: "wire", PickleKey: make([]byte, 32)})
	check(t, err)
	check(t, endpoint.PublishKeys(ctx))
	return endpoint
}

func TestOnTheWireAPushHasNameAndSecretAndNoRequestID(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	endpoint := w.endpoint(t, "WIRE")
	signing, identity, err := endpoint.Keys(ctx)
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(ctx, &id.Device{UserID: w.alice, DeviceID: "WIRE", SigningKey: signing, IdentityKey: identity}))

	key, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, "1", key, key.PublicKey())
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	wait(t, "the rotation to be done", func() bool { return w.onlyRotation(t).Facts.State == rotation.Done })

	receiver := &wire{map[string]string{}, map[[32]byte]int{}}
	wait(t, "both forms to arrive", func() bool {
		check(t, endpoint.Sync(ctx, time.Second))
		check(t, endpoint.Process(ctx, receiver))
		return len(receiver.payloads) >= 2
	})
	want := `{"name":"m.megolm_backup.v1","secret":"` + key.RevealBase64() + `"}`
	for _, form := range []string{"m.secret.send", "io.element.msc4385.secret.push"} {
		if receiver.payloads[form] != want {
			t.Errorf("%s does not have exactly name and secret", form)
		}
	}
	for _, times := range receiver.hashes {
		if times != 1 {
			t.Errorf("a ciphertext was decrypted %d times", times)
		}
	}
}
