package device

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

const syncWait = 25 * time.Second

// Run receives, works and sends for an enrolled account until ctx ends.
func (a *Account) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := a.endpoint.PublishKeys(ctx); err != nil {
		a.log.Warn().Err(err).Msg("The one-time keys could not be topped up yet")
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { a.receiveLoop(ctx, cancel) })
	loops.Go(func() {
		repeat(ctx, a.endpoint.Arrived(), 5*time.Second, func() {
			a.warn(ctx, a.endpoint.Process(ctx, a), "A message could not be handled yet")
			// Only now: a handler runs inside its transaction, and whoever it woke would look before the commit.
			a.wake()
		})
	})
	loops.Go(func() {
		repeat(ctx, a.endpoint.Queued(), time.Second, func() {
			_, err := a.endpoint.Flush(ctx, nil)
			a.warn(ctx, err, "The outbox could not be emptied yet")
		})
	})
	loops.Go(func() { repeat(ctx, a.work, 2*time.Second, func() { a.workOnce(ctx) }) })
	loops.Go(func() {
		repeat(ctx, nil, a.options.StatusInterval, func() { a.warn(ctx, a.sendStatus(ctx), "The status could not be sent") })
	})
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (a *Account) warn(ctx context.Context, err error, message string) {
	if err != nil && ctx.Err() == nil {
		a.log.Warn().Err(err).Msg(message)
	}
}

func (a *Account) receiveLoop(ctx context.Context, cancel context.CancelCauseFunc) {
	for failures := 0; ctx.Err() == nil; {
		err := a.endpoint.Sync(ctx, syncWait)
		if err == nil {
			failures = 0
			continue
		}
		if errors.Is(err, mautrix.MUnknownToken) {
			// The new token goes into a new client: Run ends, and the fleet opens the account again.
			cancel(errors.Join(errLoggedOut, a.login(ctx, true)))
			return
		}
		failures++
		a.warn(ctx, err, "Receiving failed and is tried again")
		wait(ctx, min(time.Duration(failures)*time.Second, 30*time.Second))
	}
}

var errLoggedOut = errors.New("the access token is not valid any more")

// workOnce adopts what was received and goes on with the open rotations. What fails is tried again with growing
// delay; what needs somebody's attention is reported once and looked at again all the same, since it may be mended.
func (a *Account) workOnce(ctx context.Context) {
	a.warn(ctx, a.adopt(ctx), "A received key could not be compared with the key backup yet")
	jobs, err := a.store.jobs(ctx, true)
	if err != nil {
		a.warn(ctx, err, "The journal could not be read")
		return
	}
	for _, j := range jobs {
		if a.now().Before(j.NextTry) {
			continue
		}
		err := a.advance(ctx, j)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			a.warn(ctx, a.sendStatus(ctx), "The status could not be sent")
			continue
		}
		a.warn(ctx, err, "A rotation cannot go on yet")
		a.warn(ctx, a.failed(ctx, j, err), "The failure could not be journaled")
	}
}

func (a *Account) failed(ctx context.Context, j *job, cause error) error {
	// advance may have changed j without committing it; the journal's row is the truth.
	row, err := a.job(ctx, j.Rotation)
	if err != nil || row == nil || row.Ended {
		return err
	}
	row.Tries++
	delay := min(time.Second<<min(row.Tries-1, 10), 10*time.Minute)
	row.NextTry, row.LastError = a.now().Add(delay/2+rand.N(delay/2)), cause.Error()
	report := protocol.Progress{Stage: protocol.StageFailed, Error: &protocol.ErrorReport{Code: protocol.FaultInternal, Retryable: true}}
	var s *stopped
	if errors.As(cause, &s) {
		report.Stage, report.Error = protocol.StageNeedsAttention, &protocol.ErrorReport{Code: s.code}
	}
	return a.commit(ctx, row, report)
}

// adopt compares received keys, newest first, with the current version, keeps the one that fits and drops the rest.
func (a *Account) adopt(ctx context.Context) error {
	rows, err := a.store.db.Query(ctx, `SELECT id, value FROM received ORDER BY id DESC`)
	if err != nil {
		return fmt.Errorf("reading the received secrets: %w", err)
	}
	var keys []backupkey.Key
	last := int64(0)
	for rows.Next() {
		var rowID int64
		var box []byte
		if err := rows.Scan(&rowID, &box); err != nil {
			return errors.Join(err, rows.Close())
		}
		last = max(last, rowID)
		if raw, err := a.store.seal.Open(nil, nil, box, []byte("received")); err == nil {
			if key, err := backupkey.Parse(string(raw)); err == nil {
				keys = append(keys, key)
			}
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || last == 0 {
		return err
	}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return err
	}
	adopted := false
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		for _, key := range keys {
			if current != nil && current.HeldBy(key) && !adopted {
				if err := a.store.putKey(ctx, key); err != nil {
					return err
				}
				adopted = true
			}
		}
		_, err := a.store.db.Exec(ctx, `DELETE FROM received WHERE id <= $1`, last)
		return err
	})
	if err != nil || !adopted {
		return err
	}
	return a.sendStatus(ctx)
}

// sendStatus tells the server how things are now.
func (a *Account) sendStatus(ctx context.Context) error {
	p, err := a.pin(ctx)
	if err != nil || !p.Accepted {
		return err
	}
	bot, err := a.bot(ctx, p)
	if err != nil {
		return err
	}
	status, err := a.status(ctx, p)
	if err != nil {
		return err
	}
	claims, err := a.endpoint.Claim(ctx, false, bot)
	if err != nil {
		return err
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		return a.endpoint.Queue(ctx, todevice.Outgoing{Key: "status/" + status.ReportID.String(), To: bot, Type: protocol.TypeStatus.Type, Content: status}, claims)
	})
}

