package demo

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/bench"
)

// BenchRotation measures a whole rotation, from the KMS's notification until the stock client holds the new key,
// beside one bare OlmMachine.PushSecret until the same client holds what it pushed, on the same homeserver.
func BenchRotation(ctx context.Context, config Config, rounds int) (row bench.Row, err error) {
	s := screen{out: config.Out, color: config.Color}
	w, err := build(ctx, config, s)
	if w != nil {
		defer func() { err = errors.Join(err, w.Close()) }()
	}
	if err != nil {
		return row, err
	}
	if err := w.people(ctx, s); err != nil {
		return row, err
	}
	sender, err := w.Login(ctx, w.alice, "SENDER")
	if err != nil {
		return row, err
	}
	if err := sender.Verify(ctx, w.recoveryKey); err != nil {
		return row, err
	}
	rotation := bench.Side{Name: "rotation", Run: func(ctx context.Context) (float64, error) {
		result, err := w.rotate(ctx, screen{out: io.Discard})
		return milliseconds(result.stock), err
	}}
	push := bench.Side{Name: "OlmMachine.PushSecret", Run: func(ctx context.Context) (float64, error) {
		raw := make([]byte, 32)
		_, _ = rand.Read(raw)
		secret := base64.RawStdEncoding.EncodeToString(raw)
		if err := sender.Machine.CryptoStore.PutSecret(ctx, id.SecretMegolmBackupV1, secret); err != nil {
			return 0, err
		}
		before := len(w.stock.Pushes())
		began := time.Now()
		if err := sender.Machine.PushSecret(ctx, id.SecretMegolmBackupV1); err != nil {
			return 0, err
		}
		err := keyheraldtest.Until(ctx, 10*time.Second, func() error {
			for _, got := range w.stock.Pushes()[before:] {
				if got.Secret == secret {
					return nil
				}
			}
			return errors.New("the push has not come")
		})
		return milliseconds(time.Since(began)), err
	}}
	return bench.Measure(ctx, "rotation/1", "ms", bench.Less, rounds, rotation, push)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
