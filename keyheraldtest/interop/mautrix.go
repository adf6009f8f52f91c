package interop

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

// mautrixClient is the stock OlmMachine of mautrix-go, with the little that an application adds to it: of the keys that
// were pushed it takes the one that fits the current version.
type mautrixClient struct {
	world   *world
	devices map[id.DeviceID]*keyheraldtest.Client
	// loaded are the backup keys that came from secret storage.
	loaded map[id.DeviceID]backupkey.Key
}

func (c mautrixClient) login(ctx context.Context, device id.DeviceID) (keys, error) {
	stock, err := c.world.Login(ctx, c.world.alice, device)
	if err != nil {
		return keys{}, err
	}
	c.devices[device] = stock
	own := stock.Machine.OwnIdentity()
	return keys{DeviceID: device, Ed25519: own.SigningKey, Curve25519: own.IdentityKey}, nil
}

func (c mautrixClient) verify(ctx context.Context, device id.DeviceID, withBackup bool) error {
	stock := c.devices[device]
	if err := stock.Verify(ctx, c.world.recoveryKey); err != nil || !withBackup {
		return err
	}
	keyID, metadata, err := stock.Machine.SSSS.GetDefaultKeyData(ctx)
	if err != nil {
		return err
	}
	fourS, err := metadata.VerifyRecoveryKey(keyID, c.world.recoveryKey)
	if err != nil {
		return err
	}
	raw, err := stock.Machine.SSSS.GetDecryptedAccountData(ctx, event.AccountDataMegolmBackupKey, fourS)
	if err != nil {
		return err
	}
	c.loaded[device], err = backupkey.FromBytes(raw)
	return err
}

func (c mautrixClient) offline(_ context.Context, device id.DeviceID) error {
	c.devices[device].GoOffline()
	return nil
}

func (c mautrixClient) online(ctx context.Context, device id.DeviceID) error {
	c.devices[device].GoOnline(ctx)
	return nil
}

// key is the one of all that the device has which fits the current version.
func (c mautrixClient) key(ctx context.Context, device id.DeviceID) (backupkey.Key, id.KeyBackupVersion, error) {
	var candidates []backupkey.Key
	for _, push := range c.devices[device].Pushes() {
		if push.Name != protocol.SecretMegolmBackup {
			return backupkey.Key{}, "", fmt.Errorf("a secret %q was pushed", push.Name)
		}
		key, err := backupkey.Parse(push.Secret)
		if err != nil {
			return backupkey.Key{}, "", err
		}
		candidates = append(candidates, key)
	}
	if loaded, ok := c.loaded[device]; ok {
		candidates = append(candidates, loaded)
	}
	current, err := c.devices[device].GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return backupkey.Key{}, "", err
	}
	for _, key := range candidates {
		if key.Fits(current.AuthData.PublicKey.String()) {
			return key, current.Version, nil
		}
	}
	return backupkey.Key{}, "", nil
}

func (c mautrixClient) holds(ctx context.Context, device id.DeviceID) (held, error) {
	key, version, err := c.key(ctx, device)
	if err != nil || key.IsZero() {
		return held{}, err
	}
	return held{key.PublicKey(), version}, nil
}

func (c mautrixClient) read(ctx context.Context, device id.DeviceID, m message, limit time.Duration) (body string, err error) {
	stock := c.devices[device]
	return body, keyheraldtest.Until(ctx, limit, func() error {
		if body, err = stock.Read(ctx, m.room, m.id); err == nil {
			return nil
		}
		key, _, keyErr := c.key(ctx, device)
		if keyErr != nil || key.IsZero() {
			return errors.Join(err, keyErr)
		}
		opened, keyErr := backup.MegolmBackupKeyFromBytes(key.Reveal())
		if keyErr != nil {
			return keyErr
		}
		body, err = stock.ReadHistory(ctx, m.room, m.id, opened)
		return err
	})
}

// whole compares the copy in secret storage with the current version.
func (c mautrixClient) whole(ctx context.Context, device id.DeviceID) error {
	current, err := c.devices[device].GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return err
	}
	if loaded := c.loaded[device]; !loaded.Fits(current.AuthData.PublicKey.String()) {
		return errors.New("secret storage has another key than the current version's")
	}
	return nil
}

func (c mautrixClient) send(ctx context.Context, device id.DeviceID, to recipient, kind event.Type, content any) error {
	machine := c.devices[device].Machine
	fetched, err := machine.FetchKeys(ctx, []id.UserID{to.user}, true)
	if err != nil {
		return err
	}
	target, ok := fetched[to.user][to.device]
	if !ok {
		return fmt.Errorf("device %s of %s is not there", to.device, to.user)
	}
	return machine.SendEncryptedToDevice(ctx, target, kind, event.Content{Parsed: content})
}

// queryKeys asks the homeserver for a user's devices, as one of Alice's.
func queryKeys(ctx context.Context, as *keyheraldtest.Client, user id.UserID) (*mautrix.RespQueryKeys, error) {
	return as.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{user: {}}, Timeout: 10_000})
}
