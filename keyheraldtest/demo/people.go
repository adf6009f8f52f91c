package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
)

const history = "Written before the rotation: only the first key backup can open this."

// people makes Alice with a device in every state, her history, and Bob, who must hear nothing of it all.
func (w *World) people(ctx context.Context, s screen) error {
	s.title("The people")
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"Alice, with a stock client, cross-signing and a recovery key", w.makeAlice},
		{"her first key backup, and history that only it holds", w.makeHistory},
		{"a device of hers that nobody ever verified", func(ctx context.Context) (err error) {
			w.stranger, err = w.login(ctx, w.alice, "STRANGER")
			return err
		}},
		{"Bob, somebody else", func(ctx context.Context) (err error) {
			if w.bob, err = w.hs.CreateUser(ctx, "bob", password); err != nil {
				return err
			}
			if w.bobs, err = w.login(ctx, w.bob, "BOBS"); err != nil {
				return err
			}
			_, err = w.bobs.Bootstrap(ctx, password)
			return err
		}},
		{"a managed device of Alice's, enrolled with a one-time code", func(ctx context.Context) error { return w.enroll(ctx, "alice") }},
		{"a second managed device, which will receive", func(ctx context.Context) error { return w.enroll(ctx, "alice-receiver") }},
	}
	for _, step := range steps {
		if err := s.step(step.what, func() error { return step.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) login(ctx context.Context, user id.UserID, device id.DeviceID) (*keyheraldtest.Client, error) {
	client, err := keyheraldtest.Login(ctx, w.hs.URL, user, password, device)
	if err == nil {
		w.closers = append(w.closers, func() error { client.Close(); return nil })
	}
	return client, err
}

func (w *World) makeAlice(ctx context.Context) (err error) {
	if w.alice, err = w.hs.CreateUser(ctx, "alice", password); err != nil {
		return err
	}
	if w.stock, err = w.login(ctx, w.alice, "STOCK"); err != nil {
		return err
	}
	w.recoveryKey, err = w.stock.Bootstrap(ctx, password)
	return err
}

func (w *World) makeHistory(ctx context.Context) (err error) {
	if w.oldKey, err = backupkey.Generate(); err != nil {
		return err
	}
	old, err := backup.MegolmBackupKeyFromBytes(w.oldKey.Reveal())
	if err != nil {
		return err
	}
	if w.oldVersion, err = w.stock.CreateBackup(ctx, old, w.recoveryKey); err != nil {
		return err
	}
	if w.room, w.message, err = w.stock.WriteHistory(ctx, w.oldVersion, old, history); err != nil {
		return err
	}
	_, err = w.kms.putKey(ctx, kmsPath, w.oldKey)
	return err
}

// enroll sets an account up as its operator would; the fleet of one process runs both accounts.
func (w *World) enroll(ctx context.Context, account string) error {
	kms, err := w.kms.device(ctx, w, account)
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"alice.password": password, "alice.recovery-key": w.recoveryKey,
		"device.yaml": "accounts_dir: accounts.d\nstate_dir: state\npickle_key_file: device-pickle.key\n",
		"accounts.d/" + account + ".yaml": fmt.Sprintf(`user_id: "%s"
homeserver: %s
device_name: Keyherald (%s)
login: {password_file: ../alice.password}
verification: {recovery_key_file: ../alice.recovery-key}
kms: {name: corporate, path: %s, %s}
`, w.alice, w.hs.URL, account, kmsPath, kms),
	} {
		if err := w.write(name, content); err != nil {
			return err
		}
	}
	if account == "alice" {
		if err := w.start("keyherald-device", "run", "-c", "device.yaml"); err != nil {
			return err
		}
	}
	code, err := w.keyherald(ctx, "enroll", "--user", w.alice.String())
	if err != nil {
		return err
	}
	if err := w.write("code", code); err != nil {
		return err
	}
	if _, err := w.command(ctx, "keyherald-device", "enroll", "--account", account, "--code-file", "code"); err != nil {
		return err
	}
	// The fleet finds the enrolled account by itself; its first status says that it runs.
	return keyheraldtest.Until(ctx, 30*time.Second, func() error {
		devices, err := w.db.Devices(ctx, w.alice)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if d.Name == "Keyherald ("+account+")" && !d.LastSeen.IsZero() {
				return nil
			}
		}
		return errors.New("the managed device has not reported yet")
	})
}
