package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/secretstorage"
)

// resetRecovery is the user who sets up recovery anew on his own device: another 4S key, with his cross-signing keys.
func (w *world) resetRecovery(t *testing.T) (recoveryKey string) {
	t.Helper()
	ctx := t.Context()
	fresh, err := w.stock.Machine.SSSS.GenerateAndUploadKey(ctx, "")
	check(t, err)
	check(t, w.stock.Machine.UploadCrossSigningKeysToSSSS(ctx, fresh, w.stock.Machine.CrossSigningKeys))
	check(t, w.stock.Machine.SSSS.SetDefaultKeyID(ctx, fresh.ID))
	return fresh.RecoveryKey()
}

func TestARecoveryKeyThatIsProvidedLaterWakesTheRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newKey(t, "1")
	commands, _ := w.fleet(t, "late")
	present := w.resetRecovery(t)
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionRecoveryCopyNotWritable)
	account, giveBack, err := commands.Borrow(t.Context(), "late")
	check(t, err)
	for name, wrong := range map[string]string{"the one of before": w.recoveryKey, "no recovery key": "EsTc LW2K PGiF wKEA", "nothing": ""} {
		if err := account.ProvideRecoveryKey(t.Context(), wrong); err == nil || wrong != "" && strings.Contains(err.Error(), wrong) {
			t.Errorf("%s is taken, or is in the error: %v", name, err)
		}
	}
	check(t, account.ProvideRecoveryKey(t.Context(), present))
	check(t, giveBack())
	w.waitDone(t)
	if copied := w.onlyRotation(t).Facts.RecoveryCopy; copied != protocol.RecoveryCopyWritten {
		t.Errorf("the recovery copy is said to be %s", copied)
	}
	w.waitAct(t, "recovery_key.provided")
}

// entry puts a secret of the user's into his secret storage, for these keys.
func (w *world) entry(t *testing.T, name string, secret []byte, keys ...*ssss.Key) {
	t.Helper()
	check(t, w.stock.Machine.SSSS.SetEncryptedAccountData(t.Context(), event.Type{Type: name, Class: event.AccountDataEventType}, secret, keys...))
	// Dendrite's sync lags behind, and only a sync lists the names. Synapse's would be one of before, from its cache.
	wait(t, name+" in a sync", func() bool {
		entries, err := secretstorage.New(w.stock.Client).Entries(t.Context())
		check(t, err)
		return slices.ContainsFunc(entries, func(e secretstorage.Entry) bool { return e.Name == name })
	})
}

func (w *world) fourS(t *testing.T, recoveryKey string) *ssss.Key {
	t.Helper()
	keyID, metadata, err := w.stock.Machine.SSSS.GetDefaultKeyData(t.Context())
	check(t, err)
	key, err := metadata.VerifyRecoveryKey(keyID, recoveryKey)
	check(t, err)
	return key
}

func TestAReplacedRecoveryKeyOpensWhatTheOldOneDidAndTheOldOneNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	key := w.newKey(t, "1")
	file := filepath.Join(w.dir, "alice.recovery-key")
	check(t, os.WriteFile(file, []byte("an older one, which stays"), 0o600))
	_, stop := w.start(t, "managed", 0)
	w.notify(t, "n1", "1")
	w.waitDone(t)
	stop()
	old := w.fourS(t, w.recoveryKey)
	another, err := ssss.NewKey("")
	check(t, err)
	w.entry(t, "com.example.diary", []byte("not a key at all"), old, another)
	w.entry(t, "com.example.of_another_key", []byte("somebody else's"), another)
	w.entry(t, "com.example.broken", []byte("broken"), &ssss.Key{ID: old.ID, Key: another.Key})

	// Another IV, which no MAC covers, has the recovery copy open to something else: the device knows better.
	var copied ssss.EncryptedAccountDataEventContent
	check(t, w.stock.GetAccountData(ctx, backupSecret.Type, &copied))
	garbled := copied.Encrypted[old.ID]
	garbled.IV = base64.RawStdEncoding.EncodeToString(make([]byte, 16))
	copied.Encrypted[old.ID] = garbled
	check(t, w.stock.SetAccountData(ctx, backupSecret.Type, copied))

	account := w.open(t, "managed", func(c *device.AccountConfig) { c.Escrow.File = file })
	replaced, err := account.ReplaceRecoveryKey(ctx, false)
	check(t, err)
	if !slices.Equal(replaced.LeftBehind, []string{"com.example.broken", "com.example.of_another_key"}) ||
		!slices.Equal(replaced.Rewritten, []string{"com.example.diary", protocol.SecretMaster, protocol.SecretSelfSigning, protocol.SecretUserSigning, protocol.SecretMegolmBackup}) {
		t.Errorf("rewritten are %v, left behind %v", replaced.Rewritten, replaced.LeftBehind)
	}
	if replaced.Where != file+"."+replaced.KeyID {
		t.Errorf("it is kept in %s", replaced.Where)
	}
	recoveryKey := w.keptIn(t, replaced.Where)
	if older, err := os.ReadFile(file); err != nil || string(older) != "an older one, which stays" {
		t.Errorf("the older recovery key is %q, %v", older, err)
	}
	w.recoveryKeyIs(t, recoveryKey, old)
	fresh := w.fourS(t, recoveryKey)
	diary, err := w.stock.Machine.SSSS.GetDecryptedAccountData(ctx, event.Type{Type: "com.example.diary", Class: event.AccountDataEventType}, fresh)
	if err != nil || string(diary) != "not a key at all" {
		t.Errorf("the diary reads %q, %v", diary, err)
	}
	opened, err := w.stock.Machine.SSSS.GetDecryptedAccountData(ctx, backupSecret, fresh)
	if err != nil || string(opened) != string(key.Reveal()) {
		t.Errorf("the recovery copy is not the backup's key: %v", err)
	}
	check(t, account.Close())
	// The next rotation rewrites the recovery copy with the new key, and the act is in the log.
	w.manageAgain(t, "managed")
	w.waitAct(t, "recovery_key.replaced", replaced.KeyID)
	second := w.newKey(t, "2")
	w.notify(t, "n2", "2")
	wait(t, "the second rotation", func() bool { return w.onlyRotation(t).KMS.Version == "2" })
	w.waitDone(t)
	opened, err = w.stock.Machine.SSSS.GetDecryptedAccountData(ctx, backupSecret, fresh)
	if err != nil || string(opened) != string(second.Reveal()) {
		t.Errorf("after the next rotation the recovery copy is not the backup's key: %v", err)
	}
}

