package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/todevice"
)

// Fleet runs every account file of a directory and notices added, removed and changed ones within two seconds.
type Fleet struct {
	config    Config
	pickleKey []byte
	pace      *Pace
	claiming  todevice.Turn
	carrying  func(user id.UserID, done, total int)
	log       zerolog.Logger
	// places are those of accounts that come into being at once: each asks the homeserver for much.
	places chan struct{}
	// Authorize is Options.Authorize of the accounts; nil, as in a fleet that runs by itself, means that nobody is there.
	Authorize func(Authorization)
}

// NewFleet reads or makes the pickle key. carrying, which may be nil, is told how far each carry-over is.
func NewFleet(config Config, carrying func(user id.UserID, done, total int), log zerolog.Logger) (*Fleet, error) {
	key, err := loadPickleKey(config.PickleKeyFile)
	if err != nil {
		return nil, err
	}
	return &Fleet{config: config, pickleKey: key, pace: NewPace(config.CarryRequests), claiming: todevice.NewTurn(), carrying: carrying, places: make(chan struct{}, provisioning), log: log}, nil
}

// Files names the account files, by account name.
func (f *Fleet) Files() (map[string]string, error) {
	paths, err := filepath.Glob(filepath.Join(f.config.Accounts, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("reading accounts_dir: %w", err)
	}
	files := map[string]string{}
	for _, path := range paths {
		files[strings.TrimSuffix(filepath.Base(path), ".yaml")] = path
	}
	return files, nil
}

// Open opens one account by its name.
func (f *Fleet) Open(ctx context.Context, name string) (*Account, error) {
	config, err := LoadAccount(filepath.Join(f.config.Accounts, name+".yaml"))
	if err != nil {
		return nil, err
	}
	return Open(ctx, config, Options{StorePath: filepath.Join(f.config.State, name+".db"), PickleKey: f.pickleKey,
		StatusInterval: f.config.StatusInterval, Sync: f.config.Sync, Authorize: f.Authorize, Pace: f.pace, Claiming: f.claiming, Carrying: f.carrying, Log: f.log.With().Str("account", name).Logger()})
}

type running struct {
	cancel context.CancelFunc
	done   chan struct{}
	stamp  time.Time
}

// Run keeps the accounts running until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	accounts := map[string]*running{}
	ticker := time.NewTicker(2 * time.Second)
	defer ticker.Stop()
	for {
		files, err := f.Files()
		if err != nil {
			f.log.Error().Err(err).Msg("The account files could not be read")
		}
		for name, r := range accounts {
			select {
			case <-r.done:
				delete(accounts, name)
				continue
			default:
			}
			info, err := os.Stat(files[name])
			if ctx.Err() != nil || err != nil || !info.ModTime().Equal(r.stamp) || f.wanted(name) {
				r.cancel()
				<-r.done
				delete(accounts, name)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		for name, path := range files {
			info, err := os.Stat(path)
			if _, there := accounts[name]; there || err != nil {
				continue
			}
			accountCtx, cancel := context.WithCancel(ctx)
			r := &running{cancel: cancel, done: make(chan struct{}), stamp: info.ModTime()}
			accounts[name] = r
			go func() {
				defer close(r.done)
				f.runAccount(accountCtx, name)
			}()
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// runAccount runs one account until it ends; an account that is not enrolled yet, or is being enrolled by another
// process, is let go and looked at again in a while, unless its file says how it enrolls by itself.
func (f *Fleet) runAccount(ctx context.Context, name string) {
	log := f.log.With().Str("account", name).Logger()
	_, err := os.Stat(filepath.Join(f.config.State, name+".db"))
	if f.wanted(name) || err != nil && !f.provisions(name) {
		loop.Pause(ctx, 2*time.Second)
		return
	}
	account, err := f.open(ctx, name, err != nil)
	if err != nil {
		if f.rest(ctx, log, err) {
			return
		}
		if !errors.Is(err, errInUse) {
			log.Error().Err(err).Msg("The account could not be opened")
		}
		loop.Pause(ctx, 2*time.Second)
		return
	}
	defer func() { _ = account.Close() }()
	enrolled, err := account.Enrolled(ctx)
	waits, waitsErr := account.waits(ctx)
	still, stands, stillErr := account.store.standstill(ctx)
	err = errors.Join(err, waitsErr, stillErr)
	if stands && still.Told {
		log.Error().Msg("The account stands still: " + wayOut)
		_ = account.Close()
		loop.Pause(ctx, time.Minute)
		return
	}
	if err == nil && !enrolled && !stands && !waits && account.config.Enrollment.Proof.Type != "" {
		if err := f.provision(ctx, account); err != nil {
			_ = account.Close()
			f.unprovisioned(ctx, log, err)
			return
		}
		log.Info().Msg("The device enrolled by itself")
		enrolled = true
	}
	if err != nil || !enrolled && !stands && !waits {
		log.Warn().Err(err).Msg("The account is not enrolled: run keyherald-device enroll")
		_ = account.Close()
		loop.Pause(ctx, 2*time.Second)
		return
	}
	log.Info().Msg("The managed device is running")
	if err := account.Run(ctx); err != nil && ctx.Err() == nil {
		_ = account.Close()
		if f.rest(ctx, log, err) {
			return
		}
		log.Error().Err(err).Msg("The account stopped and will start again")
		loop.Pause(ctx, 2*time.Second)
	}
}

// rest keeps an account that ended down until its file is saved anew or somebody uses it, and reports whether it has
// ended: the reason is said once, and a login that is refused for good is not tried over and over.
func (f *Fleet) rest(ctx context.Context, log zerolog.Logger, err error) bool {
	var e *ended
	if !errors.As(err, &e) {
		return false
	}
	log.Error().Err(e.cause).Str("reason", e.reason).Msg("The account ends: " + explainEnd(e.reason))
	<-ctx.Done()
	return true
}

// Describe is an account's state for `keyherald-device status`: read from its store without a network, also while a
// fleet runs it. Nothing sealed is opened.
func Describe(ctx context.Context, path string) (map[string]any, error) {
	store, err := openForReading(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.db.Close() }()
	description := map[string]any{}
	for _, name := range []string{"our_version", "our_kms_version", "sequence", "bot_device"} {
		if description[name], err = store.get(ctx, name); err != nil {
			return nil, err
		}
	}
	text, err := store.get(ctx, "pin")
	if err != nil {
		return nil, err
	}
	var p pin
	description["enrolled"] = json.Unmarshal([]byte(text), &p) == nil && p.Accepted
	description["server"] = p.BotUserID
	if _, still, err := store.standstill(ctx); err != nil {
		return nil, err
	} else if still {
		description["stopped"] = wayOut
	}
	if reason, err := store.get(ctx, "ended"); err != nil {
		return nil, err
	} else if reason != "" {
		description["ended"] = reason + ": " + explainEnd(reason)
	}
	if text, err := store.get(ctx, "recovery_key"); err != nil {
		return nil, err
	} else if text != "" {
		description["recovery_key_replaced"] = json.RawMessage(text)
	}
	pending, err := store.pending(ctx)
	if err != nil {
		return nil, err
	}
	description["pending_secrets"] = len(pending)
	jobs, err := store.jobs(ctx, false)
	if err != nil {
		return nil, err
	}
	list := []map[string]any{}
	for _, j := range jobs {
		list = append(list, map[string]any{"rotation": j.Rotation, "attempt": j.Attempt, "stage": j.Stage, "ended": j.Ended, "last_error": j.LastError})
	}
	description["rotations"] = list
	return description, nil
}
