package demo

import (
	"context"
	"time"

	"maunium.net/go/mautrix/crypto/backup"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest/company"
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
			w.stranger, err = w.Login(ctx, w.alice, "STRANGER")
			return err
		}},
		{"Bob, somebody else", func(ctx context.Context) (err error) {
			if w.bob, err = w.Homeserver.CreateUser(ctx, "bob", company.Password); err != nil {
				return err
			}
			if w.bobs, err = w.Login(ctx, w.bob, "BOBS"); err != nil {
				return err
			}
			_, err = w.bobs.Bootstrap(ctx, company.Password)
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

func (w *World) makeAlice(ctx context.Context) (err error) {
	if w.alice, err = w.Homeserver.CreateUser(ctx, "alice", company.Password); err != nil {
		return err
	}
	if w.stock, err = w.Login(ctx, w.alice, "STOCK"); err != nil {
		return err
	}
	w.recoveryKey, err = w.stock.Bootstrap(ctx, company.Password)
	return err
}

func (w *World) makeHistory(ctx context.Context) (err error) {
	key, err := backupkey.Generate()
	if err != nil {
		return err
	}
	w.keys = append(w.keys, key)
	old, err := backup.MegolmBackupKeyFromBytes(key.Reveal())
	if err != nil {
		return err
	}
	if w.oldVersion, err = w.stock.CreateBackup(ctx, old, w.recoveryKey); err != nil {
		return err
	}
	if w.room, w.message, err = w.stock.WriteHistory(ctx, w.oldVersion, old, history); err != nil {
		return err
	}
	_, err = w.PutKey(ctx, kmsPath, key)
	return err
}

// enroll sets an account up as its operator would; the fleet of one process runs both accounts.
func (w *World) enroll(ctx context.Context, account string) error {
	if account == "alice" {
		if _, err := w.Fleet("device", time.Hour); err != nil {
			return err
		}
	}
	_, err := w.Enroll(ctx, company.Account{Name: account, Fleet: "device", User: w.alice, RecoveryKey: w.recoveryKey, KMS: w.deviceKMS})
	return err
}
