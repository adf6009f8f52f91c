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
	if done, err := a.finishBootstrap(ctx, identity); err != nil || done {
		return identity.MasterKey, err
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
