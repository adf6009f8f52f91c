package chaos

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
	"github.com/keyherald/keyherald/postgres"
)

const (
	password = "correct horse battery staple"
	botName  = "keyherald"
	logName  = "example.org/keyherald"
	userN    = 4
	fleetN   = 2
)

// world is the company under attack: two servers, two fleets of managed devices, and what they stand on, every
// connection through something that can fail.
type world struct {
	config   Config
	closers  []func() error
	pg       *keyheraldtest.Postgres
	database *keyheraldtest.Database
	// db looks at the truth, past every link.
	db     *postgres.DB
	hs     *keyheraldtest.Homeserver
	setec  *testsetec.Server
	pgLink *link
	// hsGate is the servers' way to the homeserver; every managed device has one of its own among hsGates.
	hsGate            *gate
	hsGates, kmsGates []*gate
	servers           []*process
	doors             []string
	fleets            []*process
	signingKey        string
	users             []*user
}

// user is one person: the clients that must get the key, and what was put into the KMS.
type user struct {
	id        id.UserID
	name      string
	fleet     int
	receivers []*keyheraldtest.Receiver
	keys      []backupkey.Key
	history   *history
	// laptop is a client that only backs room keys up, past every gate; gate is the managed device's way to the homeserver.
	laptop *mautrix.Client
	gate   *gate
}

func (u *user) path() string { return "keyherald/" + u.name + "/backup-key" }

func (w *world) close() error {
	var err error
	for i := len(w.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, w.closers[i]())
	}
	return err
}

