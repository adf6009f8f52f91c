// Package todevice is one device's end of Olm-encrypted to-device messaging, with the database as the only place where
// state lives: a raw-first inbox, decryption and encryption inside the caller's transaction, an outbox of ciphertexts,
// and the upkeep of one-time keys. The bot (PostgreSQL) and the managed device (SQLite) both stand on it.
//
// An Olm step is a database transaction. Account and sessions are read from the crypto store when a transaction
// begins and forgotten when it ends, so a rolled-back ratchet cannot be used again, and a message's decryption, its
// effect and the answers to it commit together or not at all. Nothing is sent and nothing is fetched inside a
// transaction: one-time keys are claimed before it (Claim), ciphertexts leave after it (Flush), and only the bytes
// that were committed are ever sent.
//
// mautrix's OlmMachine is not used: its decryption fetches keys over HTTP, starts goroutines that write and send
// outside any transaction, and logs store errors instead of returning them. Its Olm primitives and its store are.
package todevice

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/sql_store_upgrade"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

//go:embed upgrades/*.sql
var upgradeFiles embed.FS

// Databases returns the schemas an endpoint needs in db, to be upgraded in this order: mautrix's crypto store, then
// the inbox and outbox. Each keeps its own version table.
func Databases(db *dbutil.Database) []*dbutil.Database {
	table := dbutil.BuildUpgradeTable().WithFSPath(upgradeFiles, "upgrades").Finish()
	return []*dbutil.Database{
		db.Child(sql_store_upgrade.VersionTableName, sql_store_upgrade.Table, nil),
		db.Child("todevice_version", table, nil),
	}
}

// Config is what an Endpoint stands on. Client must be logged in as the device; its retries are switched off, since
// the outbox retries by itself. Fence, if set, runs first in every transaction and fails it: the bot's lease. Claiming may be
// shared by the endpoints of a process.
type Config struct {
	DB        *dbutil.Database
	Client    *mautrix.Client
	AccountID string
	PickleKey []byte
	Fence     func(ctx context.Context) error
	Claiming  Turn
	Now       func() time.Time
	Log       zerolog.Logger
}

// Turn lets one at a time through.
type Turn chan struct{}

// NewTurn makes a Turn that is nobody's.
func NewTurn() Turn { return make(Turn, 1) }

// Endpoint is safe for concurrent use: its transactions run one after the other.
type Endpoint struct {
	db        *dbutil.Database
	client    *mautrix.Client
	accountID string
	pickleKey []byte
	fence     func(ctx context.Context) error
	now       func() time.Time
	log       zerolog.Logger

	// olm orders the Olm transactions of this process; the row lock in begin orders those of several.
	olm sync.Mutex
	// flushing makes one Flush at a time send, so that rows leave in order; it guards pausedUntil.
	flushing sync.Mutex
	// claiming makes one claim of one-time keys at a time: Dendrite on PostgreSQL gives the same key to two who claim at once
	// (v0.15.2 reads it and deletes it in statements of their own), and the second session is then one that nobody can read.
	claiming Turn
	// pausedUntil is when the homeserver takes messages again, those that are queued meanwhile included.
	pausedUntil time.Time
	arrived     chan struct{}
	queued      chan struct{}
	changed     chan struct{}
	// patience is added to the time that Sync waits, so that the requests of one run differ from another's. Synapse answers
	// a repeated /sync from a cache for two minutes: a store that was put back would get the messages again that it has
	// acted on since, though the homeserver has long forgotten them.
	patience time.Duration
}

// New checks the configuration; it does no I/O.
func New(config Config) (*Endpoint, error) {
	switch {
	case config.DB == nil || config.Client == nil:
		return nil, errors.New("todevice: a database and a client are needed")
	case config.Client.UserID == "" || config.Client.DeviceID == "":
		return nil, errors.New("todevice: the client is not logged in as a device")
	case config.AccountID == "":
		return nil, errors.New("todevice: an account id is needed")
	case len(config.PickleKey) < 32:
		return nil, errors.New("todevice: the pickle key is shorter than 32 bytes")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Claiming == nil {
		config.Claiming = NewTurn()
	}
	config.Client.DefaultHTTPRetries = 0
	return &Endpoint{
		db:        config.DB,
		client:    config.Client,
		accountID: config.AccountID,
		pickleKey: config.PickleKey,
		fence:     config.Fence,
		claiming:  config.Claiming,
		now:       config.Now,
		log:       config.Log,
		arrived:   make(chan struct{}, 1),
		queued:    make(chan struct{}, 1),
		changed:   make(chan struct{}, 1),
		patience:  rand.N(time.Second),
	}, nil
}

// DeviceID is the device this is an endpoint of.
func (e *Endpoint) DeviceID() id.DeviceID { return e.client.DeviceID }

// Arrived is signalled when Sync has committed envelopes; Queued when a transaction left something in the outbox.
// Both hold one signal, so that whoever listens looks at the rows and not at the count.
func (e *Endpoint) Arrived() <-chan struct{} { return e.arrived }

// Queued: see Arrived.
func (e *Endpoint) Queued() <-chan struct{} { return e.queued }

// DevicesChanged is signalled when the homeserver said that the user's own devices, or their signatures, changed. Not
// every homeserver tells it of the user himself, so whoever listens looks now and then as well.
func (e *Endpoint) DevicesChanged() <-chan struct{} { return e.changed }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

type txnKey struct{ endpoint *Endpoint }

// txn is the Olm state of one transaction.
type txn struct {
	store      *crypto.SQLCryptoStore
	account    *crypto.OlmAccount
	deviceKeys json.RawMessage
	requests   requests
	queued     bool
}

// InTxn runs fn in one database transaction with the Olm state loaded: Queue and Account work in it. The context
// carries the dbutil transaction, so everything on the same database joins. Called inside another InTxn of the same
// endpoint it joins that one.
func (e *Endpoint) InTxn(ctx context.Context, fn func(ctx context.Context) error) error {
	if ctx.Value(txnKey{e}) != nil {
		return fn(ctx)
	}
	e.olm.Lock()
	defer e.olm.Unlock()
	var state *txn
	err := e.db.DoTxn(ctx, nil, func(ctx context.Context) (err error) {
		// dbutil would leave the transaction open on a panic; goolm panics on some malformed input.
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic in an Olm transaction: %v", p)
			}
		}()
		if state, err = e.begin(ctx); err != nil {
			return err
		}
		return fn(context.WithValue(ctx, txnKey{e}, state))
	})
	if err == nil && state.queued {
		signal(e.queued)
	}
	return err
}

