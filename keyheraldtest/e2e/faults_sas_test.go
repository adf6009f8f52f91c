package e2e

import (
	"context"
	"database/sql"
	"encoding/base64"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/protocol"
)

// acceptingAll has the client accept every request that comes, and gives the transaction of the newest.
func acceptingAll(t *testing.T, w *world) (newest func() id.VerificationTransactionID) {
	t.Helper()
	var mu sync.Mutex
	var transaction id.VerificationTransactionID
	accepted := 0
	run(t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			for _, requested := range w.stock.SAS.Requested()[accepted:] {
				accepted++
				mu.Lock()
				transaction = requested
				mu.Unlock()
				if err := w.stock.SAS.AcceptVerification(ctx, requested); err != nil {
					t.Log("the other device does not accept, as it was told otherwise meanwhile: ", err)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
	return func() id.VerificationTransactionID {
		mu.Lock()
		defer mu.Unlock()
		return transaction
	}
}

// A device that another one verifies is verified by it, or the command says that it is not and is through the next time;
// then it adopts what it lacks. Whichever of its writes fails.
func TestAVerificationByEmojiIsThroughOrDoneAgainWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.people(t)
	ctx := t.Context()
	key, _ := w.ownBackup(t)
	check(t, w.stock.Machine.CryptoStore.PutSecret(ctx, id.SecretMegolmBackupV1, base64.RawStdEncoding.EncodeToString(key.Bytes())))
	recorder := &faults.Recorder{}
	recorder.Begin()
	toHomeserver, err := recorder.Proxy("device to homeserver", w.hs.URL, faults.Homeserver, nil)
	check(t, err)
	t.Cleanup(func() { _ = toHomeserver.Close() })
	transaction := acceptingAll(t, w)
	devices := 0
	verify := func(t *testing.T, fault faults.Fault) {
		devices++
		name := fmt.Sprint("managed", devices)
		config := w.account(t, name, func(c *device.AccountConfig) { c.Homeserver, c.Verification = toHomeserver.URL, device.Verification{} })
		options := w.options(t, name)
		options.OpenSQLite = func(dataSource string) (*sql.DB, error) {
			plain, err := sql.Open("sqlite", "")
			if err != nil {
				return nil, err
			}
			defer func() { _ = plain.Close() }()
			return sql.OpenDB(recorder.Connector("SQLite", faults.DriverConnector(plain.Driver(), dataSource))), nil
		}
		account, err := device.Open(ctx, config, options)
		check(t, err)
		defer func() { check(t, account.Close()) }()
		recorder.Arm(fault, nil)
		steps := []struct {
			what string
			do   func(context.Context) error
		}{
			{"the verification", func(ctx context.Context) error {
				peer, err := account.VerifyByEmoji(ctx, w.stock.DeviceID, false, persons(t, w.stock, transaction, true))
				if err == nil && peer != w.stock.DeviceID {
					t.Errorf("it is verified by %s", peer)
				}
				return err
			}},
			{"the adoption", func(ctx context.Context) error {
				kept, missing, err := account.AdoptSecrets(ctx, w.stock.DeviceID)
				if err == nil && len(missing) > 0 {
					err = fmt.Errorf("it lacks %v", missing)
				}
				if err == nil && !slices.Equal(kept, []string{protocol.SecretMegolmBackup}) && !recorder.Fired() {
					err = fmt.Errorf("it kept %v", kept)
				}
				return err
			}},
		}
		for _, step := range steps {
			first := step.do(limited(t))
			if first == nil {
				continue
			}
			if !recorder.Fired() {
				t.Fatalf("%s failed without a fault: %v", step.what, first)
			}
			if err := step.do(limited(t)); err != nil {
				t.Fatalf("%s failed with %v, and then with %v", step.what, first, err)
			}
		}
		own, err := w.stock.OwnDevices(ctx)
		check(t, err)
		trusted := 0
		for _, d := range own {
			if d.Name == name && w.stock.Machine.IsDeviceTrusted(ctx, d) {
				trusted++
			}
		}
		if trusted != 1 {
			t.Errorf("the other device trusts %d of that name", trusted)
		}
	}
	var dry [2][]faults.Point
	for i := range dry {
		verify(t, faults.Fault{})
		dry[i] = recorder.Points()
	}
	table := faults.Table(dry[:]...)
	if len(table) < 10 {
		t.Fatalf("only %d faults were found: %v", len(table), table)
	}
	for _, fault := range table {
		t.Run(fault.String(), func(t *testing.T) {
			// How often the device asks for messages differs from one time to the next, with the pace of everything.
			for range 4 {
				if verify(t, fault); recorder.Fired() {
					return
				}
				fault = recorder.Nearest(fault)
			}
			t.Fatalf("the fault did not happen: %v", recorder.Points())
		})
	}
}
