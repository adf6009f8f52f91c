// Package e2e runs the main job on real parts: PostgreSQL, Dendrite, the server's own rooms, managed devices and stock
// clients.
package e2e

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

const password = "correct horse battery staple"

// world is the server on real parts, with one user whose history only the first key backup holds.
type world struct {
	hs          *keyheraldtest.Dendrite
	db          *postgres.DB
	engine      *relay.Engine
	dir         string
	alice       id.UserID
	stock       *keyheraldtest.Client
	recoveryKey string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	pg, err := keyheraldtest.StartPostgres(ctx)
	check(t, err)
	t.Cleanup(func() { _ = pg.Close() })
	database, err := pg.NewDatabase(ctx)
	check(t, err)
	owner, err := postgres.Open(ctx, database.OwnerURL)
	check(t, err)
	check(t, owner.Migrate(ctx, postgres.Roles{Writer: database.Writer, Auditor: database.Auditor}))
	check(t, owner.Close())
	db, err := postgres.Open(ctx, database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	check(t, db.CheckSchema(ctx))

	bot := id.NewUserID("keyherald", keyheraldtest.ServerName)
	masterKey, err := appservice.Keygen(dir, bot)
	check(t, err)
	identity, err := appservice.LoadIdentity(filepath.Join(dir, appservice.IdentityFile), filepath.Join(dir, appservice.SelfSigningFile))
	check(t, err)
	registration, err := appservice.NewRegistration(nil, bot, "http://127.0.0.1:1", false)
	check(t, err)
	encoded, err := yaml.Marshal(registration)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "registration.yaml"), encoded, 0o600))
	hs, err := keyheraldtest.StartDendrite(ctx, dir, filepath.Join(dir, "registration.yaml"))
	check(t, err)
	t.Cleanup(func() { _ = hs.Close() })

	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	engine, err := relay.New(relay.Config{DB: db, BotUserID: bot, BotMasterKey: masterKey, Log: log})
	check(t, err)
	b, err := appservice.NewBot(appservice.BotConfig{HomeserverURL: hs.URL, ASToken: registration.ASToken, Identity: identity, PickleKey: make([]byte, 32),
		Holder: "test", DB: db, Log: log, NewWorker: func(endpoint *todevice.Endpoint) appservice.Worker { return engine.Session(endpoint) }})
	check(t, err)
	run(t, func(ctx context.Context) error { return b.Run(ctx) })
	run(t, func(ctx context.Context) error {
		return db.Listen(ctx, relay.WorkChannel, func(string) { b.Wake() })
	})
	wait(t, "the bot to lead", func() bool { return b.Leading() })

	w := &world{hs: hs, db: db, engine: engine, dir: dir}
	check(t, os.MkdirAll(filepath.Join(dir, "kms"), 0o700))
	w.alice, err = hs.CreateUser(ctx, "alice", password)
	check(t, err)
	w.stock = w.login(t, "STOCK")
	w.recoveryKey, err = w.stock.Bootstrap(ctx, password)
	check(t, err)
	return w
}

func (w *world) login(t *testing.T, device id.DeviceID) *keyheraldtest.Client {
	t.Helper()
	client, err := keyheraldtest.Login(t.Context(), w.hs.URL, w.alice, password, device)
	check(t, err)
	t.Cleanup(client.Close)
	return client
}

// putKey puts a key into the directory KMS as its next version, public key first.
func (w *world) putKey(t *testing.T, version string, key backupkey.Key, publicKey string) {
	t.Helper()
	dir := filepath.Join(w.dir, "kms", "keyherald", "alice")
	check(t, os.MkdirAll(dir, 0o700))
	check(t, os.WriteFile(filepath.Join(dir, version+".pub"), []byte(publicKey), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, version+".key"), []byte(key.RevealBase64()), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "current"), []byte(version), 0o600))
}

// putRaw replaces what the KMS holds as the key of a version.
func (w *world) putRaw(t *testing.T, version, value string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(w.dir, "kms", "keyherald", "alice", version+".key"), []byte(value), 0o600))
}

// manage enrolls a managed device and runs it until the test ends.
func (w *world) manage(t *testing.T, name string) {
	t.Helper()
	ctx := t.Context()
	account := w.open(t, name)
	_, err := account.Verify(ctx, nil)
	check(t, err)
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, "local:test")
	check(t, err)
	enrollCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	check(t, account.Enroll(enrollCtx, code))
	run(t, account.Run)
}

