package relay

import (
	"context"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/roster"
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
	} else if wentBack {
		return s.wentBack(ctx, device, audit.RefusedStoreBranched, report.ReportID, report.Store, now)
	} else if report.Error != nil && report.Error.Code == protocol.StoreWentBackwards {
		return s.wentBack(ctx, device, audit.RefusedStoreConfessed, report.ReportID, report.Store, now)
	}
	if err := s.db.SawDevice(ctx, device.ID, now, nil); err != nil {
		return err
	}
	r, ok, err := s.db.LockRotation(ctx, report.RotationID)
	if err != nil {
		return err
	}
	if !ok || r.UserID != device.UserID {
		return s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.MessageUnusable, Subject: audit.OfUser(device.UserID),
			Outcome: audit.Refused, Detail: audit.Detail{audit.Word("refusal", audit.RefusedUnknownRotation), audit.ID("rotation", report.RotationID)}})
	}
	if err := s.bind(ctx, &r, report, now); err != nil {
		return err
	}
	s.hasMoved(r.ID)
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
	if err := s.keepVersion(ctx, r, report, now); err != nil {
		return err
	}
	if err := s.db.Append(ctx, progressEvent(device, r, report, now)); err != nil {
		return err
	}
	for _, delivery := range report.Deliveries {
		err := s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.DeliveryReported,
			Subject: audit.OfDevice(device.UserID, delivery.DeviceID), Rotation: r.ID, Outcome: audit.Reported,
			Detail: audit.Detail{audit.Word("outcome", delivery.Outcome), audit.Words("forms", formsOf(delivery))}})
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
		return s.end(ctx, r, audit.RotationDone, audit.ByRelay(), audit.ID("backup_version", id.KeyBackupVersion(r.Facts.BackupVersion)))
	case rotation.Failed:
		return s.end(ctx, r, audit.RotationFailed, audit.ByRelay(), audit.Word("error", r.Facts.Failure))
	}
	return nil
}

// keepVersion keeps since when a key-backup version is there, which is what a key's age counts from.
func (s *Session) keepVersion(ctx context.Context, r postgres.Rotation, report protocol.Progress, now time.Time) error {
	if report.Stage != protocol.StageBackupCreated || report.Backup == nil || report.Backup.Version == "" {
		return nil
	}
	if !report.Backup.Created {
		return s.db.SawKeyVersion(ctx, r.UserID, report.Backup.Version, report.Backup.PublicKey, now)
	}
	at := roster.KeyCreated(report.At.Time(), r.CreatedAt, now)
	return s.db.CreatedKeyVersion(ctx, r.UserID, report.Backup.Version, report.Backup.PublicKey, at)
}

func progressEvent(device postgres.Device, r postgres.Rotation, report protocol.Progress, now time.Time) audit.Event {
	detail := audit.Detail{audit.Word("stage", report.Stage), audit.Number("attempt", report.Attempt), audit.ID("report", report.ReportID)}
	if report.KMSVersion != "" {
		detail = append(detail, audit.ID("kms_version", audit.KMSVersion(report.KMSVersion)))
	}
	if report.Backup != nil {
		detail = append(detail, audit.ID("backup_version", id.KeyBackupVersion(report.Backup.Version)), audit.ID("old_backup_version", id.KeyBackupVersion(report.Backup.OldVersion)),
			audit.Flag("created", report.Backup.Created), audit.Fingerprint("public_key_sha256", audit.PublicKey(report.Backup.PublicKey)))
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
	return audit.Event{Time: now, Actor: actorOf(device), Action: audit.ProgressReported, Subject: audit.OfUser(device.UserID), Rotation: r.ID,
		Outcome: audit.Reported, Detail: detail}
}

func actorOf(device postgres.Device) audit.Actor {
	return audit.ByDevice(device.UserID, device.DeviceID)
}

func subjectOf(device postgres.Device) audit.Subject {
	return audit.OfDevice(device.UserID, device.DeviceID)
}

func formsOf(delivery protocol.Delivery) []msc4385.Form {
	forms := make([]msc4385.Form, len(delivery.Forms))
	for i, form := range delivery.Forms {
		forms[i] = msc4385.Form(form)
	}
	return forms
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
		s.hasMoved(r.ID)
		err = s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.DeliveryReported, Subject: subjectOf(device), Rotation: r.ID,
			Outcome: audit.Reported, Detail: audit.Detail{audit.Word("outcome", protocol.OutcomeAdopted)}})
		if err != nil {
			return err
		}
	}
	return nil
}