func build(ctx context.Context, config Config) (*world, error) {
	w := &world{config: config}
	for _, step := range []func(context.Context) error{w.startPostgres, w.prepare, w.startServers, w.startPeople} {
		if err := step(ctx); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *world) startPostgres(ctx context.Context) (err error) {
	if w.pg, err = keyheraldtest.StartPostgres(ctx); err != nil {
		return err
	}
	w.closers = append(w.closers, w.pg.Close)
	if w.database, err = w.pg.NewDatabase(ctx); err != nil {
		return err
	}
	u, err := url.Parse(w.database.WriterURL)
	if err != nil {
		return err
	}
	if w.pgLink, err = newLink(u.Host); err != nil {
		return err
	}
	w.closers = append(w.closers, w.pgLink.close)
	u.Host = w.pgLink.address()
	if w.db, err = postgres.Open(ctx, w.database.SuperURL); err != nil {
		return err
	}
	w.closers = append(w.closers, w.db.Close)
	seal, err := url.Parse(w.database.SignerURL)
	if err != nil {
		return err
	}
	seal.Host = u.Host
	return errors.Join(w.write("owner.url", w.database.OwnerURL), w.write("writer.url", u.String()), w.write("signer.url", seal.String()))
}

func (w *world) prepare(ctx context.Context) (err error) {
	secret, pickle := make([]byte, 32), make([]byte, 32)
	_, _ = rand.Read(secret)
	_, _ = rand.Read(pickle)
	w.signingKey = "whsec_" + base64.StdEncoding.EncodeToString(secret)
	if err := errors.Join(w.write("kms.secret", w.signingKey), w.write("bot-pickle.key", base64.StdEncoding.EncodeToString(pickle))); err != nil {
		return err
	}
	for range 2 {
		port, err := keyheraldtest.FreePort()
		if err != nil {
			return err
		}
		w.doors = append(w.doors, "127.0.0.1:"+strconv.Itoa(port))
	}
	if err := w.writeConfigs("http://127.0.0.1:1"); err != nil {
		return err
	}
	if _, err := w.keyherald(ctx, "bot", "keygen", "--user", id.NewUserID(botName, keyheraldtest.ServerName).String()); err != nil {
		return err
	}
	if _, err := w.keyherald(ctx, "audit", "keygen", "--name", logName, "--out", filepath.Join(w.config.Dir, "audit.key")); err != nil {
		return err
	}
	if _, err := w.keyherald(ctx, "registration"); err != nil {
		return err
	}
	if w.hs, err = keyheraldtest.StartDendrite(ctx, w.config.Dir, filepath.Join(w.config.Dir, "registration.yaml")); err != nil {
		return err
	}
	w.closers = append(w.closers, w.hs.Close)
	if w.hsGate, err = newGate(w.hs.URL); err != nil {
		return err
	}
	w.closers = append(w.closers, w.hsGate.close)
	w.hsGates = append(w.hsGates, w.hsGate)
	if w.setec, err = testsetec.Start(ctx, w.config.Dir); err != nil {
		return err
	}
	w.closers = append(w.closers, w.setec.Close)
	return w.writeConfigs(w.hsGate.url)
}

// writeConfigs writes config.yaml for the first server and the operator, and config-1.yaml for the second server.
func (w *world) writeConfigs(homeserver string) error {
	var all error
	for i, door := range w.doors {
		name := "config.yaml"
		if i > 0 {
			name = fmt.Sprintf("config-%d.yaml", i)
		}
		all = errors.Join(all, w.write(name, fmt.Sprintf(`listen: %[1]s
public_url: http://%[1]s
homeserver: %[2]s
registration: registration.yaml
storm: {limit: {percent: 100, users: 1000}}
bot: {user_id: "@%[3]s:%[4]s", identity_file: bot-identity.json, self_signing_file: bot-self-signing.seed, pickle_key_file: bot-pickle.key}
database: {url_file: writer.url, owner_url_file: owner.url, signer_url_file: signer.url, roles: {writer: %[5]s, auditor: %[6]s, signer: %[7]s}}
audit: {name: %[8]s, signing_key_files: [audit.key], sinks: [{name: minutes, type: directory, path: checkpoints}]}
sources:
  corporate-kms:
    keys: [{id: k1, secret_file: kms.secret}]
    mapping: {pattern: "keyherald/(?P<user>[a-z0-9]+)/backup-key", user: "@{user}:%[4]s", kms: corporate}
`, door, homeserver, botName, keyheraldtest.ServerName, w.database.Writer, w.database.Auditor, w.database.Signer, logName)))
	}
	return all
}

func (w *world) startServers(ctx context.Context) error {
	if _, err := w.keyherald(ctx, "migrate"); err != nil {
		return err
	}
	if err := w.operator().Admit(ctx); err != nil {
		return err
	}
	for i := range w.doors {
		config := "config.yaml"
		if i > 0 {
			config = fmt.Sprintf("config-%d.yaml", i)
		}
		w.servers = append(w.servers, w.process(fmt.Sprintf("server-%d", i), "keyherald", "serve", "-c", config))
	}
	for _, server := range w.servers {
		if err := server.start(); err != nil {
			return err
		}
	}
	return keyheraldtest.Until(ctx, time.Minute, func() error {
		for _, door := range w.doors {
			resp, err := http.Get("http://" + door + "/readyz")
			if err != nil {
				return err
			}
			var body bytes.Buffer
			_, _ = body.ReadFrom(resp.Body)
			_ = resp.Body.Close()
			if strings.Contains(body.String(), "holding the bot") {
				return nil
			}
		}
		return errors.New("no server holds the bot yet")
	})
}

func (w *world) startPeople(ctx context.Context) error {
	for i := range fleetN {
		name := fmt.Sprintf("fleet-%d", i)
		err := w.write(name+".yaml", fmt.Sprintf("accounts_dir: %[1]s/accounts.d\nstate_dir: %[1]s/state\npickle_key_file: %[1]s/pickle.key\nstatus_interval: 1m\n", name))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(w.config.Dir, name, "accounts.d"), 0o700); err != nil {
			return err
		}
		w.fleets = append(w.fleets, w.process(name, "keyherald-device", "run", "-c", name+".yaml"))
	}
	for i := range userN {
		keys := shortHistory
		if i < fleetN {
			keys = longHistory
		}
		u, err := w.person(ctx, fmt.Sprintf("user%d", i), i%fleetN, keys)
		if err != nil {
			return fmt.Errorf("user %d: %w", i, err)
		}
		w.users = append(w.users, u)
	}
	for _, fleet := range w.fleets {
		if err := fleet.start(); err != nil {
			return err
		}
	}
	return nil
}

