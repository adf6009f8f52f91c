package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// unverified is an account that nothing but another device can verify.
func (w *world) unverified(t *testing.T, change ...func(*device.AccountConfig)) *device.Account {
	t.Helper()
	return w.open(t, "managed", append([]func(*device.AccountConfig){func(c *device.AccountConfig) { c.Verification = device.Verification{} }}, change...)...)
}

// persons plays both persons of a verification: they agree if both devices show the same, and say so unless they lie.
func persons(t *testing.T, stock *keyheraldtest.Client, transaction func() id.VerificationTransactionID, says bool) device.Terminal {
	return device.Terminal{
		Tell: func(text string) { t.Log(text) },
		Compare: func(ctx context.Context, shown device.Comparison) (bool, error) {
			var names []string
			for _, emoji := range shown.Emoji {
				names = append(names, emoji.Name)
			}
			err := keyheraldtest.Until(ctx, patience, func() error {
				_, other, _, _ := stock.SAS.State(transaction())
				if !slices.Equal(other.Emoji, names) || !slices.Equal(other.Decimals, shown.Decimals) || len(names) != 7 {
					return fmt.Errorf("one shows %v %v, the other %v %v", names, shown.Decimals, other.Emoji, other.Decimals)
				}
				return nil
			})
			if err != nil {
				return false, err
			}
			if shown.Device != stock.DeviceID {
				t.Errorf("it compares with %s", shown.Device)
			}
			if says {
				err = stock.SAS.ConfirmSAS(ctx, transaction())
			}
			return says, err
		},
	}
}

// accepting has the client accept the first request that comes, and gives its transaction.
func accepting(t *testing.T, stock *keyheraldtest.Client) (transaction func() id.VerificationTransactionID) {
	t.Helper()
	accepted := make(chan id.VerificationTransactionID, 1)
	run(t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			if requested := stock.SAS.Requested(); len(requested) > 0 {
				accepted <- requested[0]
				return stock.SAS.AcceptVerification(ctx, requested[0])
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
	var known id.VerificationTransactionID
	return func() id.VerificationTransactionID {
		if known == "" {
			known = <-accepted
		}
		return known
	}
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestADeviceThatAnotherOneVerifiedEnrollsAndAdoptsItsSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	old, _ := w.ownBackup(t)
	other := w.login(t, "OTHER")
	check(t, other.Verify(ctx, w.recoveryKey))
	secrets := w.stock.Machine.CryptoStore
	keys := w.stock.Machine.CrossSigningKeys
	for name, secret := range map[id.Secret][]byte{id.SecretMegolmBackupV1: old.Bytes(), id.SecretXSMaster: keys.MasterKey.Seed(), id.SecretXSSelfSigning: keys.SelfSigningKey.Seed()} {
		check(t, secrets.PutSecret(ctx, name, base64.RawStdEncoding.EncodeToString(secret)))
	}
	account := w.unverified(t, func(c *device.AccountConfig) {
		c.Receive.Accept = map[string]string{protocol.SecretSelfSigning: "ask", protocol.SecretUserSigning: "always"}
	})
	// Nobody would answer it yet.
	if _, _, err := account.AdoptSecrets(ctx, ""); err == nil || !strings.Contains(err.Error(), "not verified") {
		t.Errorf("adopting before the verification: %v", err)
	}
	transaction := accepting(t, w.stock)
	peer, err := account.VerifyByEmoji(limited(t), "", false, persons(t, w.stock, transaction, true))
	check(t, err)
	if peer != w.stock.DeviceID {
		t.Errorf("it is verified by %s", peer)
	}
	// The other verified device was asked too, and told that it is over.
	wait(t, "the other device to know", func() bool {
		_, _, _, cancelled := other.SAS.State(transaction())
		return cancelled == "m.accepted"
	})
	// It waits to the end for what nobody has.
	adoptCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	kept, missing, err := account.AdoptSecrets(adoptCtx, peer)
	check(t, err)
	slices.Sort(kept)
	if !slices.Equal(kept, []string{protocol.SecretSelfSigning, protocol.SecretMegolmBackup}) || !slices.Equal(missing, []string{protocol.SecretUserSigning}) {
		t.Errorf("kept are %v, and missing %v", kept, missing)
	}
	// No recovery key was ever given to it.
	w.enroll(t, account)
	run(t, account.Run)
	w.waitAct(t, "device.verified", "/"+string(w.stock.DeviceID))
	w.waitAct(t, "secret.kept", protocol.SecretSelfSigning)
	w.newKey(t, "1")
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionRecoveryCopyNotWritable)
}

func TestADeviceIsVerifiedWhereTheOtherOneAsksAndStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.unverified(t, func(c *device.AccountConfig) { c.Recovery = "allow_stale" })
	var transaction id.VerificationTransactionID
	started := make(chan struct{})
	terminal := persons(t, w.stock, func() id.VerificationTransactionID { <-started; return transaction }, true)
	tell := terminal.Tell
	asked := false
	terminal.Tell = func(text string) {
		tell(text)
		if asked {
			return
		}
		asked = true
		run(t, func(runCtx context.Context) (err error) {
			// Its device list is as of before this device came.
			if _, err := w.stock.OwnDevices(ctx); err != nil {
				return err
			}
			if transaction, err = w.stock.SAS.StartVerification(ctx, w.alice); err != nil {
				return err
			}
			close(started)
			return keyheraldtest.Until(runCtx, patience, func() error {
				if ready, _, _, _ := w.stock.SAS.State(transaction); !ready {
					return fmt.Errorf("not ready")
				}
				return w.stock.SAS.StartSAS(ctx, transaction)
			})
		})
	}
	peer, err := account.VerifyByEmoji(limited(t), w.stock.DeviceID, true, terminal)
	check(t, err)
	if peer != w.stock.DeviceID {
		t.Errorf("it is verified by %s", peer)
	}
	w.enroll(t, account)
	run(t, account.Run)
	w.newKey(t, "1")
	w.notify(t, "n1", "1")
	wait(t, "the rotation to be done", func() bool { return w.onlyRotation(t).Facts.State == rotation.Done })
}

