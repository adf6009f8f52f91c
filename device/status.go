package device

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// sendStatus tells the server how things are now. The first status of a run begins an Olm session: if the store was put
// back to an earlier state, its ratchets were used before, and the server could not read what would tell it so.
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
	claims, err := a.endpoint.Claim(ctx, !a.spoken.Load(), bot)
	if err != nil {
		return err
	}
	err = a.endpoint.InTxn(ctx, func(ctx context.Context) (err error) {
		if p, err := a.pin(ctx); err != nil || !p.Accepted {
			return err
		}
		if status.Store, err = a.nextMark(ctx); err != nil {
			return err
		}
		if status.Acts, err = a.takeActs(ctx); err != nil {
			return err
		}
		return a.endpoint.Queue(ctx, todevice.Outgoing{Key: "status/" + status.ReportID.String(), To: bot, Type: protocol.TypeStatus.Type, Content: status, Again: true}, claims)
	})
	if err != nil {
		return err
	}
	a.spoken.Store(true)
	return a.onDrift(ctx, status)
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
	if err := a.askAgainIfReset(ctx, identities[a.config.UserID]); err != nil {
		return status, err
	}
	if identities[a.config.UserID].PinnedTo(p.OwnMasterKey) {
		if err := a.newTargets(ctx, identities[a.config.UserID]); err != nil {
			return status, err
		}
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
	if status.OldBackups, err = a.oldBackupReports(ctx); err != nil {
		return status, err
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
