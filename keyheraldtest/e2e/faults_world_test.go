package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/lib/pq"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/setecsecret"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/todevice"
)

const kmsPath = "keyherald/alice"

// faulty is a world in which every write on the way of a rotation passes one recorder: the server's to PostgreSQL and
// the homeserver, the managed device's to SQLite, the homeserver and the KMS. The test itself looks on past it.
type faulty struct {
	*world
	faults           *faults.Recorder
	setec            *testsetec.Server
	botSide, devSide *faults.Proxy
	kmsSide          *faults.Proxy
	wire             *wire
	web              *echo.Echo
	server, device   *program
	store            *sql.DB
	targets          int // STOCK, RECEIVER, and whatever a test adds
	received         *receptions
	kmsVersion       string
	backupVersion    int
	notifications    int
	// restart is the program that the next fault kills, nil for none; struck is closed when it has.
	restart *program
	struck  chan struct{}
	// asked makes rotate ask the device for a key instead of putting one into the KMS, and exclude is who is not to have it;
	// kms reads what it made.
	asked   bool
	exclude []id.DeviceID
	kms     *setecsecret.Client
	// account changes the managed device's account file; statusInterval is an hour where a test says nothing else.
	account        func(*device.AccountConfig)
	statusInterval time.Duration
	// behind is the homeserver as the managed device sees it, and roomKeys how many the user's history has.
	behind   *behind
	roomKeys int
}

// program is what an operator would start again: the server, or the device. done is closed when it has ended, with err
// as its end; it stays so until the next start.
type program struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
	start  func()
}

// running runs loops until the program is cancelled; at ends come after them.
func (p *program) running(t *testing.T, ends func() error, loops ...func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	p.cancel, p.done, p.err = cancel, done, nil
	go func() {
		defer close(done)
		var all sync.WaitGroup
		errs := make([]error, len(loops))
		for i, loop := range loops {
			all.Go(func() {
				if err := loop(ctx); ctx.Err() == nil {
					errs[i] = fmt.Errorf("a part ended by itself: %w", err)
				}
			})
		}
		all.Wait()
		p.err = errors.Join(append(errs, ends())...)
	}()
}

