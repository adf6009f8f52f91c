package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/kms"
)

// Prompt asks the person at the terminal for a secret; nil where there is no terminal.
type Prompt func(question string) (string, error)

// Verify makes the device cross-signed by its user and returns the user's master key. The self-signing key is used
// once in memory and dropped; the 4S key is kept sealed, to rewrite the recovery copy later.
func (a *Account) Verify(ctx context.Context, prompt Prompt) (id.Ed25519, error) {
	if err := a.endpoint.PublishKeys(ctx); err != nil {
		return "", err
	}
	identity, err := a.endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return "", err
	}
	if identity.MasterKey == "" {
		return a.bootstrap(ctx)
	}
	if verified, err := a.byEmoji(ctx, identity); err != nil || verified {
		return identity.MasterKey, err
	}
	kept, err := a.store.sealedValue(ctx, "4s")
	if err != nil {
		return "", err
	}
	if identity.Devices[a.client.DeviceID].CrossSigned && kept != nil {
		return identity.MasterKey, nil
	}
	recoveryKey, err := a.recoveryKey(prompt)
	if err != nil {
		return "", err
	}
	keyID, metadata, err := ssss.NewSSSSMachine(a.client).GetDefaultKeyData(ctx)
	if err != nil {
		return "", fmt.Errorf("reading the secret storage's key metadata: %w", err)
	}
	fourS, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	if err != nil {
		return "", errors.New("the recovery key does not open the user's secret storage: check that it is the present one")
	}
	self, err := a.crossSigningKey(ctx, event.AccountDataCrossSigningSelf, fourS)
	if err != nil {
		return "", err
	}
	master, err := a.crossSigningKey(ctx, event.AccountDataCrossSigningMaster, fourS)
	if err != nil {
		return "", err
	}
	// What secret storage holds must be the identity the homeserver presents: else one of them was replaced.
	if self.PublicKey() != identity.SelfSigningKey || master.PublicKey() != identity.MasterKey {
		return "", errors.New("the identity in secret storage is not the one the homeserver presents: the user's identity was reset; let him set up recovery again")
	}
	return identity.MasterKey, a.sign(ctx, self, identity, fourS)
}

// sign cross-signs the device, signs the master key with it, and keeps the 4S key.
func (a *Account) sign(ctx context.Context, self olm.PKSigning, identity crosssigning.Identity, fourS *ssss.Key) error {
	upload, err := crosssigning.SignDevice(self, identity.Keys[a.client.DeviceID])
	if err != nil {
		return err
	}
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		account, err := a.endpoint.Account(ctx)
		if err != nil {
			return err
		}
		master, err := crosssigning.SignMaster(account, a.config.UserID, a.client.DeviceID, identity.MasterKey)
		if err != nil {
			return err
		}
		for key, object := range master[a.config.UserID] {
			upload[a.config.UserID][key] = object
		}
		return a.store.putSealed(ctx, "4s", fourS.Key)
	})
	if err != nil {
		return err
	}
	if err := a.uploadSignatures(ctx, upload); err != nil {
		return err
	}
	after, err := a.endpoint.RefreshOwnKeys(ctx)
	if err != nil {
		return err
	}
	if !after.Devices[a.client.DeviceID].CrossSigned {
		return errors.New("the homeserver does not present the device as cross-signed")
	}
	return nil
}

// uploadSignatures tries more than once: the same signatures may be uploaded as often as it takes, and a homeserver that
// stumbles here would leave a person with half an enrollment.
func (a *Account) uploadSignatures(ctx context.Context, upload mautrix.ReqUploadSignatures) error {
	answer, err := a.client.UploadSignatures(ctx, &upload)
	for try := 1; err != nil && try < 3 && ctx.Err() == nil; try++ {
		loop.Pause(ctx, time.Duration(try)*time.Second)
		answer, err = a.client.UploadSignatures(ctx, &upload)
	}
	if err != nil {
		return fmt.Errorf("uploading the device's signature: %w", err)
	}
	if len(answer.Failures) > 0 {
		return errors.New("the homeserver refused the device's signature")
	}
	return nil
}

