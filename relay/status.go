package relay

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// statusTold is how often a status is an audit event that says nothing new.
const statusTold = 24 * time.Hour

func (s *Session) status(ctx context.Context, device postgres.Device, status protocol.Status, raw json.RawMessage) error {
	now := s.now()
	first, err := s.db.FirstReport(ctx, status.ReportID, uuid.NullUUID{}, device.ID, now)
	if err != nil || !first {
		return err
	}
	if wentBack, err := s.marked(ctx, device, status.ReportID, status.Store); err != nil {
		return err
	} else if wentBack {
		return s.wentBack(ctx, device, audit.RefusedStoreBranched, status.ReportID, status.Store, now)
	}
	if overtaken(device, status) {
		if err := s.db.SawDevice(ctx, device.ID, now, nil); err != nil {
			return err
		}
		return s.acts(ctx, device, status, now)
	}
	if err := s.db.SawDevice(ctx, device.ID, now, raw); err != nil {
		return err
	}
	if status.BackupVersion != "" {
		if err := s.db.SawKeyVersion(ctx, device.UserID, status.BackupVersion, status.PublicKey, now); err != nil {
			return err
		}
	}
	if err := s.tellStatus(ctx, device, status, raw, now); err != nil {
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

// overtaken reports whether a newer status of the device is known: one that could not be read is sent again, and may come
// after its successors. What it says of how things are is over then, and what it says was done is still news.
func overtaken(device postgres.Device, status protocol.Status) bool {
	var known protocol.Status
	return json.Unmarshal(device.Status, &known) == nil && known.Store != nil && status.Store != nil && status.Store.Count < known.Store.Count
}

// tellStatus audits a status that is news. The others stand in the device's row alone.
func (s *Session) tellStatus(ctx context.Context, device postgres.Device, status protocol.Status, raw json.RawMessage, now time.Time) error {
	told, at, err := s.db.ToldStatus(ctx, device.ID)
	if err != nil {
		return err
	}
	var before protocol.Status
	// The clock may have been set back meanwhile: then it is as if no status had been told.
	if since := now.Sub(at); json.Unmarshal(told, &before) == nil && since >= 0 && since < statusTold && before.SaysTheSame(status) {
		return nil
	}
	if err := s.db.TellStatus(ctx, device.ID, status.ReportID, raw, now); err != nil {
		return err
	}
	event := audit.Event{Time: now, Actor: actorOf(device), Action: audit.StatusReported, Subject: audit.OfUser(device.UserID), Outcome: audit.Reported, Detail: audit.Detail{
		audit.ID("report", status.ReportID), audit.ID("backup_version", id.KeyBackupVersion(status.BackupVersion)), audit.Flag("holds_key", status.HoldsKey),
		audit.Number("count", status.Count), audit.Number("targets_verified", status.TargetsVerified), audit.Number("targets_unverified", status.TargetsUnverified),
		audit.ID("software_version", audit.SoftwareVersion(status.SoftwareVersion))}}
	if status.PublicKey != "" {
		event.Detail = append(event.Detail, audit.Fingerprint("public_key_sha256", audit.PublicKey(status.PublicKey)))
	}
	if status.Drifted != nil {
		event.Action, event.Detail = audit.DriftReported, append(event.Detail, audit.Word("drift", status.Drifted.Kind))
	}
	return s.db.Append(ctx, event)
}
