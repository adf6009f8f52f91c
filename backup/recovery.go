package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// ErrNotWritable means that the 4S key in hand is not the one that opens the user's secret storage now.
var ErrNotWritable = errors.New("the key to the user's secret storage is not in hand")

// HasStorage reports whether the user has secret storage at all.
func (c *Client) HasStorage(ctx context.Context) (bool, error) {
	_, err := ssss.NewSSSSMachine(c.matrix).GetDefaultKeyID(ctx)
	if errors.Is(err, ssss.ErrNoDefaultKeyID) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("looking for secret storage: %w", err)
	}
	return true, nil
}

// CheckWritable returns the 4S key, checked against the metadata of the user's present default key. raw is the key
// that was kept; nil is ErrNotWritable.
func (c *Client) CheckWritable(ctx context.Context, raw []byte) (*ssss.Key, error) {
	keyID, metadata, err := ssss.NewSSSSMachine(c.matrix).GetDefaultKeyData(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the secret storage's key metadata: %w", err)
	}
	if len(raw) != 32 || !metadata.VerifyKey(raw) {
		return nil, ErrNotWritable
	}
	return &ssss.Key{ID: keyID, Key: raw, Metadata: metadata}, nil
}

// ReadRecoveryCopy reads the key's copy; ok is false where there is none (a client blanks it by storing null).
func (c *Client) ReadRecoveryCopy(ctx context.Context, fourS *ssss.Key) (key backupkey.Key, ok bool, err error) {
	var content ssss.EncryptedAccountDataEventContent
	err = c.matrix.GetAccountData(ctx, event.AccountDataMegolmBackupKey.Type, &content)
	if errors.Is(err, mautrix.MNotFound) {
		return key, false, nil
	} else if err != nil {
		return key, false, fmt.Errorf("reading the recovery copy: %w", err)
	}
	if _, there := content.Encrypted[fourS.ID]; !there {
		return key, false, nil
	}
	raw, err := content.Decrypt(event.AccountDataMegolmBackupKey.Type, fourS)
	if err != nil {
		return key, false, fmt.Errorf("opening the recovery copy: %w", err)
	}
	key, err = backupkey.FromBytes(raw)
	return key, err == nil, err
}

// WriteRecoveryCopy writes the key's copy for this 4S key alone, reads it back and compares. Entries for other 4S keys
// are dropped: they would go on holding the old key.
func (c *Client) WriteRecoveryCopy(ctx context.Context, key backupkey.Key, fourS *ssss.Key) error {
	sealed := fourS.Encrypt(event.AccountDataMegolmBackupKey.Type, key.Reveal())
	content := map[string]any{"encrypted": map[string]ssss.EncryptedKeyData{fourS.ID: sealed}}
	if err := c.matrix.SetAccountData(ctx, event.AccountDataMegolmBackupKey.Type, content); err != nil {
		return fmt.Errorf("writing the recovery copy: %w", err)
	}
	back, ok, err := c.ReadRecoveryCopy(ctx, fourS)
	if err != nil {
		return err
	}
	if !ok || !bytes.Equal(back.Reveal(), key.Reveal()) {
		return errors.New("the recovery copy does not read back as it was written")
	}
	return nil
}

// Secret reads another secret of secret storage, such as a cross-signing seed.
func (c *Client) Secret(ctx context.Context, name event.Type, fourS *ssss.Key) ([]byte, error) {
	var content ssss.EncryptedAccountDataEventContent
	if err := c.matrix.GetAccountData(ctx, name.Type, &content); err != nil {
		return nil, fmt.Errorf("reading %s from secret storage: %w", name.Type, err)
	}
	raw, err := content.Decrypt(name.Type, fourS)
	if err != nil {
		return nil, fmt.Errorf("opening %s from secret storage: %w", name.Type, err)
	}
	return raw, nil
}