func (p *program) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	select {
	case <-p.done:
		check(t, p.err)
	case <-time.After(time.Minute):
		stacks := make([]byte, 1<<20)
		t.Fatalf("a program did not end within a minute of its cancellation:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
}

func newFaulty(t *testing.T, changes ...func(w *faulty)) *faulty {
	t.Helper()
	ctx := t.Context()
	w := &faulty{world: newParts(t), faults: &faults.Recorder{}, wire: newWire(), received: newReceptions(), targets: 2, struck: make(chan struct{}),
		account: func(*device.AccountConfig) {}, statusInterval: time.Hour, roomKeys: 1}
	w.behind = newBehind(t, w.hs.URL)
	for _, change := range changes {
		change(w)
	}
	w.faults.Begin()
	proxy := func(name, target string, namer faults.Namer, seen func(*http.Request, []byte)) *faults.Proxy {
		proxy, err := w.faults.Proxy(name, target, namer, seen)
		check(t, err)
		t.Cleanup(func() { _ = proxy.Close() })
		return proxy
	}
	w.botSide = proxy("server to homeserver", w.hs.URL, faults.Homeserver, w.wire.seen("bot"))
	w.devSide = proxy("device to homeserver", w.behind.URL, faults.Homeserver, w.wire.seen("device"))
	var err error
	w.setec, err = testsetec.Start(ctx, w.dir)
	check(t, err)
	t.Cleanup(func() { _ = w.setec.Close() })
	url, err := w.setec.Principal("device", testsetec.WriterRules(kmsPath))
	check(t, err)
	w.kmsSide = proxy("device to KMS", url, faults.EveryRequest, nil)
	w.kms, err = setecsecret.New(setecsecret.Config{URL: url})
	check(t, err)

	w.server = &program{start: func() { w.startServer(t) }}
	w.startServer(t)
	t.Cleanup(func() { w.server.stop(t) })
	w.people(t)
	old, version := w.ownBackup(t)
	_, _, err = w.stock.WriteHistory(ctx, version, old, history)
	check(t, err)
	w.receive(t)
	w.device = &program{start: func() { w.startDevice(t) }}
	w.startDevice(t)
	t.Cleanup(func() { w.device.stop(t) })
	w.store = w.look(t, "managed")
	return w
}

// look opens a managed device's store to be read.
func (w *world) look(t *testing.T, name string) *sql.DB {
	t.Helper()
	store, err := sql.Open("sqlite", "file:"+w.store(name)+"?mode=ro&_pragma=busy_timeout(5000)")
	check(t, err)
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func (w *faulty) startServer(t *testing.T) {
	t.Helper()
	connector, err := pq.NewConnector(w.database.WriterURL)
	check(t, err)
	db, err := postgres.OpenWith(t.Context(), sql.OpenDB(w.faults.Connector("PostgreSQL", connector)), w.database.WriterURL)
	check(t, err)
	engine, bot := w.world.server(t, db, w.botSide.URL)
	handler, err := intake.New(intake.Config{Sources: map[string]intake.Source{"kms": {Keys: []intake.Key{{ID: "k1", Secret: signingSecret}},
		Mapping: intake.Mapping{Pattern: "keyherald/(?P<user>[a-z]*)", User: "@{user}:" + keyheraldtest.ServerName, KMS: "dev"}}}},
		intake.Deps{Recorder: engine, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)})
	check(t, err)
	w.engine, w.web = engine, echo.New()
	handler.Register(w.web)
	w.server.running(t, db.Close, bot.Run,
		func(ctx context.Context) error {
			return db.Listen(ctx, relay.WorkChannel, func(string) { bot.Wake() })
		},
		func(ctx context.Context) error { handler.Run(ctx); return nil })
	wait(t, "the bot to lead", bot.Leading)
}

func (w *faulty) startDevice(t *testing.T) {
	t.Helper()
	account := w.openDevice(t)
	if enrolled, err := account.Enrolled(t.Context()); err != nil || !enrolled {
		check(t, err)
		w.enroll(t, account)
	}
	w.device.running(t, account.Close, account.Run)
}

// openDevice opens the managed device's account, as the running device and commands do.
func (w *faulty) openDevice(t *testing.T) *device.Account {
	t.Helper()
	return w.openNamed(t, "managed")
}

func (w *faulty) openNamed(t *testing.T, name string) *device.Account {
	t.Helper()
	config := w.world.account(t, name, func(c *device.AccountConfig) {
		w.account(c)
		c.Homeserver = w.devSide.URL
		c.KMS = device.KMS{Name: "dev", Config: kmsconfig.Config{Type: kmsconfig.Setec, URL: w.kmsSide.URL}, Path: kmsPath}
	})
	options := w.options(t, name)
	options.StatusInterval = w.statusInterval
	options.OpenSQLite = func(dataSource string) (*sql.DB, error) {
		plain, err := sql.Open("sqlite", "")
		if err != nil {
			return nil, err
		}
		defer func() { _ = plain.Close() }()
		return sql.OpenDB(w.faults.Connector("SQLite", faults.DriverConnector(plain.Driver(), dataSource))), nil
	}
	account, err := device.Open(t.Context(), config, options)
	check(t, err)
	return account
}

// receive begins to count on a verified device what arrives.
func (w *faulty) receive(t *testing.T) {
	t.Helper()
	receiver := w.verified(t, "RECEIVER")
	run(t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			_, err := receiver.Endpoint.Sync(ctx, time.Second)
			err = errors.Join(err, receiver.Endpoint.Process(ctx, w.received))
			if err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
}

// verified is a device of Alice's, cross-signed.
func (w *faulty) verified(t *testing.T, deviceID id.DeviceID) *keyheraldtest.Receiver {
	t.Helper()
	receiver := w.receiver(t, deviceID)
	signing, identity, err := receiver.Endpoint.Keys(t.Context())
	check(t, err)
	check(t, w.stock.Machine.SignOwnDevice(t.Context(), &id.Device{UserID: w.alice, DeviceID: deviceID, SigningKey: signing, IdentityKey: identity}))
	return receiver
}

// rotate puts a new key into the KMS, tells the server until it says 202, as a KMS does, and waits for the end.
func (w *faulty) rotate(t *testing.T) backupkey.Key {
	t.Helper()
	if w.asked {
		return w.rotateByDevice(t)
	}
	key, err := backupkey.Generate()
	check(t, err)
	w.kmsVersion, err = w.setec.PutKey(t.Context(), kmsPath, key)
	check(t, err)
	w.notifyOf(t, w.kmsVersion)
	err = keyheraldtest.Until(t.Context(), patience, func() error {
		w.tend(t)
		return w.unsettled(t, key)
	})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// notifyOf tells the server of a version until it says 202, as a KMS does.
func (w *faulty) notifyOf(t *testing.T, version string) {
	t.Helper()
	w.notifications++
	body := cloudEvent(fmt.Sprint(w.notifications), kmsPath, version)
	check(t, keyheraldtest.Until(t.Context(), patience, func() error {
		answer := send(t, w.web, post{body: body})
		w.checkAnswer(t, answer.Code)
		w.tend(t)
		if answer.Code != http.StatusAccepted {
			return fmt.Errorf("the notification is answered %d %s", answer.Code, answer.Body)
		}
		return nil
	}))
}

// rotateByDevice asks for a key that the device makes, until the server has it, and waits for the end. The KMS's word
// about it comes after the end, as an echo.
func (w *faulty) rotateByDevice(t *testing.T) backupkey.Key {
	t.Helper()
	ctx := t.Context()
	before := w.count(t, `SELECT COUNT(*) FROM rotation`)
	err := keyheraldtest.Until(ctx, patience, func() error {
		w.tend(t)
		if w.count(t, `SELECT COUNT(*) FROM rotation`) > before {
			return nil // what was said to have failed had been committed
		}
		_, err := w.engine.Rotate(ctx, relay.RotateRequest{UserID: w.alice, KMS: "dev", Path: kmsPath, Exclude: w.exclude}, keyheraldtest.Admin())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var key backupkey.Key
	err = keyheraldtest.Until(ctx, patience, func() error {
		w.tend(t)
		value, err := w.kms.Fetch(ctx, kmsPath, "")
		if err != nil {
			return err
		}
		key, w.kmsVersion = value.Key, value.Version
		return w.unsettled(t, key)
	})
	if err != nil {
		t.Fatal(err)
	}
	w.notifications++
	answer := send(t, w.web, post{body: cloudEvent(fmt.Sprint(w.notifications), kmsPath, w.kmsVersion)})
	if n := w.count(t, `SELECT COUNT(*) FROM rotation`); answer.Code != http.StatusAccepted || n != before+1 {
		t.Errorf("the echo is answered %d, and there are %d rotations more", answer.Code, n-before)
	}
	return key
}

// tend starts again what a fault has killed.
func (w *faulty) tend(t *testing.T) {
	t.Helper()
	if w.restart == nil {
		return
	}
	select {
	case <-w.struck:
		killed := w.restart
		w.restart = nil
		killed.stop(t)
		killed.start()
	default:
	}
}

// wire is what left for the homeserver's sendToDevice.
type wire struct {
	mu    sync.Mutex                       // guards the rest
	bytes map[string]map[[32]byte]bool     // by transaction id
	sent  map[string]map[[32]byte]struct{} // by sender: the contents
}

func newWire() *wire {
	return &wire{bytes: map[string]map[[32]byte]bool{}, sent: map[string]map[[32]byte]struct{}{"bot": {}, "device": {}}}
}

func (w *wire) seen(sender string) func(*http.Request, []byte) {
	return func(req *http.Request, raw []byte) {
		if dir, txn := path.Split(req.URL.Path); bytes.Contains([]byte(dir), []byte("/sendToDevice/")) {
			var body struct {
				Messages map[id.UserID]map[id.DeviceID]json.RawMessage `json:"messages"`
			}
			_ = json.Unmarshal(raw, &body)
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.bytes[txn] == nil {
				w.bytes[txn] = map[[32]byte]bool{}
			}
			w.bytes[txn][sha256.Sum256(raw)] = true
			for _, devices := range body.Messages {
				for _, content := range devices {
					w.sent[sender][hashOf(content)] = struct{}{}
				}
			}
		}
	}
}

func hashOf(content []byte) [32]byte {
	var compact bytes.Buffer
	_ = json.Compact(&compact, content)
	return sha256.Sum256(compact.Bytes())
}

// receptions is a handler that counts by plaintext, of what came inside Olm.
type receptions struct {
	mu         sync.Mutex // guards the rest
	times      map[string]map[[32]byte]int
	unreadable []string
}

func newReceptions() *receptions { return &receptions{times: map[string]map[[32]byte]int{}} }

func (r *receptions) Admit(context.Context, todevice.Envelope) (todevice.Admission, error) {
	return todevice.Admission{}, nil
}

func (r *receptions) Handle(_ context.Context, message *todevice.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	plaintext := message.Type + " " + string(message.Content)
	if r.times[plaintext] == nil {
		r.times[plaintext] = map[[32]byte]int{}
	}
	r.times[plaintext][message.CiphertextHash]++
	return nil
}

func (r *receptions) Undecryptable(_ context.Context, _ todevice.Envelope, reason string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unreadable = append(r.unreadable, reason)
	return nil
}

// having counts the ciphertexts whose plaintext has a text in it, and how often they were decrypted.
func (r *receptions) having(text string) (distinct, decryptions int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for plaintext, times := range r.times {
		if strings.Contains(plaintext, text) {
			for _, n := range times {
				distinct, decryptions = distinct+1, decryptions+n
			}
		}
	}
	return distinct, decryptions
}

// ciphertexts counts, for one plaintext, the ciphertexts and how often they were decrypted.
func (r *receptions) ciphertexts(plaintext string) (distinct, decryptions int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.times[plaintext] {
		distinct, decryptions = distinct+1, decryptions+n
	}
	return distinct, decryptions
}