func (e *Endpoint) begin(ctx context.Context) (*txn, error) {
	if e.fence != nil {
		if err := e.fence(ctx); err != nil {
			return nil, err
		}
	}
	_, err := e.db.Exec(ctx, `INSERT INTO todevice_account (account_id) VALUES ($1) ON CONFLICT DO NOTHING`, e.accountID)
	if err != nil {
		return nil, fmt.Errorf("preparing the Olm account row: %w", err)
	}
	lock := ""
	if e.db.Dialect == dbutil.Postgres {
		lock = " FOR UPDATE"
	}
	var keys string
	err = e.db.QueryRow(ctx, `SELECT device_keys FROM todevice_account WHERE account_id = $1`+lock, e.accountID).Scan(&keys)
	if err != nil {
		return nil, fmt.Errorf("locking the Olm account: %w", err)
	}
	state := &txn{
		store:      crypto.NewSQLCryptoStore(e.db, nil, e.accountID, e.client.DeviceID, e.pickleKey),
		deviceKeys: json.RawMessage(keys),
	}
	if state.account, err = state.store.GetAccount(ctx); err != nil {
		return nil, fmt.Errorf("loading the Olm account (is the pickle key the one it was made with?): %w", err)
	}
	if state.account == nil {
		state.account = crypto.NewOlmAccount()
		if err = state.store.PutAccount(ctx, state.account); err != nil {
			return nil, fmt.Errorf("saving a new Olm account: %w", err)
		}
	}
	return state, nil
}

func (e *Endpoint) state(ctx context.Context) (*txn, error) {
	state, ok := ctx.Value(txnKey{e}).(*txn)
	if !ok {
		return nil, errors.New("todevice: called outside of InTxn")
	}
	return state, nil
}

// Account gives the Olm account within InTxn, for signing with the device's key.
func (e *Endpoint) Account(ctx context.Context) (*crypto.OlmAccount, error) {
	state, err := e.state(ctx)
	if err != nil {
		return nil, err
	}
	return state.account, nil
}

// SignJSON signs with the device's Ed25519 key, in a transaction of its own.
func (e *Endpoint) SignJSON(ctx context.Context, obj any) (keyID id.KeyID, signature string, err error) {
	err = e.InTxn(ctx, func(ctx context.Context) error {
		account, err := e.Account(ctx)
		if err != nil {
			return err
		}
		signature, err = account.SignJSON(obj)
		return err
	})
	return id.NewKeyID(id.KeyAlgorithmEd25519, e.client.DeviceID.String()), signature, err
}

// Keys returns the device's public identity keys.
func (e *Endpoint) Keys(ctx context.Context) (signing id.Ed25519, identity id.Curve25519, err error) {
	err = e.InTxn(ctx, func(ctx context.Context) error {
		account, err := e.Account(ctx)
		if err != nil {
			return err
		}
		signing, identity = account.Keys()
		return nil
	})
	return signing, identity, err
}

// Identities asks the homeserver for the devices of these users and checks the signatures. It is HTTP: never call it
// inside a transaction.
func (e *Endpoint) Identities(ctx context.Context, users ...id.UserID) (map[id.UserID]crosssigning.Identity, error) {
	request := &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{}, Timeout: 10_000}
	for _, user := range users {
		request.DeviceKeys[user] = mautrix.DeviceIDList{}
	}
	resp, err := e.client.QueryKeys(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("querying device keys: %w", err)
	}
	identities := make(map[id.UserID]crosssigning.Identity, len(users))
	for _, user := range users {
		identities[user] = crosssigning.Read(resp, user)
	}
	return identities, nil
}

// newID makes a UUIDv7: rows sort by the time they were made, and a transaction id is unique over all devices of the
// homeserver (Synapse keys an appservice's transaction ids by path and appservice only, synapse #2937).
func newID() (string, error) {
	value, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return value.String(), nil
}
