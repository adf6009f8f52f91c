// Package e2e runs the main job on real parts: PostgreSQL, Dendrite, the server's own rooms, managed devices and stock
// clients.
package e2e

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

const password = "correct horse battery staple"

// world is the server on real parts, with one user whose history only the first key backup holds.
type world struct {
	hs          *keyheraldtest.Homeserver
	crowd       *keyheraldtest.Crowd
	clock       *keyheraldtest.Clock // the server's
	database    *keyheraldtest.Database
	db          *postgres.DB
	engine      *relay.Engine
	bot         *appservice.Bot
	endpoint    atomic.Pointer[todevice.Endpoint] // the bot's
	dir         string
	masterKey   id.Ed25519
	identity    appservice.Identity
	asToken     string
	alice       id.UserID
	stock       *keyheraldtest.Client
	recoveryKey string
	// resets is how often the user reset his key backup.
	resets int
	// deviceNow is the managed devices' clock; nil is the real one.
	deviceNow func() time.Time
	// sealed is for a server whose audit log is to be signed.
	sealed bool
	// says is what the bot says in rooms; without a database it says nothing. notices is that of the running server.
	says    notice.Config
	notices *notice.Notices
	// serverDB, where it is there, is the database as the server sees it, and whole the test that a server belongs to which a
	// part of it starts.
	serverDB *postgres.DB
	whole    *testing.T
	// proofs are those that grants may name.
	proofs map[string]*enrollment.Verifier
}

// newWorld is a world with its server running until the test ends.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := newParts(t)
	w.serve(t, w.hs.URL)
	w.people(t)
	return w
}

// newParts is a world whose server is not there yet.
func newParts(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	db, _, database := newDatabase(t)

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
	crowd, crowdRegistration, err := keyheraldtest.CrowdRegistration(dir)
	check(t, err)
	hs, err := keyheraldtest.StartWanted(ctx, cluster, dir, filepath.Join(dir, "registration.yaml"), crowdRegistration)
	check(t, err)
	t.Cleanup(func() { _ = hs.Close() })

	w := &world{hs: hs, crowd: crowd, clock: &keyheraldtest.Clock{}, database: database, db: db, dir: dir,
		masterKey: masterKey, identity: identity, asToken: registration.ASToken}
	check(t, os.MkdirAll(filepath.Join(dir, "kms"), 0o700))
	return w
}

// server makes the engine and the bot of a replica that stands on this database and homeserver.
func (w *world) server(t *testing.T, db *postgres.DB, homeserver string) (*relay.Engine, *appservice.Bot) {
	t.Helper()
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	engine, err := relay.New(relay.Config{Now: w.clock.Now, DB: db, BotUserID: w.identity.UserID, BotMasterKey: w.masterKey, Sealed: w.sealed, Proofs: w.proofs, Log: log})
	check(t, err)
	var speaker func(*mautrix.Client, func(ctx context.Context) error) appservice.Speaker
	if says := w.says; says.DB != nil {
		says.Bot, says.Now, says.Log = w.identity.UserID, w.clock.Now, log
		w.notices, err = notice.New(says)
		check(t, err)
		speaker = func(client *mautrix.Client, fence func(ctx context.Context) error) appservice.Speaker {
			return w.notices.Session(client, fence)
		}
	}
	bot, err := appservice.NewBot(appservice.BotConfig{NewSpeaker: speaker, HomeserverURL: homeserver, ASToken: w.asToken, Identity: w.identity, PickleKey: make([]byte, 32),
		Holder: "test", DB: db, Log: log, NewWorker: func(endpoint *todevice.Endpoint) appservice.Worker {
			w.endpoint.Store(endpoint)
			return engine.Session(endpoint)
		}})
	check(t, err)
	return engine, bot
}

// serve runs a replica until the test ends, and waits until it holds the bot.
func (w *world) serve(t *testing.T, homeserver string) {
	t.Helper()
	engine, bot := w.server(t, w.db, homeserver)
	w.engine, w.bot = engine, bot
	run(t, bot.Run)
	run(t, func(ctx context.Context) error {
		return w.db.Listen(ctx, relay.WorkChannel, func(string) { bot.Wake() })
	})
	// A dead replica's lease ends after 15 seconds.
	wait(t, "the bot to lead", bot.Leading)
}

// people makes Alice and her first device.
func (w *world) people(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	var err error
	w.alice, err = w.hs.CreateUser(ctx, "alice", password)
	check(t, err)
	w.stock = w.login(t, "STOCK")
	w.recoveryKey, err = w.stock.Bootstrap(ctx, password)
	check(t, err)
}

// newDatabase makes a migrated database and opens it as the writer, and as the owner.
func newDatabase(t *testing.T) (writer, owner *postgres.DB, database *keyheraldtest.Database) {
	t.Helper()
	ctx := t.Context()
	var err error
	database, err = cluster.NewDatabase(ctx)
	check(t, err)
	owner, err = postgres.Open(ctx, database.OwnerURL)
	check(t, err)
	t.Cleanup(func() { _ = owner.Close() })
	check(t, owner.Migrate(ctx, database.Roles(), keyheraldtest.Admin(), ""))
	writer, err = postgres.Open(ctx, database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = writer.Close() })
	check(t, writer.CheckSchema(ctx))
	return writer, owner, database
}