func (a *Account) status(ctx context.Context, p pin) (protocol.Status, error) {
	reportID, err := uuid.NewV7()
	if err != nil {
		return protocol.Status{}, fmt.Errorf("making a report id: %w", err)
	}
	status := protocol.Status{ReportID: reportID, SoftwareVersion: SoftwareVersion, At: protocol.At(a.now())}
	current, err := a.backup.Current(ctx)
	if err != nil {
		return status, err
	}
	if current != nil {
		status.BackupVersion, status.PublicKey, status.Count, status.ETag = current.ID.String(), current.PublicKey, current.Count, current.ETag
		_, status.HoldsKey, err = a.findKey(ctx, current.PublicKey)
		if err != nil {
			a.warn(ctx, err, "The key of the current version could not be looked up")
		}
	}
	identities, err := a.endpoint.Identities(ctx, a.config.UserID)
	if err != nil {
		return status, err
	}
	for _, device := range identities[a.config.UserID].Devices {
		switch {
		case device.DeviceID == a.client.DeviceID:
		case device.CrossSigned && identities[a.config.UserID].PinnedTo(p.OwnMasterKey):
			status.TargetsVerified++
		default:
			status.TargetsUnverified++
		}
	}
	jobs, err := a.store.jobs(ctx, false)
	if err != nil {
		return status, err
	}
	open := false
	for _, j := range jobs {
		open = open || !j.Ended
		status.LastRotation, status.LastStage, status.HighestSequence = &j.Rotation, j.Stage, max(status.HighestSequence, j.Trigger.Sequence)
	}
	if !open {
		status.Drifted, err = a.drift(ctx, status)
	}
	return status, err
}

// drift compares the world with what this device left: nothing is changed, the server is told.
func (a *Account) drift(ctx context.Context, status protocol.Status) (*protocol.DriftReport, error) {
	ours, err := a.store.get(ctx, "our_public_key")
	if err != nil || ours == "" {
		return nil, err
	}
	switch {
	case status.BackupVersion == "":
		return &protocol.DriftReport{Kind: protocol.DriftNone}, nil
	case status.PublicKey != ours:
		// Another managed device may have rotated: then the version is the KMS's current one, and all is well.
		value, err := a.kms.Fetch(ctx, a.config.KMS.Path, "")
		if err == nil && value.Key.Fits(status.PublicKey) {
			return nil, nil
		}
		if kms.Retryable(err) && status.HoldsKey {
			return nil, nil
		}
		return &protocol.DriftReport{Kind: protocol.DriftBackup}, nil
	}
	have, err := a.store.get(ctx, "our_kms_version")
	if err != nil {
		return nil, err
	}
	current, err := a.kms.Current(ctx, a.config.KMS.Path)
	if err != nil {
		return nil, nil //nolint:nilerr // a KMS that does not answer is no drift; the rotation reports it
	}
	if newer, ordered := kms.NewerVersion(current, have); ordered && newer && status.PublicKey == ours {
		return &protocol.DriftReport{Kind: protocol.DriftKMS}, nil
	}
	return nil, nil
}

func repeat(ctx context.Context, signal <-chan struct{}, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-ctx.Done():
		case <-signal:
		case <-ticker.C:
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Fleet runs every account file of a directory and notices added, removed and changed ones within two seconds.
type Fleet struct {
	config    Config
	pickleKey []byte
	log       zerolog.Logger
}

// NewFleet reads or makes the pickle key.
func NewFleet(config Config, log zerolog.Logger) (*Fleet, error) {
	key, err := loadPickleKey(config.PickleKeyFile)
	if err != nil {
		return nil, err
	}
	return &Fleet{config, key, log}, nil
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
		StatusInterval: f.config.StatusInterval, Log: f.log.With().Str("account", name).Logger()})
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
			if ctx.Err() != nil || err != nil || !info.ModTime().Equal(r.stamp) {
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
// process, is let go and looked at again in a while.
func (f *Fleet) runAccount(ctx context.Context, name string) {
	log := f.log.With().Str("account", name).Logger()
	if _, err := os.Stat(filepath.Join(f.config.State, name+".db")); err != nil {
		wait(ctx, 2*time.Second)
		return
	}
	account, err := f.Open(ctx, name)
	if err != nil {
		if !errors.Is(err, errInUse) {
			log.Error().Err(err).Msg("The account could not be opened")
		}
		wait(ctx, 2*time.Second)
		return
	}
	defer func() { _ = account.Close() }()
	enrolled, err := account.Enrolled(ctx)
	if err != nil || !enrolled {
		log.Warn().Err(err).Msg("The account is not enrolled: run keyherald-device enroll")
		_ = account.Close()
		wait(ctx, 2*time.Second)
		return
	}
	log.Info().Msg("The managed device is running")
	if err := account.Run(ctx); err != nil && ctx.Err() == nil {
		log.Error().Err(err).Msg("The account stopped and will start again")
		wait(ctx, 2*time.Second)
	}
}

// Describe is an account's state for `keyherald-device status`, without a network.
func Describe(ctx context.Context, path string) (map[string]any, error) {
	store, err := openStore(ctx, path, make([]byte, 32))
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.close() }()
	description := map[string]any{}
	for _, name := range []string{"our_version", "our_kms_version", "sequence", "bot_device"} {
		if description[name], err = store.get(ctx, name); err != nil {
			return nil, err
		}
	}
	jobs, err := store.jobs(ctx, false)
	if err != nil {
		return nil, err
	}
	var list []map[string]any
	for _, j := range jobs {
		list = append(list, map[string]any{"rotation": j.Rotation, "attempt": j.Attempt, "stage": j.Stage, "ended": j.Ended, "last_error": j.LastError})
	}
	description["rotations"] = list
	return description, nil
}