func TestWhereTheSymbolsDifferNobodyIsVerified(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	account := w.unverified(t)
	transaction := accepting(t, w.stock)
	_, err := account.VerifyByEmoji(limited(t), "", false, persons(t, w.stock, transaction, false))
	if err == nil || !strings.Contains(err.Error(), "do not show the same") {
		t.Errorf("got %v", err)
	}
	wait(t, "the other device to know", func() bool {
		_, _, _, cancelled := w.stock.SAS.State(transaction())
		return cancelled == "m.mismatched_sas"
	})
	w.nobodySigned(t, account)
}

// nobodySigned checks that an account's device is not verified.
func (w *world) nobodySigned(t *testing.T, account *device.Account) {
	t.Helper()
	_, err := account.Verify(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "recovery key") {
		t.Errorf("the device counts as verified: %v", err)
	}
}

func TestAVerificationThatNobodyAnswersIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	account := w.unverified(t)
	// The request has to be out by then.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := account.VerifyByEmoji(ctx, "", false, device.Terminal{Tell: func(string) {}}); err == nil {
		t.Error("it came about by itself")
	}
	wait(t, "the request to be taken back", func() bool {
		requested := w.stock.SAS.Requested()
		if len(requested) == 0 {
			return false
		}
		_, _, _, cancelled := w.stock.SAS.State(requested[0])
		return cancelled == "m.timeout"
	})
	if _, err := account.VerifyByEmoji(t.Context(), "NOBODY", false, device.Terminal{Tell: func(string) {}}); err == nil || !strings.Contains(err.Error(), "NOBODY") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestAnIdentityThatIsNotTheVerifiedOneIsNotEnrolledWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.unverified(t)
	transaction := accepting(t, w.stock)
	_, err := account.VerifyByEmoji(limited(t), "", false, persons(t, w.stock, transaction, true))
	check(t, err)
	if _, err := account.Verify(ctx, nil); err != nil {
		t.Errorf("it is not taken as verified: %v", err)
	}
	_, err = w.stock.Bootstrap(ctx, password)
	check(t, err)
	if _, err := account.Verify(ctx, nil); err == nil || !strings.Contains(err.Error(), "not the one that was verified") {
		t.Errorf("after a reset: %v", err)
	}
}