func (w *world) open(t *testing.T, name string) *device.Account {
	t.Helper()
	for file, content := range map[string]string{"password": password, "recovery": w.recoveryKey} {
		check(t, os.WriteFile(filepath.Join(w.dir, file), []byte(content), 0o600))
	}
	config := device.AccountConfig{UserID: w.alice, Homeserver: w.hs.URL, DeviceName: name,
		Login:        device.Login{PasswordFile: filepath.Join(w.dir, "password")},
		Verification: device.Verification{RecoveryKeyFile: filepath.Join(w.dir, "recovery")},
		KMS:          device.KMS{Name: "dev", Type: "file", Dir: filepath.Join(w.dir, "kms"), Path: "keyherald/alice"}, Recovery: "require"}
	raw, err := yaml.Marshal(config)
	check(t, err)
	path := filepath.Join(w.dir, name+".yaml")
	check(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(raw), "push:\n    forms: []\n    wait_for_carry: 0s\n", "")), 0o600))
	loaded, err := device.LoadAccount(path)
	check(t, err)
	account, err := device.Open(t.Context(), loaded, device.Options{StorePath: filepath.Join(w.dir, name+".db"), PickleKey: make([]byte, 32),
		Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)})
	check(t, err)
	t.Cleanup(func() { _ = account.Close() })
	return account
}

func (w *world) notify(t *testing.T, id, version string) {
	t.Helper()
	receipt, err := w.engine.Accept(t.Context(), intake.Notification{Source: "dev", ID: id, KeyID: "k1", BodySHA256: [32]byte{1},
		User: w.alice.String(), Secret: protocol.SecretMegolmBackup, KMS: "dev", Path: "keyherald/alice", Version: version})
	check(t, err)
	if receipt.Answer != intake.Fresh {
		t.Fatalf("the notification was answered %v", receipt.Answer)
	}
}

func TestARotationReachesEveryCrossSignedDeviceAndLosesNoHistory(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	oldKey, err := backup.NewMegolmBackupKey()
	check(t, err)
	version, err := w.stock.CreateBackup(ctx, oldKey, w.recoveryKey)
	check(t, err)
	room, message, err := w.stock.WriteHistory(ctx, version, oldKey, "only the first backup knows")
	check(t, err)
	newKey, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, "1", newKey, newKey.PublicKey())

	receiver := w.login(t, "RECEIVER")
	check(t, receiver.Verify(ctx, w.recoveryKey))
	stranger := w.login(t, "STRANGER")
	w.manage(t, "managed")

	w.notify(t, "n1", "1")
	var done postgres.Rotation
	wait(t, "the rotation to be done", func() bool {
		rotations, err := w.db.Rotations(ctx, w.alice, false)
		check(t, err)
		if len(rotations) == 1 {
			done = rotations[0]
		}
		return done.Facts.State == rotation.Done || done.Facts.Attention != ""
	})
	if done.Facts.State != rotation.Done {
		t.Fatalf("the rotation needs attention: %s: %s", done.Facts.Attention, done.NextAction)
	}
	waitCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pushes, err := receiver.WaitForPush(waitCtx)
	check(t, err)
	if pushes[0].Name != "m.megolm_backup.v1" || pushes[0].Secret != newKey.RevealBase64() {
		t.Error("the receiver did not get the new key")
	}
	if raw := string(pushes[0].Raw); strings.Contains(raw, "request_id") {
		t.Error("the push has a request_id")
	}
	if len(stranger.Pushes()) != 0 {
		t.Error("a device that was never verified got a push")
	}
	private, err := backup.MegolmBackupKeyFromBytes(newKey.Reveal())
	check(t, err)
	text, err := receiver.ReadHistory(ctx, room, message, private)
	check(t, err)
	if text != "only the first backup knows" {
		t.Errorf("the receiver reads %q", text)
	}
	fresh := w.login(t, "FRESH")
	keyID, metadata, err := fresh.Machine.SSSS.GetDefaultKeyData(ctx)
	check(t, err)
	fourS, err := metadata.VerifyRecoveryKey(keyID, w.recoveryKey)
	check(t, err)
	copied, err := fresh.Machine.SSSS.GetDecryptedAccountData(ctx, backupSecret, fourS)
	check(t, err)
	if base64.RawStdEncoding.EncodeToString(copied) != newKey.RevealBase64() {
		t.Error("a new login does not find the new key in secret storage")
	}
	outcomes, err := w.db.Outcomes(ctx, done.ID)
	check(t, err)
	if outcomes["sent"] != 2 || outcomes["skipped_unverified"] != 1 {
		t.Errorf("outcomes are %v", outcomes)
	}
	lines, err := w.db.Log(ctx, done.ID.String(), 100)
	check(t, err)
	for _, action := range []string{"notification.accepted", "trigger.queued", "trigger.sent", "progress.reported", "delivery.reported", "rotation.done"} {
		found := false
		for _, line := range lines {
			found = found || line.Action == action
		}
		if !found {
			t.Errorf("the audit log has no %s", action)
		}
	}
}