// manageAgain runs an account that is enrolled.
func (w *world) manageAgain(t *testing.T, name string) {
	t.Helper()
	run(t, w.open(t, name).Run)
}

// keptIn is a recovery key in a file that only its owner can read.
func (w *world) keptIn(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the recovery key's mode is %s", info.Mode())
	}
	raw, err := os.ReadFile(path)
	check(t, err)
	return strings.TrimSpace(string(raw))
}

// recoveryKeyIs checks that a new login takes the identity over with the key, and that an old one opens nothing of it.
func (w *world) recoveryKeyIs(t *testing.T, recoveryKey string, old *ssss.Key) {
	t.Helper()
	ctx := t.Context()
	later := w.login(t, id.DeviceID("LATER"+rand.Text()[:8]))
	check(t, later.Verify(ctx, recoveryKey))
	for _, name := range []event.Type{event.AccountDataCrossSigningMaster, event.AccountDataCrossSigningSelf, event.AccountDataCrossSigningUser, backupSecret} {
		if _, err := later.Machine.SSSS.GetDecryptedAccountData(ctx, name, old); err == nil {
			t.Errorf("the old key still opens %s", name.Type)
		}
	}
}

func TestNothingTheUserWouldLoseIsLeftBehindUnasked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.ownBackup(t)
	account := w.open(t, "managed", func(c *device.AccountConfig) { c.Escrow.KMS = "recovery/alice" })
	_, err := account.Verify(ctx, nil)
	check(t, err)
	present := w.resetRecovery(t)
	before := w.fourS(t, present)
	w.entry(t, "com.example.diary", []byte("only the present key opens it"), before)
	_, err = account.ReplaceRecoveryKey(ctx, false)
	if err == nil || !strings.Contains(err.Error(), "com.example.diary") || !strings.Contains(err.Error(), "provide-recovery-key") {
		t.Fatalf("got %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(w.dir, "kms", "recovery", "alice")); err == nil {
		t.Errorf("a recovery key was kept all the same: %v", entries)
	}
	if now := w.fourS(t, present); now.ID != before.ID {
		t.Error("the default key was switched")
	}
	// With the present key in hand it goes.
	check(t, account.ProvideRecoveryKey(ctx, present))
	replaced, err := account.ReplaceRecoveryKey(ctx, false)
	check(t, err)
	// The recovery copy is for the key of before, and the backup's key nowhere: the present key did not open it either.
	if replaced.Where != "the KMS's recovery/alice/"+replaced.KeyID || !slices.Equal(replaced.LeftBehind, []string{protocol.SecretMegolmBackup}) {
		t.Errorf("it is kept in %s, and %v is left behind", replaced.Where, replaced.LeftBehind)
	}
	w.recoveryKeyIs(t, w.keptIn(t, filepath.Join(w.dir, "kms", "recovery", "alice", replaced.KeyID, "1.key")), before)
}

// Whoever gives the storage another key while ours is being prepared wins.
func TestAReplacementThatTheUserOvertookIsNotUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	g := newGate(t, w.hs.URL)
	account := w.open(t, "managed", func(c *device.AccountConfig) {
		c.Homeserver, c.Escrow.File = g.URL, filepath.Join(w.dir, "alice.recovery-key")
	})
	_, err := account.Verify(ctx, nil)
	check(t, err)
	g.refuse("/m.secret_storage.key.")
	if _, err := account.ReplaceRecoveryKey(ctx, false); err == nil {
		t.Fatal("it went through without the new key's description")
	}
	g.refuse("")
	present := w.resetRecovery(t)
	if _, err := account.ReplaceRecoveryKey(ctx, false); err == nil || !strings.Contains(err.Error(), "meanwhile") {
		t.Errorf("got %v", err)
	}
	w.fourS(t, present)
	check(t, account.ProvideRecoveryKey(ctx, present))
	replaced, err := account.ReplaceRecoveryKey(ctx, false)
	check(t, err)
	w.fourS(t, w.keptIn(t, replaced.Where))
}
