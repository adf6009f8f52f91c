package device

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/protocol"
)

// carryOver is step 7, for every older version that is not finished.
func (a *Account) carryOver(ctx context.Context, j *job, oldKey, key backupkey.Key) error {
	rows, err := a.store.db.Query(ctx, `SELECT version FROM carry WHERE NOT finished AND version <> $1 ORDER BY version`, j.NewVersion)
	if err != nil {
		return fmt.Errorf("reading what to carry over: %w", err)
	}
	var versions []string
	for rows.Next() {
		var version string
		if err := rows.Scan(&version); err != nil {
			return errors.Join(err, rows.Close())
		}
		versions = append(versions, version)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("reading what to carry over: %w", err)
	}
	report := protocol.CarriedReport{Complete: true}
	var finished []string
	progress := a.newCarrying(j)
	defer progress.end()
	for _, version := range versions {
		from := oldKey
		if version != j.OldVersion {
			old, ok, err := a.keyOfVersion(ctx, version)
			if err != nil {
				return err
			}
			if !ok {
				report.Complete = false
				continue
			}
			from = old
		}
		if err := progress.begin(ctx, version); err != nil {
			return err
		}
		carried, err := a.backup.CarryOver(ctx, backup.CarryOver{From: id.KeyBackupVersion(version), To: id.KeyBackupVersion(j.NewVersion), FromKey: from,
			ToKey: key.PublicKey(), SpoolDir: filepath.Dir(a.options.StorePath), Pace: a.pace(), Progress: func(c backup.Carried) { progress.at(ctx, c) }})
		if errors.Is(err, backup.ErrGone) {
			// Somebody deleted the old version: there is nothing left to carry, and nobody who could.
			a.log.Warn().Str("version", version).Msg("An older key-backup version was deleted before it was carried over")
			report.Complete, finished = false, append(finished, version)
			continue
		} else if errors.Is(err, backup.ErrChanged) {
			return stop(protocol.AttentionBackupChanged, err)
		} else if err != nil {
			return err
		}
		report.Total += carried.Total
		report.Carried += carried.Carried
		report.Undecrypted += len(carried.Undecrypted)
		for _, sessionID := range carried.Undecrypted[:min(len(carried.Undecrypted), 100)] {
			report.Sessions = append(report.Sessions, sessionID.String())
		}
		if carried.Complete {
			finished = append(finished, version)
		} else {
			report.Complete = false
		}
	}
	// Together with its report: what was finished before it was reported would never be counted in one.
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		for _, version := range finished {
			if _, err := a.store.db.Exec(ctx, `UPDATE carry SET finished = true WHERE version = $1`, version); err != nil {
				return fmt.Errorf("journaling a finished carry-over: %w", err)
			}
		}
		return a.report(ctx, protocol.Progress{RotationID: j.Rotation, Attempt: j.Attempt, Stage: protocol.StageCarriedOver, Carried: &report})
	})
	if err == nil && !report.Complete {
		return stop(protocol.AttentionCarryOverIncomplete, fmt.Errorf("%d of %d room keys could not be carried over", report.Total-report.Carried, report.Total))
	}
	return err
}

func (a *Account) keyOfVersion(ctx context.Context, version string) (backupkey.Key, bool, error) {
	old, err := a.backup.Get(ctx, id.KeyBackupVersion(version))
	if err != nil || old == nil {
		return backupkey.Key{}, false, err
	}
	return a.findKey(ctx, old.PublicKey)
}

// pace is nil where nothing is shared with other accounts.
func (a *Account) pace() func(ctx context.Context) (func(took time.Duration), error) {
	if a.options.Pace == nil {
		return nil
	}
	return a.options.Pace.Begin
}

// carryingInterval is how often the server is told how far a long carry-over is.
const carryingInterval = 30 * time.Second

// carrying tells how far a carry-over is: the terminal with each request, the server now and then. It is used by the one
// goroutine that writes.
type carrying struct {
	account    *Account
	job        *job
	told       time.Time
	done, most int
	// before is what versions carried before this one come to.
	before int
}

func (a *Account) newCarrying(j *job) *carrying {
	return &carrying{account: a, job: j, told: a.now()}
}

// begin reads how many keys the next version has.
func (c *carrying) begin(ctx context.Context, version string) error {
	old, err := c.account.backup.Get(ctx, id.KeyBackupVersion(version))
	if err != nil || old == nil {
		return err // CarryOver says what it means that there is none
	}
	c.before, c.most = c.done, c.done+old.Count
	return nil
}

func (c *carrying) at(ctx context.Context, carried backup.Carried) {
	c.done = c.before + carried.Carried + len(carried.Undecrypted)
	c.most = max(c.most, c.done)
	if show := c.account.options.Carrying; show != nil {
		show(c.account.config.UserID, c.done, c.most)
	}
	if now := c.account.now(); now.Sub(c.told) >= carryingInterval {
		c.told = now
		err := c.account.endpoint.InTxn(ctx, func(ctx context.Context) error {
			return c.account.report(ctx, protocol.Progress{RotationID: c.job.Rotation, Attempt: c.job.Attempt, Stage: protocol.StageCarryingOver,
				Carried: &protocol.CarriedReport{Total: c.most, Carried: c.done}})
		})
		c.account.warn(ctx, err, "The server could not be told how far the carry-over is")
	}
}

func (c *carrying) end() {
	if show := c.account.options.Carrying; show != nil && c.most > 0 {
		show(c.account.config.UserID, c.most, c.most)
	}
}
