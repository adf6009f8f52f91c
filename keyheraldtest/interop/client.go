package interop

import (
	"context"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// client is one kind of client that pushes are for, with several devices of Alice's.
type client interface {
	// login makes a device that nobody has verified yet.
	login(ctx context.Context, device id.DeviceID) (keys, error)
	// verify cross-signs a device with the recovery key; with backup it also gets the backup's key from secret storage,
	// as a person's client would.
	verify(ctx context.Context, device id.DeviceID, backup bool) error
	offline(ctx context.Context, device id.DeviceID) error
	online(ctx context.Context, device id.DeviceID) error
	// holds is what the client's own API says of the backup.
	holds(ctx context.Context, device id.DeviceID) (held, error)
	// read decrypts a message with what the device has or gets from the backup by itself within the limit.
	read(ctx context.Context, device id.DeviceID, m message, limit time.Duration) (string, error)
	// whole fails where the client would ask its person to set up recovery again.
	whole(ctx context.Context, device id.DeviceID) error
	// send sends an Olm-encrypted to-device message.
	send(ctx context.Context, device id.DeviceID, to recipient, kind event.Type, content any) error
}

// keys are a device's public keys.
type keys struct {
	DeviceID   id.DeviceID   `json:"device_id"`
	Ed25519    id.Ed25519    `json:"ed25519"`
	Curve25519 id.Curve25519 `json:"curve25519"`
}

// held is the public key of the backup key that a device holds, and the key-backup version it goes with; empty where it
// holds none.
type held struct {
	PublicKey string              `json:"public_key"`
	Version   id.KeyBackupVersion `json:"version"`
}

type message struct {
	room id.RoomID
	id   id.EventID
	body string
}

type recipient struct {
	user   id.UserID
	device id.DeviceID
}
