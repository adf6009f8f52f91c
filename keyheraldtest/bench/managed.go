package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

const managedDevice = "MANAGED"

// managed is a user with a managed device that is enrolled with the bot of a crowded server.
type managed struct {
	userID id.UserID
	dir    string
	config device.AccountConfig
	client *mautrix.Client
}

// manage makes a user of the crowd with a managed device that is his first one, and enrolls it. Its store is
// <dir>/state/<localpart>.db.
func (c *crowded) manage(ctx context.Context, dir, localpart string, pickleKey []byte, forms ...msc4385.Form) (*managed, error) {
	m := &managed{userID: id.NewUserID(localpart, keyheraldtest.ServerName), dir: dir}
	var err error
	if m.client, err = c.crowd.Login(ctx, m.userID, managedDevice); err != nil {
		return nil, fmt.Errorf("making %s: %w", m.userID, err)
	}
	for _, sub := range []string{"kms", "secrets"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	token := filepath.Join(dir, "secrets", localpart+".token")
	if err := os.WriteFile(token, []byte(m.client.AccessToken), 0o600); err != nil {
		return nil, err
	}
	m.config = device.AccountConfig{UserID: m.userID, Homeserver: c.hs.URL, DeviceName: "Managed", Recovery: "require",
		Login:        device.Login{AccessTokenFile: token, DeviceID: managedDevice},
		Verification: device.Verification{BootstrapTo: filepath.Join(dir, "secrets", localpart+".recovery-key")},
		KMS:          device.KMS{Name: "bench", Config: kmsconfig.Config{Type: kmsconfig.File, Dir: filepath.Join(dir, "kms")}, Path: "keyherald/" + localpart},
		Push:         device.Push{Forms: forms, WaitForCarry: 30 * time.Second},
		OldBackup:    device.OldBackups{Grace: 30 * 24 * time.Hour}, OnDrift: device.DriftReport,
		Answer: device.Answer{Names: []string{protocol.SecretMegolmBackup}, PerHour: 20}}
	account, err := m.open(ctx, pickleKey)
	if err != nil {
		return nil, err
	}
	return m, errors.Join(c.enroll(ctx, account, m.userID), account.Close())
}

func (m *managed) open(ctx context.Context, pickleKey []byte) (*device.Account, error) {
	return device.Open(ctx, m.config, device.Options{StorePath: filepath.Join(m.dir, "state", m.userID.Localpart()+".db"), PickleKey: pickleKey})
}

func (c *crowded) enroll(ctx context.Context, account *device.Account, user id.UserID) error {
	if _, err := account.Verify(ctx, nil); err != nil {
		return fmt.Errorf("verifying the managed device of %s: %w", user, err)
	}
	code, err := c.engine.NewCode(ctx, user, time.Hour, keyheraldtest.Admin())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := account.Enroll(ctx, code); err != nil {
		return fmt.Errorf("enrolling the managed device of %s: %w", user, err)
	}
	return nil
}

// recoveryKey is the user's, as the managed device kept it.
func (m *managed) recoveryKey() (string, error) {
	raw, err := os.ReadFile(m.config.Verification.BootstrapTo)
	return strings.TrimSpace(string(raw)), err
}

// rotate puts a first key into the user's KMS, has the account run until the rotation to it is done, and returns the key.
func (c *crowded) rotate(ctx context.Context, m *managed, account *device.Account) (backupkey.Key, error) {
	key, err := backupkey.Generate()
	if err != nil {
		return key, err
	}
	secret := filepath.Join(m.config.KMS.Dir, m.config.KMS.Path)
	if err := os.MkdirAll(secret, 0o700); err != nil {
		return key, err
	}
	for name, content := range map[string]string{"1.pub": key.PublicKey(), "1.key": key.RevealBase64(), "current": "1"} {
		if err := os.WriteFile(filepath.Join(secret, name), []byte(content), 0o600); err != nil {
			return key, err
		}
	}
	_, err = c.engine.Accept(ctx, intake.Notification{Source: "bench", ID: m.userID.Localpart(), User: m.userID.String(),
		Secret: protocol.SecretMegolmBackup, KMS: m.config.KMS.Name, Path: m.config.KMS.Path, Version: "1"})
	if err != nil {
		return key, err
	}
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- account.Run(running) }()
	err = keyheraldtest.Until(ctx, 2*time.Minute, func() error {
		var state string
		err := c.db.QueryRow(ctx, `SELECT state FROM rotation WHERE user_id = $1`, m.userID).Scan(&state)
		if err == nil && state != string(rotation.Done) {
			err = fmt.Errorf("the rotation of %s is %s", m.userID, state)
		}
		return err
	})
	cancel()
	return key, errors.Join(err, <-ended)
}
