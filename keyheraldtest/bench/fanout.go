package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/msc4385"
)

// Fanout measures how long the managed device takes to push its key to n devices with which it has Olm sessions, in one
// form: from asking for the devices until the homeserver has taken the messages and the report, with everything journaled.
// Beside it is OlmMachine.PushSecret of another device of the user to the same devices, on a SQLite store like it.
func Fanout(ctx context.Context, n, rounds int) (rows []Row, err error) {
	var stock *keyheraldtest.Client
	p, err := newPushing(ctx, n, []msc4385.Form{msc4385.FormPush}, func(ctx context.Context, p *pushing) error {
		client, err := p.crowd.LoginAgain(ctx, p.userID, "STOCK")
		if err != nil {
			return err
		}
		if stock, err = keyheraldtest.Stock(ctx, client); err != nil {
			return err
		}
		p.closers = append(p.closers, func() error { stock.Close(); return nil })
		recoveryKey, err := p.recoveryKey()
		if err != nil {
			return err
		}
		return stock.Verify(ctx, recoveryKey)
	})
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return nil, fmt.Errorf("preparing fanout/%d: %w", n, err)
	}
	if err := stock.Machine.CryptoStore.PutSecret(ctx, id.SecretMegolmBackupV1, p.secret); err != nil {
		return nil, err
	}
	row, err := Measure(ctx, fmt.Sprintf("fanout/%d", n), "ms", Less, rounds,
		Side{"push", func(ctx context.Context) (float64, error) {
			_, done, _, err := p.push(ctx)
			return milliseconds(done), err
		}},
		Side{"mautrix_push_secret", func(ctx context.Context) (float64, error) {
			before := p.received()
			all := p.begin(p.lights)
			began := time.Now()
			if err := stock.Machine.PushSecret(ctx, id.SecretMegolmBackupV1); err != nil {
				return 0, err
			}
			took := time.Since(began)
			if _, err := p.wait(ctx, began, all); err != nil {
				return 0, err
			}
			return milliseconds(took), p.drained(ctx, before+int64(n))
		}})
	return []Row{row}, err
}
