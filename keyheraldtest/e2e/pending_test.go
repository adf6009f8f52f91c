package e2e

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

// fleet runs one enrolled account as the program does, and gives a second fleet that commands work with.
func (w *world) fleet(t *testing.T, name string, change ...func(*device.AccountConfig)) (commands *device.Fleet, store string) {
	t.Helper()
	config := device.Config{Accounts: filepath.Join(w.dir, "accounts.d"), State: filepath.Join(w.dir, "state"), PickleKeyFile: filepath.Join(w.dir, "fleet.key"), StatusInterval: time.Second}
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.ErrorLevel)
	running, err := device.NewFleet(config, nil, log)
	check(t, err)
	commands, err = device.NewFleet(config, nil, log)
	check(t, err)
	w.account(t, name, change...)
	account, giveBack, err := commands.Borrow(t.Context(), name)
	check(t, err)
	w.enroll(t, account)
	check(t, giveBack())
	run(t, running.Run)
	return commands, filepath.Join(config.State, name+".db")
}

func (w *world) seen(t *testing.T) time.Time {
	t.Helper()
	devices, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	return devices[0].LastSeen
}

func TestSecretsThatWaitForAPersonAreDecidedWhileTheFleetRuns(t *testing.T) {
	t.Parallel()
	w, right, _ := lostKey(t)
	ctx := t.Context()
	commands, store := w.fleet(t, "careful", func(c *device.AccountConfig) {
		c.Receive.Accept = map[string]string{protocol.SecretMegolmBackup: "ask", protocol.SecretSelfSigning: "ask"}
	})
	wait(t, "the account to run", func() bool { return !w.seen(t).IsZero() })

	own, err := w.stock.OwnDevices(ctx)
	check(t, err)
	managed := own[w.managedID(t)]
	push := func(name string, secret []byte) {
		t.Helper()
		check(t, w.stock.Machine.SendEncryptedToDevice(ctx, managed, event.ToDeviceSecretPush, event.Content{Raw: map[string]any{
			"name": name, "secret": base64.RawStdEncoding.EncodeToString(secret)}}))
	}
	wrong := func() []byte {
		key, err := backup.NewMegolmBackupKey()
		check(t, err)
		return key.Bytes()
	}
	keys := w.stock.Machine.CrossSigningKeys
	push(protocol.SecretMaster, keys.MasterKey.Seed())
	push(protocol.SecretMegolmBackup, wrong())
	push(protocol.SecretMegolmBackup, right.Reveal())
	push(protocol.SecretMegolmBackup, wrong())
	push(protocol.SecretSelfSigning, keys.SelfSigningKey.Seed())
	push(protocol.SecretSelfSigning, keys.UserSigningKey.Seed())
	push(protocol.SecretMegolmBackup, wrong())

	byName := map[string][]int64{}
	began := time.Now()
	wait(t, "six secrets to wait", func() bool {
		pending, err := device.Pending(ctx, store)
		check(t, err)
		byName = map[string][]int64{}
		for _, p := range pending {
			if p.Sender != w.stock.DeviceID || p.ReceivedAt.Before(began.Add(-time.Minute)) {
				t.Fatalf("a secret waits from %s since %s", p.Sender, p.ReceivedAt)
			}
			byName[p.Name] = append(byName[p.Name], p.ID)
		}
		return len(pending) == 6
	})
	if len(byName[protocol.SecretMegolmBackup]) != 4 || len(byName[protocol.SecretSelfSigning]) != 2 {
		t.Fatalf("what waits is %v: of the master key nothing may", byName)
	}
	if w.status(t).HoldsKey {
		t.Fatal("the key is held before anybody agreed")
	}

	account, giveBack, err := commands.Borrow(ctx, "careful")
	check(t, err)
	rejected, err := account.RejectPending(ctx, byName[protocol.SecretMegolmBackup][3])
	check(t, err)
	if len(rejected) != 1 {
		t.Errorf("%d were dropped", len(rejected))
	}
	if _, err := account.AcceptPending(ctx, byName[protocol.SecretMegolmBackup][3]); err == nil {
		t.Error("what was dropped was accepted")
	}
	kept, err := account.AcceptPending(ctx, byName[protocol.SecretMegolmBackup][:3]...)
	check(t, err)
	if len(kept) != 1 || kept[0].ID != byName[protocol.SecretMegolmBackup][1] {
		t.Errorf("of three keys %v is kept, and the second fits", kept)
	}
	kept, err = account.AcceptPending(ctx)
	check(t, err)
	if len(kept) != 1 || kept[0].ID != byName[protocol.SecretSelfSigning][0] {
		t.Errorf("of two self-signing keys %v is kept, and the first fits", kept)
	}
	check(t, giveBack())

	// The fleet picks the account up again, and tells the server.
	wait(t, "the account to run again and hold the key", func() bool { return w.status(t).HoldsKey })
	for action, want := range map[string]int{"secret.accepted": 5, "secret.rejected": 1, "secret.kept": 1} {
		wait(t, action, func() bool { return len(w.acts(t, action)) == want })
	}
	info, err := os.Stat(store + ".wanted")
	check(t, err)
	if info.Size() != 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("the control file has %d bytes and mode %s", info.Size(), info.Mode())
	}
	raw, err := os.ReadFile(store)
	check(t, err)
	wal, err := os.ReadFile(store + "-wal")
	check(t, err)
	if found := searchFor(right, keys).In(append(raw, wal...)); len(found) > 0 {
		t.Errorf("in the store is %v", found)
	}
}

// searchFor looks for a backup key and the user's cross-signing keys.
func searchFor(key backupkey.Key, keys *crypto.CrossSigningKeysCache) *keyheraldtest.Search {
	return keyheraldtest.NewSearch(map[string][]byte{"backup key": key.Reveal(), "master key": keys.MasterKey.Seed(),
		"self-signing key": keys.SelfSigningKey.Seed(), "user-signing key": keys.UserSigningKey.Seed()})
}
