// Package device is the managed device: a headless, cross-signed device of one user that obeys one pinned Keyherald
// server. It fetches the user's new key from the KMS, puts the key backup in order and pushes the key to the user's
// other cross-signed devices. Every step is journaled in the account's own SQLite store before its effect counts, and
// is safe to repeat.
package device

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// SoftwareVersion is what devices report; the build sets it.
var SoftwareVersion = "dev"

// Options are what New needs beside the account's file. OpenSQLite opens the store's pool by its data source name;
// nil means with the driver "sqlite" as it is.
type Options struct {
	StorePath  string
	OpenSQLite func(dataSource string) (*sql.DB, error)
	// Authorize shows a person where to authorize the device; nil where nobody is there.
	Authorize      func(Authorization)
	PickleKey      []byte
	StatusInterval time.Duration
	Sync           Sync
	// Pace is shared by the accounts of a process; nil holds nothing back.
	Pace *Pace
	// Claiming is shared by the accounts of a process, which all claim keys of the same bot.
	Claiming todevice.Turn
	// Carrying, if set, is told how far a carry-over is; done is total when it is over.
	Carrying func(user id.UserID, done, total int)
	Now      func() time.Time
	Log      zerolog.Logger
}

// Account is one managed device of one user. It owns its store until Close.
type Account struct {
	config   AccountConfig
	options  Options
	store    *store
	client   *mautrix.Client
	endpoint *todevice.Endpoint
	backup   *backup.Client
	kms      secret.Store
	now      func() time.Time
	log      zerolog.Logger
	work     chan struct{}
	// run is the mark of this use of the store, without a count.
	run protocol.StoreMark
	// spoken is set once the first status of this run is queued.
	spoken atomic.Bool
	// resumed is set by the work loop once it has looked for a recovery key that is half replaced.
	resumed bool
}

// Open opens the account's store and logs in, with the token that was kept or as the config says.
func Open(ctx context.Context, config AccountConfig, options Options) (*Account, error) {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.StatusInterval == 0 {
		options.StatusInterval = time.Hour
	}
	if options.OpenSQLite == nil {
		options.OpenSQLite = openSQLite
	}
	store, err := openStore(ctx, options.StorePath, options.PickleKey, options.OpenSQLite)
	if err != nil {
		return nil, err
	}
	reader, err := config.KMS.open(ctx, keptSecretID{store})
	if err != nil {
		return nil, errors.Join(err, store.close())
	}
	a := &Account{config: config, options: options, store: store, kms: reader, now: options.Now, work: make(chan struct{}, 1),
		log: options.Log.With().Stringer("user", config.UserID).Logger()}
	if err := a.beginRun(ctx); err != nil {
		return nil, errors.Join(err, store.close())
	}
	if err := a.login(ctx); err != nil {
		return nil, errors.Join(err, store.close())
	}
	if err := a.connect(); err != nil {
		return nil, errors.Join(err, store.close())
	}
	return a, nil
}

// Close ends the account's use of its store.
func (a *Account) Close() error { return a.store.close() }

func (a *Account) connect() error {
	endpoint, err := todevice.New(todevice.Config{DB: a.store.db, Client: a.client, AccountID: "device", PickleKey: a.store.pickleKey, Claiming: a.options.Claiming, Now: a.now, Log: a.log})
	if err != nil {
		return err
	}
	a.endpoint, a.backup = endpoint, backup.New(a.client)
	return nil
}

// pin is the server this device obeys, as its enrollment code said.
type pin struct {
	BotUserID    id.UserID  `json:"bot_user_id"`
	BotMasterKey id.Ed25519 `json:"bot_master_key"`
	OwnMasterKey id.Ed25519 `json:"own_master_key"`
	Accepted     bool       `json:"accepted"`
	// Asked is the user's identity that the device asked to be enrolled with again, until the server's last word.
	Asked id.Ed25519 `json:"asked,omitempty"`
}

func (a *Account) pin(ctx context.Context) (pin, error) {
	var p pin
	raw, err := a.store.get(ctx, "pin")
	if err != nil {
		return p, err
	}
	if raw == "" {
		// Before the enrollment, what was verified by emoji is all that is known of the user.
		v, err := a.verified(ctx)
		return pin{OwnMasterKey: v.MasterKey}, err
	}
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		return p, fmt.Errorf("reading the pinned server: %w", err)
	}
	return p, nil
}

func (a *Account) setPin(ctx context.Context, p pin) error {
	encoded, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("keeping the pinned server: %w", err)
	}
	return a.store.set(ctx, "pin", string(encoded))
}

// Enrolled reports whether the server accepted this device.
func (a *Account) Enrolled(ctx context.Context) (bool, error) {
	p, err := a.pin(ctx)
	return p.Accepted, err
}

// waits reports whether the device asked to be enrolled again and has no last word yet.
func (a *Account) waits(ctx context.Context) (bool, error) {
	p, err := a.pin(ctx)
	return p.Asked != "" && !p.Accepted, err
}

// bot returns the bot's device with a chain to the pinned master key. The one it last wrote from is preferred.
func (a *Account) bot(ctx context.Context, p pin) (crosssigning.Device, error) {
	identities, err := a.endpoint.Identities(ctx, p.BotUserID)
	if err != nil {
		return crosssigning.Device{}, err
	}
	identity := identities[p.BotUserID]
	if !identity.PinnedTo(p.BotMasterKey) {
		return crosssigning.Device{}, fmt.Errorf("the master key of %s is not the pinned one: nothing is said to it; if the server was set up anew, enroll again", p.BotUserID)
	}
	last, err := a.store.get(ctx, "bot_device")
	if err != nil {
		return crosssigning.Device{}, err
	}
	var found crosssigning.Device
	for _, d := range identity.Devices {
		if d.CrossSigned && !d.Dehydrated && (found.DeviceID == "" || d.DeviceID.String() == last) {
			found = d
		}
	}
	if found.DeviceID == "" {
		return found, fmt.Errorf("%s has no cross-signed device: is the Keyherald server running?", p.BotUserID)
	}
	return found, nil
}