func (w *world) login(t *testing.T, device id.DeviceID) *keyheraldtest.Client {
	t.Helper()
	return w.loginAs(t, w.alice, device)
}

func (w *world) loginAs(t *testing.T, user id.UserID, device id.DeviceID) *keyheraldtest.Client {
	t.Helper()
	client, err := keyheraldtest.Login(t.Context(), w.hs.URL, user, password, device)
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

// newKey puts a fresh key into the directory KMS as its next version, with the metadata that fits.
func (w *world) newKey(t *testing.T, version string) backupkey.Key {
	t.Helper()
	key, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, version, key, key.PublicKey())
	return key
}

// waitDone waits for the newest rotation to be done.
func (w *world) waitDone(t *testing.T) {
	t.Helper()
	wait(t, "the rotation to be done", func() bool { return w.onlyRotation(t).Facts.State == rotation.Done })
}

// putRaw replaces what the KMS holds as the key of a version.
func (w *world) putRaw(t *testing.T, version, value string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(w.dir, "kms", "keyherald", "alice", version+".key"), []byte(value), 0o600))
}

// manage enrolls a managed device and runs it until the test ends.
func (w *world) manage(t *testing.T, name string, change ...func(*device.AccountConfig)) *device.Account {
	t.Helper()
	account := w.open(t, name, change...)
	w.enroll(t, account)
	run(t, account.Run)
	return account
}

func (w *world) enroll(t *testing.T, account *device.Account) {
	t.Helper()
	ctx := t.Context()
	_, err := account.Verify(ctx, nil)
	check(t, err)
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	enrollCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	check(t, account.Enroll(enrollCtx, code))
}

// account is the account file of a managed device of Alice's, as a test changed it, loaded as the program loads it.
func (w *world) account(t *testing.T, name string, change ...func(*device.AccountConfig)) device.AccountConfig {
	t.Helper()
	for file, content := range map[string]string{"password": password, "recovery": w.recoveryKey} {
		check(t, os.WriteFile(filepath.Join(w.dir, file), []byte(content), 0o600))
	}
	config := device.AccountConfig{UserID: w.alice, Homeserver: w.hs.URL, DeviceName: name,
		Login:        device.Login{PasswordFile: filepath.Join(w.dir, "password")},
		Verification: device.Verification{RecoveryKeyFile: filepath.Join(w.dir, "recovery")},
		KMS:          device.KMS{Name: "dev", Config: kmsconfig.Config{Type: kmsconfig.File, Dir: filepath.Join(w.dir, "kms")}, Path: "keyherald/alice"}, Recovery: "require",
		// No push but those that a test is about.
		Push:      device.Push{Forms: []msc4385.Form{msc4385.FormSend, msc4385.FormPush}, WaitForCarry: 30 * time.Second},
		OldBackup: device.OldBackups{Grace: 30 * 24 * time.Hour}, OnDrift: device.DriftReport}
	for _, f := range change {
		f(&config)
	}
	raw, err := yaml.Marshal(config)
	check(t, err)
	path := filepath.Join(w.dir, "accounts.d", name+".yaml")
	check(t, os.MkdirAll(filepath.Dir(path), 0o700))
	check(t, os.WriteFile(path, raw, 0o600))
	loaded, err := device.LoadAccount(path)
	check(t, err)
	return loaded
}

func (w *world) open(t *testing.T, name string, change ...func(*device.AccountConfig)) *device.Account {
	t.Helper()
	account, err := w.tryOpen(t, name, change...)
	check(t, err)
	return account
}

func (w *world) tryOpen(t *testing.T, name string, change ...func(*device.AccountConfig)) (*device.Account, error) {
	t.Helper()
	account, err := device.Open(t.Context(), w.account(t, name, change...), w.options(t, name))
	if err == nil {
		t.Cleanup(func() { _ = account.Close() })
	}
	return account, err
}

func (w *world) options(t *testing.T, name string) device.Options {
	return device.Options{StorePath: w.store(name), PickleKey: make([]byte, 32), StatusInterval: time.Second, Now: w.deviceNow,
		Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)}
}

func (w *world) store(name string) string { return filepath.Join(w.dir, name+".db") }

func (w *world) notify(t *testing.T, id, version string, change ...func(*intake.Notification)) {
	t.Helper()
	n := intake.Notification{Source: "dev", ID: id, KeyID: "k1", BodySHA256: [32]byte{1},
		User: w.alice.String(), Secret: protocol.SecretMegolmBackup, KMS: "dev", Path: "keyherald/alice", Version: version}
	for _, f := range change {
		f(&n)
	}
	receipt, err := w.engine.Accept(t.Context(), n)
	check(t, err)
	if receipt.Answer != intake.Fresh {
		t.Fatalf("the notification was answered %v", receipt.Answer)
	}
}
