// Package device is the managed device: a headless, cross-signed device of one user that obeys one pinned Keyherald
// server. It fetches the user's new key from the KMS, puts the key backup in order and pushes the key to the user's
// other cross-signed devices. Every step is journaled in the account's own SQLite store before its effect counts, and
// is safe to repeat.
package device

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
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
	StorePath      string
	OpenSQLite     func(dataSource string) (*sql.DB, error)
	PickleKey      []byte
	StatusInterval time.Duration
	// Pace is shared by the accounts of a process; nil holds nothing back.
	Pace *Pace
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
	if err := a.login(ctx, false); err != nil {
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
	endpoint, err := todevice.New(todevice.Config{DB: a.store.db, Client: a.client, AccountID: "device", PickleKey: a.store.pickleKey, Now: a.now, Log: a.log})
	if err != nil {
		return err
	}
	a.endpoint, a.backup = endpoint, backup.New(a.client)
	return nil
}

type credentials struct {
	AccessToken string      `json:"access_token"`
	DeviceID    id.DeviceID `json:"device_id"`
}

// login sets the client, with the kept token unless fresh; a new login keeps the device id, since the store's keys
// belong to it.
func (a *Account) login(ctx context.Context, fresh bool) error {
	var kept credentials
	raw, err := a.store.sealedValue(ctx, "credentials")
	if err != nil {
		return err
	}
	if raw != nil {
		if err := json.Unmarshal(raw, &kept); err != nil {
			return fmt.Errorf("reading the kept credentials: %w", err)
		}
	}
	if kept.AccessToken == "" || fresh {
		got, err := a.obtain(ctx, kept.DeviceID)
		if err != nil {
			return err
		}
		if kept.DeviceID != "" && got.DeviceID != kept.DeviceID {
			return fmt.Errorf("the login gave device %s, and the store belongs to device %s: make the login keep the device id", got.DeviceID, kept.DeviceID)
		}
		kept = got
		encoded, err := json.Marshal(kept)
		if err != nil {
			return fmt.Errorf("keeping the credentials: %w", err)
		}
		if err := a.store.putSealed(ctx, "credentials", encoded); err != nil {
			return err
		}
	}
	client, err := mautrix.NewClient(a.config.Homeserver, a.config.UserID, kept.AccessToken)
	if err != nil {
		return fmt.Errorf("making the Matrix client: %w", err)
	}
	client.DeviceID, client.DefaultHTTPRetries = kept.DeviceID, 0
	a.client = client
	return nil
}

func (a *Account) obtain(ctx context.Context, device id.DeviceID) (credentials, error) {
	login := a.config.Login
	switch {
	case login.AccessTokenFile != "":
		token, err := readSecret(login.AccessTokenFile)
		return credentials{token, login.DeviceID}, err
	case len(login.Command) > 0:
		return runLoginCommand(ctx, login.Command)
	}
	request := &mautrix.ReqLogin{DeviceID: device, InitialDeviceDisplayName: a.config.DeviceName}
	if request.InitialDeviceDisplayName == "" {
		request.InitialDeviceDisplayName = "Keyherald managed device"
	}
	var err error
	if login.PasswordFile != "" {
		request.Type = mautrix.AuthTypePassword
		request.Identifier = mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: a.config.UserID.String()}
		request.Password, err = readSecret(login.PasswordFile)
	} else {
		request.Type = mautrix.AuthTypeToken
		request.Token, err = readSecret(login.TokenFile)
	}
	if err != nil {
		return credentials{}, err
	}
	client, err := mautrix.NewClient(a.config.Homeserver, "", "")
	if err != nil {
		return credentials{}, fmt.Errorf("making the Matrix client: %w", err)
	}
	answer, err := client.Login(ctx, request)
	if err != nil {
		return credentials{}, fmt.Errorf("logging in as %s: %w", a.config.UserID, err)
	}
	if answer.UserID != a.config.UserID {
		return credentials{}, fmt.Errorf("the login is %s's and not %s's", answer.UserID, a.config.UserID)
	}
	return credentials{answer.AccessToken, answer.DeviceID}, nil
}

func runLoginCommand(ctx context.Context, command []string) (credentials, error) {
	var got credentials
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return got, fmt.Errorf("running login.command: %w", err)
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.AccessToken == "" {
		return got, errors.New(`login.command printed no {"access_token": …, "device_id": …}`)
	}
	if got.DeviceID == "" {
		return got, errors.New("login.command printed a token without a device_id: a token without a device cannot encrypt, so it must create one")
	}
	return got, nil
}

func readSecret(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a secret's file: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// pin is the server this device obeys, as its enrollment code said.
type pin struct {
	BotUserID    id.UserID  `json:"bot_user_id"`
	BotMasterKey id.Ed25519 `json:"bot_master_key"`
	OwnMasterKey id.Ed25519 `json:"own_master_key"`
	Accepted     bool       `json:"accepted"`
}

func (a *Account) pin(ctx context.Context) (pin, error) {
	var p pin
	raw, err := a.store.get(ctx, "pin")
	if err != nil || raw == "" {
		return p, err
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
