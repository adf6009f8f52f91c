package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/kms"
)

// firstIdentity is a user's first cross-signing identity and its recovery key while the device makes them, sealed in the
// store: whatever stops it, the next try goes on with the same, as nobody may be there to see to it. It is dropped when the
// identity has signed the device.
type firstIdentity struct {
	Master      []byte            `json:"master"`
	SelfSigning []byte            `json:"self_signing"`
	UserSigning []byte            `json:"user_signing"`
	ID          string            `json:"id"`
	Key         []byte            `json:"key"`
	Metadata    *ssss.KeyMetadata `json:"metadata"`
	// begun is set where an earlier try made it.
	begun bool
}

func (f firstIdentity) fourS() *ssss.Key {
	return &ssss.Key{ID: f.ID, Key: f.Key, Metadata: f.Metadata}
}

func (f firstIdentity) keys() (keys crosssigning.PrivateKeys, err error) {
	for _, k := range []struct {
		into *olm.PKSigning
		seed []byte
	}{{&keys.Master, f.Master}, {&keys.SelfSigning, f.SelfSigning}, {&keys.UserSigning, f.UserSigning}} {
		if *k.into, err = olm.NewPKSigningFromSeed(k.seed); err != nil {
			return keys, errors.New("reading the first identity that was begun: it is malformed")
		}
	}
	return keys, nil
}

const firstIdentityName = "first_identity"

// begunIdentity is the one that an earlier try began; ok is false where none did.
func (a *Account) begunIdentity(ctx context.Context) (f firstIdentity, ok bool, err error) {
	raw, err := a.store.sealedValue(ctx, firstIdentityName)
	if err != nil || raw == nil {
		return f, false, err
	}
	if json.Unmarshal(raw, &f) != nil {
		return f, false, errors.New("reading the first identity that was begun: it is malformed")
	}
	f.begun = true
	return f, true, nil
}

func (a *Account) beginIdentity(ctx context.Context) (firstIdentity, error) {
	if f, ok, err := a.begunIdentity(ctx); err != nil || ok {
		return f, err
	}
	keys, err := crosssigning.Generate()
	if err != nil {
		return firstIdentity{}, err
	}
	fourS, err := ssss.NewKey("")
	if err != nil {
		return firstIdentity{}, fmt.Errorf("making a recovery key: %w", err)
	}
	f := firstIdentity{Master: keys.Master.Seed(), SelfSigning: keys.SelfSigning.Seed(), UserSigning: keys.UserSigning.Seed(),
		ID: fourS.ID, Key: fourS.Key, Metadata: fourS.Metadata}
	encoded, err := json.Marshal(f)
	if err != nil {
		return f, errors.New("keeping the first identity: it cannot be encoded")
	}
	return f, a.store.putSealed(ctx, firstIdentityName, encoded)
}

// bootstrap makes the user's first cross-signing identity. The recovery key is kept before anything is uploaded:
// an identity nobody can recover must not come into being.
func (a *Account) bootstrap(ctx context.Context) (id.Ed25519, error) {
	verification := a.config.Verification
	if verification.BootstrapTo == "" && verification.BootstrapToKMS == "" {
		return "", fmt.Errorf("%s has no cross-signing identity yet: let the user set it up first, or set verification.bootstrap_recovery_key_to to a file, or …_to_kms to a path of the KMS, for the new recovery key", a.config.UserID)
	}
	first, err := a.beginIdentity(ctx)
	if err != nil {
		return "", err
	}
	keys, err := first.keys()
	if err != nil {
		return "", err
	}
	public, err := keys.Public(a.config.UserID)
	if err != nil {
		return "", err
	}
	fourS := first.fourS()
	if err := a.keepRecoveryKey(ctx, fourS.RecoveryKey(), first.begun); err != nil {
		return "", err
	}
	storage := ssss.NewSSSSMachine(a.client)
	if err := storage.SetKeyData(ctx, fourS.ID, fourS.Metadata); err != nil {
		return "", fmt.Errorf("setting up secret storage: %w", err)
	}
	for name, seed := range map[event.Type][]byte{
		event.AccountDataCrossSigningMaster: first.Master,
		event.AccountDataCrossSigningSelf:   first.SelfSigning,
		event.AccountDataCrossSigningUser:   first.UserSigning,
	} {
		if err := storage.SetEncryptedAccountData(ctx, name, seed, fourS); err != nil {
			return "", fmt.Errorf("storing %s: %w", name.Type, err)
		}
	}
	if err := storage.SetDefaultKeyID(ctx, fourS.ID); err != nil {
		return "", fmt.Errorf("setting up secret storage: %w", err)
	}
	err = a.client.UploadCrossSigningKeys(ctx, &mautrix.UploadCrossSigningKeysReq[any]{
		Master: public.Master, SelfSigning: public.SelfSigning, UserSigning: public.UserSigning}, a.passwordUIA)
	if err != nil {
		return "", fmt.Errorf("uploading the cross-signing identity: %w", err)
	}
	identity, err := a.endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return "", err
	}
	return a.signFirst(ctx, first, identity)
}

