package backup_test

import (
	"bytes"
	"errors"
	"testing"

	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
)

func TestTheRecoveryCopyIsRewrittenForTheKeyInHandAlone(t *testing.T) {
	c := user(t)
	b := backup.New(c.Client)
	state := func(want backup.RecoveryCopy) {
		t.Helper()
		if got, err := b.RecoveryCopyState(t.Context()); err != nil || got != want {
			t.Fatalf("the recovery copy is %q (%v), not %q", got, err, want)
		}
	}
	if has, err := b.HasStorage(t.Context()); err != nil || has {
		t.Fatalf("has=%v, %v", has, err)
	}
	state(backup.RecoveryCopyNone)
	recoveryKey, err := c.Bootstrap(t.Context(), password)
	check(t, err)
	state(backup.RecoveryCopyBlank)
	keyID, metadata, err := c.Machine.SSSS.GetDefaultKeyData(t.Context())
	check(t, err)
	stock, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	check(t, err)
	fourS, err := b.CheckWritable(t.Context(), stock.Key)
	check(t, err)
	if _, ok, err := b.ReadRecoveryCopy(t.Context(), fourS); err != nil || ok {
		t.Fatalf("read a copy that is not there: %v", err)
	}
	// An old copy for two 4S keys, of which one is not in hand.
	oldKey, key := newKey(t), newKey(t)
	second, err := ssss.NewKey("")
	check(t, err)
	check(t, c.Machine.SSSS.SetEncryptedAccountData(t.Context(), event.AccountDataMegolmBackupKey, oldKey.Reveal(), stock, second))
	for range 2 {
		check(t, b.WriteRecoveryCopy(t.Context(), key, fourS))
	}
	state(backup.RecoveryCopyPresent)
	read, err := c.Machine.SSSS.GetDecryptedAccountData(t.Context(), event.AccountDataMegolmBackupKey, stock)
	if err != nil || !bytes.Equal(read, key.Reveal()) {
		t.Fatalf("a stock client does not read the new key: %v", err)
	}
	if _, err := c.Machine.SSSS.GetDecryptedAccountData(t.Context(), event.AccountDataMegolmBackupKey, second); !errors.Is(err, ssss.ErrNotEncryptedForKey) {
		t.Fatalf("the other 4S key still opens the old key: %v", err)
	}
	if back, ok, err := b.ReadRecoveryCopy(t.Context(), fourS); err != nil || !ok || !back.Fits(key.PublicKey()) {
		t.Fatalf("ok=%v, %v", ok, err)
	}
	if err := b.WriteRecoveryCopy(t.Context(), backupkey.Key{}, fourS); err == nil {
		t.Fatal("no key was written")
	}
	for _, blank := range []any{map[string]any{}, map[string]any{"encrypted": nil}, map[string]any{"encrypted": map[string]any{fourS.ID: nil}}} {
		check(t, c.SetAccountData(t.Context(), event.AccountDataMegolmBackupKey.Type, blank))
		state(backup.RecoveryCopyBlank)
		if _, ok, err := b.ReadRecoveryCopy(t.Context(), fourS); err != nil || ok {
			t.Fatalf("%v: ok=%v, %v", blank, ok, err)
		}
	}
}

func TestOnlyTheKeyOfTheDefaultStorageMayWrite(t *testing.T) {
	c := user(t)
	recoveryKey, err := c.Bootstrap(t.Context(), password)
	check(t, err)
	b := backup.New(c.Client)
	keyID, metadata, err := c.Machine.SSSS.GetDefaultKeyData(t.Context())
	check(t, err)
	held, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	check(t, err)
	refused := func(name string, raw []byte) {
		t.Helper()
		if _, err := b.CheckWritable(t.Context(), raw); !errors.Is(err, backup.ErrNotWritable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	refused("no key", nil)
	refused("a short key", held.Key[:16])
	refused("another key", newKey(t).Reveal())
	if ok, err := b.CheckWritable(t.Context(), held.Key); err != nil || ok.ID != keyID {
		t.Fatalf("the right key: %v", err)
	}
	seed, err := b.Secret(t.Context(), event.AccountDataCrossSigningMaster, held)
	if err != nil || !bytes.Equal(seed, c.Machine.CrossSigningKeys.MasterKey.Seed()) {
		t.Fatalf("the master key's seed does not come out of secret storage: %v", err)
	}
	// The user makes a new secret storage: the key in hand is the old one.
	fresh, err := c.Machine.SSSS.GenerateAndUploadKey(t.Context(), "")
	check(t, err)
	check(t, c.Machine.SSSS.SetDefaultKeyID(t.Context(), fresh.ID))
	refused("the key of the storage before", held.Key)
	if ok, err := b.CheckWritable(t.Context(), fresh.Key); err != nil || ok.ID != fresh.ID {
		t.Fatalf("the key of the new storage: %v", err)
	}
	unproved := *fresh.Metadata
	unproved.MAC = ""
	check(t, c.Machine.SSSS.SetKeyData(t.Context(), fresh.ID, &unproved))
	refused("a key that no MAC proves", fresh.Key)
	check(t, c.Machine.SSSS.SetDefaultKeyID(t.Context(), "nowhere"))
	refused("a default key that is not described", fresh.Key)
}
