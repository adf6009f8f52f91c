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

// RecoveryCopy is what is known of the recovery copy without a 4S key.
type RecoveryCopy string

// The states of a recovery copy: no secret storage, a copy for its default key, or storage without one (a client
// blanks the entry by storing null or an empty object).
const (
	RecoveryCopyNone    RecoveryCopy = "none"
	RecoveryCopyPresent RecoveryCopy = "present"
	RecoveryCopyBlank   RecoveryCopy = "blank"
)

// RecoveryCopyState looks whether there is a recovery copy. It cannot tell whose key is in it.
func (c *Client) RecoveryCopyState(ctx context.Context) (RecoveryCopy, error) {
	keyID, err := ssss.NewSSSSMachine(c.matrix).GetDefaultKeyID(ctx)
	if errors.Is(err, ssss.ErrNoDefaultKeyID) {
		return RecoveryCopyNone, nil
	} else if err != nil {
		return "", fmt.Errorf("looking for secret storage: %w", err)
	}
	if _, ok, err := c.recoveryCopy(ctx, keyID); err != nil {
		return "", err
	} else if ok {
		return RecoveryCopyPresent, nil
	}
	return RecoveryCopyBlank, nil
}

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
// that was kept; nil is ErrNotWritable. The metadata's MAC proves the key; where it has none, nothing does, which is
// ErrNotWritable too.
func (c *Client) CheckWritable(ctx context.Context, raw []byte) (*ssss.Key, error) {
	keyID, metadata, err := ssss.NewSSSSMachine(c.matrix).GetDefaultKeyData(ctx)
	if errors.Is(err, mautrix.MNotFound) {
		// The default key is named and not described: nothing can be checked against it.
		return nil, ErrNotWritable
	} else if err != nil {
		return nil, fmt.Errorf("reading the secret storage's key metadata: %w", err)
	}
	if metadata.Algorithm != ssss.AlgorithmAESHMACSHA2 || len(raw) != 32 || !metadata.VerifyKey(raw) {
		return nil, ErrNotWritable
	}
	return &ssss.Key{ID: keyID, Key: raw, Metadata: metadata}, nil
}

// ReadRecoveryCopy reads the key's copy; ok is false where there is none for this 4S key.
func (c *Client) ReadRecoveryCopy(ctx context.Context, fourS *ssss.Key) (key backupkey.Key, ok bool, err error) {
	entry, ok, err := c.recoveryCopy(ctx, fourS.ID)
	if err != nil || !ok {
		return key, false, err
	}
	raw, err := fourS.Decrypt(event.AccountDataMegolmBackupKey.Type, entry)
	if err != nil {
		return key, false, fmt.Errorf("opening the recovery copy: %w", err)
	}
	key, err = backupkey.FromBytes(raw)
	return key, err == nil, err
}

func (c *Client) recoveryCopy(ctx context.Context, keyID string) (entry ssss.EncryptedKeyData, ok bool, err error) {
	var content ssss.EncryptedAccountDataEventContent
	err = c.matrix.GetAccountData(ctx, event.AccountDataMegolmBackupKey.Type, &content)
	if errors.Is(err, mautrix.MNotFound) {
		return entry, false, nil
	} else if err != nil {
		return entry, false, fmt.Errorf("reading the recovery copy: %w", err)
	}
	entry = content.Encrypted[keyID]
	return entry, entry.Ciphertext != "", nil
}

// WriteRecoveryCopy writes the key's copy for this 4S key alone, reads it back and compares. Entries for other 4S keys
// are dropped: they would go on holding the old key.
func (c *Client) WriteRecoveryCopy(ctx context.Context, key backupkey.Key, fourS *ssss.Key) error {
	if key.IsZero() {
		return errors.New("writing the recovery copy: there is no key")
	}
	if err := ssss.NewSSSSMachine(c.matrix).SetEncryptedAccountData(ctx, event.AccountDataMegolmBackupKey, key.Reveal(), fourS); err != nil {
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