// finishBootstrap has an identity that an earlier try uploaded sign the device. done is false where there is none: then
// somebody else made the user's identity, and what was begun here came too late.
func (a *Account) finishBootstrap(ctx context.Context, identity crosssigning.Identity) (done bool, err error) {
	first, ok, err := a.begunIdentity(ctx)
	if err != nil || !ok {
		return false, err
	}
	keys, err := first.keys()
	if err != nil {
		return false, err
	}
	if !identity.PinnedTo(keys.Master.PublicKey()) {
		return false, a.store.dropSealed(ctx, firstIdentityName)
	}
	_, err = a.signFirst(ctx, first, identity)
	return err == nil, err
}

func (a *Account) signFirst(ctx context.Context, first firstIdentity, identity crosssigning.Identity) (id.Ed25519, error) {
	keys, err := first.keys()
	if err != nil {
		return "", err
	}
	if err := a.sign(ctx, keys.SelfSigning, identity, first.fourS()); err != nil {
		return "", err
	}
	return keys.Master.PublicKey(), a.store.dropSealed(ctx, firstIdentityName)
}

// keepRecoveryKey puts a new recovery key where it is kept, and never over an older one. What is there already is looked at
// where an earlier try may have put it there, and is the same then.
func (a *Account) keepRecoveryKey(ctx context.Context, recoveryKey string, begun bool) error {
	v := a.config.Verification
	if v.BootstrapToKMS != "" {
		err := a.kms.Create(ctx, v.BootstrapToKMS, recoveryKey)
		if errors.Is(err, kms.ErrExists) && begun && a.isKept(ctx, recoveryKey) {
			return nil
		}
		if errors.Is(err, kms.ErrExists) {
			return fmt.Errorf("%s has a recovery key already, of an identity that did not come about: remove it, or name another path, or let the device read there what it may have put there itself: %w", v.BootstrapToKMS, err)
		}
		return err
	}
	err := writeNew(v.BootstrapTo, recoveryKey+"\n")
	if errors.Is(err, os.ErrExist) {
		if there, readErr := os.ReadFile(v.BootstrapTo); begun && readErr == nil && strings.TrimSpace(string(there)) == recoveryKey {
			return nil
		}
		return fmt.Errorf("%s is there already, of an identity that did not come about: move it away and enroll again", v.BootstrapTo)
	} else if err != nil {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	return nil
}

// isKept reports whether the KMS's path of recovery keys has this one. The device may well have no right to read there, and
// then it is not known.
func (a *Account) isKept(ctx context.Context, recoveryKey string) bool {
	want, err := backupkey.Parse(recoveryKey)
	if err != nil {
		return false
	}
	kept, err := a.kms.Fetch(ctx, a.config.Verification.BootstrapToKMS, "")
	return err == nil && want.Fits(kept.Key.PublicKey())
}