// person makes a user with a history that only the first key backup holds, two receiving devices, and an enrolled
// managed device. The client that set it all up logs out: it is no target.
func (w *world) person(ctx context.Context, name string, fleet, roomKeys int) (*user, error) {
	u := &user{name: name, fleet: fleet, history: &history{taken: map[keyName]roomKey{}}}
	var err error
	if u.id, err = w.hs.CreateUser(ctx, name, password); err != nil {
		return nil, err
	}
	stock, err := keyheraldtest.Login(ctx, w.hs.URL, u.id, password, "STOCK")
	if err != nil {
		return nil, err
	}
	defer stock.Close()
	recoveryKey, err := stock.Bootstrap(ctx, password)
	if err != nil {
		return nil, err
	}
	first, err := backupkey.Generate()
	if err != nil {
		return nil, err
	}
	old, err := backup.MegolmBackupKeyFromBytes(first.Reveal())
	if err != nil {
		return nil, err
	}
	if _, err := stock.CreateBackup(ctx, old, recoveryKey); err != nil {
		return nil, err
	}
	if u.laptop, err = mautrix.NewClient(w.hs.URL, "", ""); err != nil {
		return nil, err
	}
	_, err = u.laptop.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: "LAPTOP", StoreCredentials: true,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: u.id.String()}})
	if err != nil {
		return nil, err
	}
	if err := u.fill(ctx, roomKeys); err != nil {
		return nil, err
	}
	if _, err := w.setec.PutKey(ctx, u.path(), first); err != nil {
		return nil, err
	}
	u.keys = append(u.keys, first)
	for i := range 2 {
		device := id.DeviceID(fmt.Sprintf("%sR%d", strings.ToUpper(name), i))
		receiver, err := keyheraldtest.NewReceiver(ctx, w.hs.URL, u.id, password, device, w.config.Dir)
		if err != nil {
			return nil, err
		}
		w.closers = append(w.closers, receiver.Close)
		signing, identity, err := receiver.Endpoint.Keys(ctx)
		if err != nil {
			return nil, err
		}
		if err := stock.Machine.SignOwnDevice(ctx, &id.Device{UserID: u.id, DeviceID: device, SigningKey: signing, IdentityKey: identity}); err != nil {
			return nil, err
		}
		u.receivers = append(u.receivers, receiver)
	}
	if err := w.enroll(ctx, u, recoveryKey); err != nil {
		return nil, err
	}
	_, err = stock.Logout(ctx)
	return u, err
}

func (w *world) enroll(ctx context.Context, u *user, recoveryKey string) error {
	deviceURL, err := w.setec.Principal(u.name+"-device", testsetec.DeviceRules(u.path()))
	if err != nil {
		return err
	}
	kms, err := newGate(deviceURL)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, kms.close)
	w.kmsGates = append(w.kmsGates, kms)
	if u.gate, err = newGate(w.hs.URL); err != nil {
		return err
	}
	w.closers = append(w.closers, u.gate.close)
	w.hsGates = append(w.hsGates, u.gate)
	fleet := fmt.Sprintf("fleet-%d", u.fleet)
	for name, content := range map[string]string{
		u.name + ".password": password, u.name + ".recovery-key": recoveryKey,
		fleet + "/accounts.d/" + u.name + ".yaml": fmt.Sprintf(`user_id: "%[1]s"
homeserver: %[2]s
login: {password_file: ../../%[3]s.password}
verification: {recovery_key_file: ../../%[3]s.recovery-key}
kms: {name: corporate, type: setec, url: "%[4]s", path: %[5]s}
# A repetition is the same secret once more by intent, and could not be told from one sent twice by mistake.
push: {repeat_after: 0s}
`, u.id, u.gate.url, u.name, kms.url, u.path()),
	} {
		if err := w.write(name, content); err != nil {
			return err
		}
	}
	code, err := w.keyherald(ctx, "enroll", "--user", u.id.String())
	if err != nil {
		return err
	}
	if err := w.write("code", code); err != nil {
		return err
	}
	_, err = w.command(ctx, "keyherald-device", "enroll", "-c", fleet+".yaml", "--account", u.name, "--code-file", "code")
	return err
}

func (w *world) keyherald(ctx context.Context, args ...string) (string, error) {
	return w.operator().Run(ctx, args...)
}

// operator acts by the API of the first server.
func (w *world) operator() keyheraldtest.Operator {
	return keyheraldtest.Operator{Dir: w.config.Dir, Program: filepath.Join(w.config.Programs, "keyherald"), Server: "http://" + w.doors[0]}
}

func (w *world) command(ctx context.Context, name string, args ...string) (string, error) {
	return keyheraldtest.Command(ctx, w.config.Dir, filepath.Join(w.config.Programs, name), args...)
}

func (w *world) process(name, program string, args ...string) *process {
	p := &process{name: name, dir: w.config.Dir, program: filepath.Join(w.config.Programs, program), args: args}
	if w.config.Sabotage != "" {
		p.env = []string{"KEYHERALD_SABOTAGE=" + w.config.Sabotage}
	}
	w.closers = append(w.closers, p.stop)
	return p
}

func (w *world) write(name, content string) error {
	path := filepath.Join(w.config.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}