// keepRecoveryKey puts a new recovery key where it is kept, and never over an older one.
func (a *Account) keepRecoveryKey(ctx context.Context, recoveryKey string) error {
	v := a.config.Verification
	if v.BootstrapToKMS != "" {
		err := a.kms.Create(ctx, v.BootstrapToKMS, recoveryKey)
		if errors.Is(err, kms.ErrExists) {
			return fmt.Errorf("%s has a recovery key already, of an identity that did not come about: remove it, or name another path: %w", v.BootstrapToKMS, err)
		}
		return err
	}
	err := writeNew(v.BootstrapTo, recoveryKey+"\n")
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already, of an identity that did not come about: move it away and enroll again", v.BootstrapTo)
	} else if err != nil {
		return fmt.Errorf("writing the new recovery key: %w", err)
	}
	return nil
}

// bootstrap makes the user's first cross-signing identity. The recovery key is kept before anything is uploaded:
// an identity nobody can recover must not come into being.
func (a *Account) bootstrap(ctx context.Context) (id.Ed25519, error) {
	verification := a.config.Verification
	if verification.BootstrapTo == "" && verification.BootstrapToKMS == "" {
		return "", fmt.Errorf("%s has no cross-signing identity yet: let the user set it up first, or set verification.bootstrap_recovery_key_to to a file, or …_to_kms to a path of the KMS, for the new recovery key", a.config.UserID)
	}
	keys, err := crosssigning.Generate()
	if err != nil {
		return "", err
	}
	public, err := keys.Public(a.config.UserID)
	if err != nil {
		return "", err
	}
	fourS, err := ssss.NewKey("")
	if err != nil {
		return "", fmt.Errorf("making a recovery key: %w", err)
	}
	if err := a.keepRecoveryKey(ctx, fourS.RecoveryKey()); err != nil {
		return "", err
	}
	storage := ssss.NewSSSSMachine(a.client)
	if err := storage.SetKeyData(ctx, fourS.ID, fourS.Metadata); err != nil {
		return "", fmt.Errorf("setting up secret storage: %w", err)
	}
	for name, seed := range map[event.Type][]byte{
		event.AccountDataCrossSigningMaster: keys.Master.Seed(),
		event.AccountDataCrossSigningSelf:   keys.SelfSigning.Seed(),
		event.AccountDataCrossSigningUser:   keys.UserSigning.Seed(),
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
	return keys.Master.PublicKey(), a.sign(ctx, keys.SelfSigning, identity, fourS)
}

// passwordUIA answers the homeserver's demand for the password, where the login is one by password.
func (a *Account) passwordUIA(ui *mautrix.RespUserInteractive) any {
	password, _ := readSecret(a.config.Login.PasswordFile)
	return &mautrix.ReqUIAuthLogin{
		BaseAuthData: mautrix.BaseAuthData{Type: mautrix.AuthTypePassword, Session: ui.Session},
		User:         a.config.UserID.String(), Password: password,
	}
}

func (a *Account) crossSigningKey(ctx context.Context, name event.Type, fourS *ssss.Key) (olm.PKSigning, error) {
	seed, err := a.backup.Secret(ctx, name, fourS)
	if err != nil {
		return nil, err
	}
	key, err := olm.NewPKSigningFromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name.Type, err)
	}
	return key, nil
}

func (a *Account) recoveryKey(prompt Prompt) (string, error) {
	switch v := a.config.Verification; {
	case v.RecoveryKeyFile != "":
		return readSecret(v.RecoveryKeyFile)
	case v.RecoveryKeyEnv != "":
		if value := os.Getenv(v.RecoveryKeyEnv); value != "" {
			return value, nil
		}
		return "", fmt.Errorf("the environment variable %s is empty: it should hold the recovery key", v.RecoveryKeyEnv)
	case prompt != nil:
		return prompt("Recovery key of " + a.config.UserID.String())
	}
	return "", errors.New("no recovery key: set verification.recovery_key_file, or run `keyherald-device enroll` on a terminal")
}
