package relay

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

func (s *Session) progress(ctx context.Context, device postgres.Device, report protocol.Progress) error {
	now := s.now()
	first, err := s.db.FirstReport(ctx, report.ReportID, uuid.NullUUID{UUID: report.RotationID, Valid: true}, device.ID, now)
	if err != nil || !first {
		return err
	}
	if wentBack, err := s.marked(ctx, device, report.ReportID, report.Store); err != nil {
		return err
	} else if wentBack || report.Error != nil && report.Error.Code == protocol.StoreWentBackwards {
		return s.wentBack(ctx, device, report.ReportID, report.Store, now)
	}
	if err := s.db.SawDevice(ctx, device.ID, now, nil); err != nil {
		return err
	}
	r, ok, err := s.db.LockRotation(ctx, report.RotationID)
	if err != nil {
		return err
	}
	if !ok || r.UserID != device.UserID {
		return s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.MessageUnusable, Subject: string(device.UserID),
			Outcome: audit.Refused, Detail: audit.Detail{audit.Word("reason", "unknown_rotation"), audit.ID("rotation", report.RotationID.String())}})
	}
	before := r.Facts.State
	r.Facts = rotation.Apply(r.Facts, report)
	if report.Stage != protocol.StageWithdrawn {
		r.NextAction = ""
		if r.Facts.Attention != "" {
			r.NextAction = rotation.NextAction(r.Facts.Attention)
		}
	}
	if err := s.db.AttemptReported(ctx, r.ID, report.Attempt, report.Stage, now); err != nil {
		return err
	}
	for _, delivery := range report.Deliveries {
		if err := s.db.PutDelivery(ctx, r.ID, delivery, now); err != nil {
			return err
		}
	}
	if err := s.db.UpdateRotation(ctx, r, now); err != nil {
		return err
	}
	if err := s.db.Append(ctx, progressEvent(device, r, report, now)); err != nil {
		return err
	}
	for _, delivery := range report.Deliveries {
		err := s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.DeliveryReported,
			Subject: string(device.UserID) + "/" + string(delivery.DeviceID), Rotation: r.ID, Outcome: audit.Reported,
			Detail: audit.Detail{audit.Word("outcome", delivery.Outcome), audit.Words("forms", delivery.Forms)}})
		if err != nil {
			return err
		}
	}
	if report.SequenceMark > 0 && report.Error != nil && report.Error.Code == protocol.RejectedSequence {
		if _, err := s.db.NextSequence(ctx, r.UserID, r.Secret, report.SequenceMark, now); err != nil {
			return err
		}
	}
	if before == r.Facts.State {
		return nil
	}
	switch r.Facts.State {
	case rotation.Done:
		return s.end(ctx, r, audit.RotationDone, "relay", audit.ID("backup_version", r.Facts.BackupVersion))
	case rotation.Failed:
		return s.end(ctx, r, audit.RotationFailed, "relay", audit.Word("error", r.Facts.Failure))
	}
	return nil
}

func progressEvent(device postgres.Device, r postgres.Rotation, report protocol.Progress, now time.Time) audit.Event {
	detail := audit.Detail{audit.Word("stage", report.Stage), audit.Number("attempt", report.Attempt), audit.ID("report", report.ReportID.String())}
	if report.KMSVersion != "" {
		detail = append(detail, audit.ID("kms_version", report.KMSVersion))
	}
	if report.Backup != nil {
		detail = append(detail, audit.ID("backup_version", report.Backup.Version), audit.ID("old_backup_version", report.Backup.OldVersion),
			audit.Flag("created", report.Backup.Created), audit.Fingerprint("public_key_sha256", report.Backup.PublicKey))
	}
	if report.Carried != nil {
		detail = append(detail, audit.Number("total", report.Carried.Total), audit.Number("carried", report.Carried.Carried),
			audit.Number("undecrypted", report.Carried.Undecrypted), audit.Flag("complete", report.Carried.Complete))
	}
	if report.RecoveryCopy != "" {
		detail = append(detail, audit.Word("recovery_copy", report.RecoveryCopy))
	}
	if report.Error != nil {
		// The message is the device's free text and stays out: the code is the vocabulary.
		detail = append(detail, audit.Word("error", report.Error.Code), audit.Flag("retryable", report.Error.Retryable))
	}
	return audit.Event{Time: now, Actor: actorOf(device), Action: audit.ProgressReported, Subject: string(device.UserID), Rotation: r.ID,
		Outcome: audit.Reported, Detail: detail}
}

func actorOf(device postgres.Device) string {
	return string(device.UserID) + "/" + string(device.DeviceID)
}

func (s *Session) status(ctx context.Context, device postgres.Device, status protocol.Status, raw json.RawMessage) error {
	now := s.now()
	first, err := s.db.FirstReport(ctx, status.ReportID, uuid.NullUUID{}, device.ID, now)
	if err != nil || !first {
		return err
	}
	if wentBack, err := s.marked(ctx, device, status.ReportID, status.Store); err != nil {
		return err
	} else if wentBack {
		return s.wentBack(ctx, device, status.ReportID, status.Store, now)
	}
	if err := s.db.SawDevice(ctx, device.ID, now, raw); err != nil {
		return err
	}
	detail := audit.Detail{audit.ID("backup_version", status.BackupVersion), audit.Flag("holds_key", status.HoldsKey),
		audit.Number("count", status.Count), audit.Number("targets_verified", status.TargetsVerified), audit.Number("targets_unverified", status.TargetsUnverified)}
	action := audit.StatusReported
	if status.Drifted != nil {
		action = audit.DriftReported
		detail = append(detail, audit.Word("drift", status.Drifted.Kind))
	}
	err = s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: action, Subject: string(device.UserID), Outcome: audit.Reported, Detail: detail})
	if err != nil {
		return err
	}
	if err := s.acts(ctx, device, status, now); err != nil {
		return err
	}
	if err := s.adopted(ctx, device, status, now); err != nil {
		return err
	}
	// Offline was waiting, not failure: a device that is back is worth another look.
	return s.db.Notify(ctx, WorkChannel, "")
}

// adopted is claimed only here: a managed receiver itself says that it holds the key of a rotation's version.
func (s *Session) adopted(ctx context.Context, device postgres.Device, status protocol.Status, now time.Time) error {
	if !status.HoldsKey || status.BackupVersion == "" {
		return nil
	}
	rotations, err := s.db.Rotations(ctx, device.UserID, false)
	if err != nil {
		return err
	}
	for _, r := range rotations {
		if r.Facts.BackupVersion != status.BackupVersion {
			continue
		}
		changed, err := s.db.Adopted(ctx, r.ID, device.DeviceID, now)
		if err != nil {
			return err
		}
		if !changed {
			continue
		}
		err = s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.DeliveryReported, Subject: actorOf(device), Rotation: r.ID,
			Outcome: audit.Reported, Detail: audit.Detail{audit.Word("outcome", protocol.OutcomeAdopted)}})
		if err != nil {
			return err
		}
	}
	return nil
}
