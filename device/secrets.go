package device

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// secretNames are the secrets this program knows how to check. No other is asked for, taken or given.
var secretNames = []string{protocol.SecretMegolmBackup, protocol.SecretMaster, protocol.SecretSelfSigning, protocol.SecretUserSigning}

// crossSigningNames is the order in which they are worked on; each is also the type of its entry in secret storage.
var crossSigningNames = []string{protocol.SecretMaster, protocol.SecretSelfSigning, protocol.SecretUserSigning}

// secretsOnce is the part of the work loop that is about secrets of other devices and for them.
func (a *Account) secretsOnce(ctx context.Context) {
	a.warn(ctx, a.resumeReplacing(ctx), "The new recovery key could not be looked after yet")
	var received, asked, asking, acts bool
	// One look for all of them: most of the time there is nothing, in a thousand accounts.
	err := a.store.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM received WHERE state = 'new'), EXISTS (SELECT 1 FROM asked WHERE state = 'open'),
		EXISTS (SELECT 1 FROM asking WHERE state <> 'closed'), EXISTS (SELECT 1 FROM act)`).Scan(&received, &asked, &asking, &acts)
	if err != nil {
		a.warn(ctx, err, "The journal of secrets could not be read")
		return
	}
	if received {
		_, err := a.adopt(ctx)
		a.warn(ctx, err, "A received secret could not be checked yet")
	}
	if asked {
		a.warn(ctx, a.answer(ctx), "A request for a secret could not be answered yet")
	}
	if asking {
		a.warn(ctx, a.ask(ctx), "Other devices could not be asked for a secret yet")
	}
	if acts {
		a.warn(ctx, a.sendStatus(ctx), "The status could not be sent")
	}
}

// ownDevice is the device of our own user that a decrypted message came from, and whether its chain reaches the pinned
// master key.
func (a *Account) ownDevice(message *todevice.Message, p pin) (device crosssigning.Device, trusted bool) {
	device, known := message.SenderDevice()
	trusted = known && message.Sender == a.config.UserID && trustedBy(p, *message.Identity, device) && device.DeviceID != a.client.DeviceID
	return device, trusted
}

// trustedBy reports whether a device of the user's may be trusted with his secrets.
func trustedBy(p pin, identity crosssigning.Identity, device crosssigning.Device) bool {
	return p.OwnMasterKey != "" && identity.PinnedTo(p.OwnMasterKey) && device.CrossSigned && !device.Dehydrated
}

// peers are the user's other devices that may be asked for his secrets, and be given them.
func (a *Account) peers(ctx context.Context, identity crosssigning.Identity, p pin) ([]crosssigning.Device, error) {
	excluded, err := a.excluded(ctx)
	if err != nil {
		return nil, err
	}
	var peers []crosssigning.Device
	for _, device := range identity.Devices {
		if trustedBy(p, identity, device) && device.DeviceID != a.client.DeviceID && !slices.Contains(excluded, device.DeviceID) {
			peers = append(peers, device)
		}
	}
	slices.SortFunc(peers, func(x, y crosssigning.Device) int { return strings.Compare(x.DeviceID.String(), y.DeviceID.String()) })
	return peers, nil
}

// sendPlain sends a message that holds no secret, outside Olm as its specification has it, to devices of our own user.
// The same transaction id makes a repetition harmless.
func (a *Account) sendPlain(ctx context.Context, eventType, transaction string, content any, devices ...id.DeviceID) error {
	messages := map[id.DeviceID]any{}
	for _, device := range devices {
		messages[device] = content
	}
	url := a.client.BuildClientURL("v3", "sendToDevice", eventType, transaction)
	_, err := a.client.MakeRequest(ctx, http.MethodPut, url, map[string]any{"messages": map[id.UserID]map[id.DeviceID]any{a.config.UserID: messages}}, nil)
	if err != nil {
		return fmt.Errorf("sending %s: %w", eventType, err)
	}
	return nil
}

// seedOf reads a cross-signing private key as m.secret.send carries it, base64 with or without padding.
func seedOf(text string) (olm.PKSigning, error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(text), "="))
	if err != nil || len(raw) != 32 {
		return nil, errors.New("not a cross-signing key: 32 bytes in base64 are needed")
	}
	return olm.NewPKSigningFromSeed(raw)
}

// publicKeyOf is what a secret of this name derives: the text that version, identity or request must name. An error
// never holds the secret.
func publicKeyOf(name, secret string) (string, error) {
	if name == protocol.SecretMegolmBackup {
		key, err := backupkey.Parse(secret)
		if err != nil {
			return "", err
		}
		return key.PublicKey(), nil
	}
	key, err := seedOf(secret)
	if err != nil {
		return "", err
	}
	return key.PublicKey().String(), nil
}

// publicCrossSigningKey is the identity's public key for a secret's name; empty where the homeserver presents none.
func publicCrossSigningKey(identity crosssigning.Identity, name string) string {
	switch name {
	case protocol.SecretMaster:
		return identity.MasterKey.String()
	case protocol.SecretSelfSigning:
		return identity.SelfSigningKey.String()
	case protocol.SecretUserSigning:
		return identity.UserSigningKey.String()
	}
	return ""
}

// keepSecret keeps a secret that was checked.
func (a *Account) keepSecret(ctx context.Context, name, secret string) error {
	if name == protocol.SecretMegolmBackup {
		key, err := backupkey.Parse(secret)
		if err != nil {
			return err
		}
		return a.store.putKey(ctx, key)
	}
	key, err := seedOf(secret)
	if err != nil {
		return err
	}
	return a.store.putSealed(ctx, "cross_signing/"+name, key.Seed())
}

// derives reports whether a cross-signing private key is the public key's.
func derives(seed []byte, publicKey string) bool {
	key, err := olm.NewPKSigningFromSeed(seed)
	return err == nil && key.PublicKey().String() == publicKey
}

// crossSigningSeed is the private key for one of the identity's public keys: the one that another device gave, or that
// secret storage has and the kept 4S key opens. It is nil where neither has one that fits the identity.
func (a *Account) crossSigningSeed(ctx context.Context, name string, identity crosssigning.Identity) ([]byte, error) {
	want := publicCrossSigningKey(identity, name)
	if want == "" {
		return nil, nil
	}
	seed, err := a.store.sealedValue(ctx, "cross_signing/"+name)
	if err != nil || seed != nil && derives(seed, want) {
		return seed, err
	}
	raw, err := a.store.sealedValue(ctx, "4s")
	if err != nil || raw == nil {
		return nil, err
	}
	fourS, err := a.backup.CheckWritable(ctx, raw)
	if errors.Is(err, backup.ErrNotWritable) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	seed, err = a.backup.Secret(ctx, event.Type{Type: name, Class: event.AccountDataEventType}, fourS)
	var unreachable mautrix.HTTPError
	switch {
	case errors.Is(err, mautrix.MNotFound):
		return nil, nil
	case errors.As(err, &unreachable):
		return nil, err
	case err != nil || !derives(seed, want):
		// There is an entry, and it is not this identity's: nobody is helped by it.
		return nil, nil
	}
	return bytes.Clone(seed), nil
}

// unmarshal decodes JSON of foreign origin; what it says does not get into errors.
func unmarshal(raw json.RawMessage, into any) error {
	if json.Unmarshal(raw, into) != nil {
		return fmt.Errorf("%w: malformed", todevice.ErrUnusable)
	}
	return nil
}
