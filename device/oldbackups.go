package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/protocol"
)

// cleanUpInterval is how often old key-backup versions are looked at.
const cleanUpInterval = time.Hour

// toCarry journals a version that a rotation replaces, before the new one exists.
func (s *store) toCarry(ctx context.Context, j *job, version string, now time.Time) error {
	grace := int64(-1)
	if j.Trigger.OldBackupGrace != nil {
		grace = j.Trigger.OldBackupGrace.Duration().Milliseconds()
	}
	_, err := s.db.Exec(ctx, `INSERT INTO carry (version, replaced_at, grace, rotation_id, attempt) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		version, now.UnixMilli(), grace, j.Rotation.String(), j.Attempt)
	if err != nil {
		return fmt.Errorf("journaling the version to carry over: %w", err)
	}
	return nil
}

// oldBackup is a version that was replaced. State is kept, deleting, or deleted.
type oldBackup struct {
	Version  string
	Finished bool
	Replaced time.Time
	Grace    time.Duration
	Rotation uuid.UUID
	Attempt  int
	State    string
}

// oldBackups lists the versions that were replaced, the oldest first. One that was journaled by an earlier release has
// no time, and its grace begins now.
func (s *store) oldBackups(ctx context.Context, grace time.Duration, now time.Time) ([]oldBackup, error) {
	// Every status looks here, and none but the first after an update has anything to write.
	var timeless bool
	if err := s.db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM carry WHERE replaced_at = 0)`).Scan(&timeless); err != nil {
		return nil, fmt.Errorf("reading old key-backup versions: %w", err)
	}
	if timeless {
		if _, err := s.db.Exec(ctx, `UPDATE carry SET replaced_at = $1 WHERE replaced_at = 0`, now.UnixMilli()); err != nil {
			return nil, fmt.Errorf("journaling old key-backup versions: %w", err)
		}
	}
	rows, err := s.db.Query(ctx, `SELECT version, finished, replaced_at, grace, rotation_id, attempt, state FROM carry ORDER BY replaced_at, version`)
	if err != nil {
		return nil, fmt.Errorf("reading old key-backup versions: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var old []oldBackup
	for rows.Next() {
		var o oldBackup
		var replaced, milliseconds int64
		var rotation string
		if err := rows.Scan(&o.Version, &o.Finished, &replaced, &milliseconds, &rotation, &o.Attempt, &o.State); err != nil {
			return nil, fmt.Errorf("reading old key-backup versions: %w", err)
		}
		o.Replaced, o.Grace = time.UnixMilli(replaced), grace
		if milliseconds >= 0 {
			o.Grace = time.Duration(milliseconds) * time.Millisecond
		}
		o.Rotation, _ = uuid.Parse(rotation) // none, for one of an earlier release
		old = append(old, o)
	}
	return old, rows.Err()
}

func (s *store) setOldBackup(ctx context.Context, version, state string) error {
	if _, err := s.db.Exec(ctx, `UPDATE carry SET state = $2 WHERE version = $1`, version, state); err != nil {
		return fmt.Errorf("journaling an old key-backup version: %w", err)
	}
	return nil
}

// holdFile is the file whose presence keeps every old version of an account: `keyherald-device hold` makes it beside the
// store, which a running device does not let go of.
func holdFile(storePath string) string { return strings.TrimSuffix(storePath, ".db") + ".hold" }

// HoldOldBackups keeps every old key backup of an account, or lets them go again, whether or not the account is running;
// storePath is of its store.
func HoldOldBackups(storePath string, hold bool) error {
	if !hold {
		if err := os.Remove(holdFile(storePath)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("letting old key backups go: %w", err)
		}
		return nil
	}
	f, err := os.OpenFile(holdFile(storePath), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("holding old key backups: %w", err)
	}
	return f.Close()
}

func (a *Account) held() (bool, error) {
	if a.config.OldBackup.Hold {
		return true, nil
	}
	_, err := os.Stat(holdFile(a.options.StorePath))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// due reports whether a version may go now, as far as the journal knows.
func (o oldBackup) due(now time.Time) bool {
	return o.State != "deleted" && o.Finished && !now.Before(o.Replaced.Add(o.Grace))
}

// cleanUp is step 10: an old version is deleted when its grace is over, if the current version is ours and has every one
// of its room keys, looked at once more just before. The current version is never deleted.
func (a *Account) cleanUp(ctx context.Context) error {
	old, err := a.store.oldBackups(ctx, a.config.OldBackup.Grace, a.now())
	if err != nil {
		return err
	}
	hold, err := a.held()
	if err != nil || hold {
		return err
	}
	if open, err := a.store.jobs(ctx, true); err != nil || len(open) > 0 {
		return err
	}
	var all error
	for _, o := range old {
		if o.due(a.now()) {
			all = errors.Join(all, a.deleteOld(ctx, o))
		}
	}
	return all
}

func (a *Account) deleteOld(ctx context.Context, o oldBackup) error {
	current, key, err := a.ownCurrent(ctx)
	if err != nil || current == nil || current.ID.String() == o.Version {
		return err
	}
	old, err := a.backup.Get(ctx, id.KeyBackupVersion(o.Version))
	if err != nil {
		return err
	}
	if old != nil {
		oldKey, ok, err := a.findKey(ctx, old.PublicKey)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("key-backup version %s stays: its private key is not to be had any more, so nobody can say that nothing of it is lost", o.Version)
		}
		// What came into the old version since is carried as well: then it is complete, or stays.
		carried, err := a.backup.CarryOver(ctx, backup.CarryOver{From: old.ID, To: current.ID, FromKey: oldKey, ToKey: key.PublicKey()})
		if err != nil {
			return err
		}
		if !carried.Complete {
			return fmt.Errorf("key-backup version %s stays: %d of its %d room keys are not in the current version", o.Version, carried.Total-carried.Carried, carried.Total)
		}
		if err := a.store.setOldBackup(ctx, o.Version, "deleting"); err != nil {
			return err
		}
		if err := a.backup.Delete(ctx, old.ID, current.ID); err != nil {
			return err
		}
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if err := a.store.setOldBackup(ctx, o.Version, "deleted"); err != nil || o.Rotation == uuid.Nil {
			return err
		}
		return a.report(ctx, protocol.Progress{RotationID: o.Rotation, Attempt: o.Attempt, Stage: protocol.StageCleanedUp, Backup: &protocol.BackupReport{
			Version: current.ID.String(), OldVersion: o.Version, PublicKey: current.PublicKey}})
	})
}

// ownCurrent is the current version, if it is this device's and its key is in hand; nil if not.
func (a *Account) ownCurrent(ctx context.Context) (*backup.Version, backupkey.Key, error) {
	ours, err := a.store.get(ctx, "our_version")
	if err != nil {
		return nil, backupkey.Key{}, err
	}
	current, err := a.backup.Current(ctx)
	if err != nil || current == nil || current.ID.String() != ours {
		return nil, backupkey.Key{}, err
	}
	key, ok, err := a.store.key(ctx, current.PublicKey)
	if err != nil || !ok {
		return nil, key, err
	}
	return current, key, nil
}

// oldBackupReports is what a status says of old versions.
func (a *Account) oldBackupReports(ctx context.Context) ([]protocol.OldBackup, error) {
	old, err := a.store.oldBackups(ctx, a.config.OldBackup.Grace, a.now())
	if err != nil {
		return nil, err
	}
	hold, err := a.held()
	if err != nil {
		return nil, err
	}
	var reports []protocol.OldBackup
	for _, o := range old {
		report := protocol.OldBackup{Version: o.Version, State: protocol.OldBackupKept, CarriedOver: o.Finished, Until: protocol.At(o.Replaced.Add(o.Grace))}
		switch {
		case o.State == "deleted":
			report.State, report.Until = protocol.OldBackupDeleted, 0
		case hold:
			report.State, report.Until = protocol.OldBackupHeld, 0
		}
		reports = append(reports, report)
	}
	return reports, nil
}
