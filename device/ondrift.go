package device

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/protocol"
)

// OnDrift is what a device does where the key backup is not the KMS's any more, between rotations.
type OnDrift string

// The policies: tell the server and leave it; make the user's new key the KMS's, so that the company's copy is true
// again; or make the KMS's key the user's again, at most once a day.
const (
	DriftReport  OnDrift = "report"
	DriftAdopt   OnDrift = "adopt"
	DriftReclaim OnDrift = "reclaim"
)

// reclaimInterval is how often the KMS's key is made the user's again at most: whoever resets his key backup again and
// again is not fought.
const reclaimInterval = 24 * time.Hour

// onDrift acts on a key backup that somebody else made, as the account file says. Both ways need the private key of what
// is there now: without it nothing is done, and nothing is lost.
func (a *Account) onDrift(ctx context.Context, status protocol.Status) error {
	if status.Drifted == nil || status.Drifted.Kind != protocol.DriftBackup || !status.HoldsKey {
		return nil
	}
	switch a.config.OnDrift {
	case DriftAdopt:
		return a.adoptReset(ctx, status)
	case DriftReclaim:
		return a.reclaim(ctx)
	}
	return nil
}

// adoptReset puts the user's own new key into the KMS. Its word about that version, or a look at it, opens a rotation,
// which finds the key backup as it should be, and carries over and pushes what there is.
func (a *Account) adoptReset(ctx context.Context, status protocol.Status) error {
	key, ok, err := a.store.key(ctx, status.PublicKey)
	if err != nil || !ok {
		return err
	}
	after, err := a.kms.Current(ctx, a.config.KMS.Path)
	if errors.Is(err, kms.ErrNotFound) {
		after = ""
	} else if err != nil {
		return a.kmsError(err)
	}
	if _, err := a.kms.Write(ctx, a.config.KMS.Path, after, key); err != nil && !errors.Is(err, kms.ErrConflict) {
		return fmt.Errorf("putting the user's own key into the KMS: %w", err)
	}
	a.log.Info().Str("version", status.BackupVersion).Msg("The user's own key backup is adopted: its key is in the KMS")
	return nil
}

// reclaim opens the last rotation once more, from its key on.
func (a *Account) reclaim(ctx context.Context) error {
	text, err := a.store.get(ctx, "reclaimed_at")
	if err != nil {
		return err
	}
	if last, _ := strconv.ParseInt(text, 10, 64); a.now().Sub(time.UnixMilli(last)) < reclaimInterval {
		return nil
	}
	// Whoever switched key backup off is not fought at all.
	if out, err := a.backup.OptedOut(ctx); err != nil || out {
		return err
	}
	j, ok, err := a.lastPush(ctx)
	if err != nil || !ok {
		return err
	}
	return a.endpoint.InTxn(ctx, func(ctx context.Context) error {
		if open, err := a.store.jobs(ctx, true); err != nil || len(open) > 0 {
			return err
		}
		count, err := a.reclaims(ctx)
		if err != nil {
			return err
		}
		if err := a.store.set(ctx, "reclaims", strconv.Itoa(count+1)); err != nil {
			return err
		}
		if err := a.store.set(ctx, "reclaimed_at", strconv.FormatInt(a.now().UnixMilli(), 10)); err != nil {
			return err
		}
		j.Ended, j.Stage, j.OldVersion, j.OldSeen, j.NewVersion, j.PublicKey, j.Plan, j.Carried = false, protocol.StageFetched, "", false, "", "", nil, false
		j.Tries, j.NextTry = 0, a.now()
		return a.store.putJob(ctx, j, a.now())
	})
}

// reclaims is how often a key backup was reclaimed: reports of such work are other reports.
func (a *Account) reclaims(ctx context.Context) (int, error) {
	text, err := a.store.get(ctx, "reclaims")
	if err != nil || text == "" {
		return 0, err
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("reading how often a key backup was reclaimed: %w", err)
	}
	return count, nil
}
