package relay

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// marked keeps the mark of a report that came for the first time, or finds that it proves that the device's store went
// back. A device of an older version sends no mark and proves nothing.
func (s *Session) marked(ctx context.Context, device postgres.Device, report uuid.UUID, mark *protocol.StoreMark) (wentBack bool, err error) {
	if mark == nil {
		return false, nil
	}
	runs, err := s.db.StoreRuns(ctx, device.ID)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(runs, mark.Forks) {
		return true, nil
	}
	if taken, err := s.db.MarkTaken(ctx, device.ID, *mark); err != nil || taken {
		return taken, err
	}
	return false, s.db.PutStoreMark(ctx, device.ID, report, *mark)
}

// wentBack ends the enrollment of a device whose store was put back to an earlier state or copied: its Olm ratchets may
// have been used already, its journal does not know what it did, and there may be two of it. Nothing of its report
// counts. The device is told, its rotations go to another, and it comes back as a new login.
func (s *Session) wentBack(ctx context.Context, device postgres.Device, why audit.Refusal, report uuid.UUID, mark *protocol.StoreMark, now time.Time) error {
	if err := s.db.DeviceWentBack(ctx, device.ID, now); err != nil {
		return err
	}
	detail := audit.Detail{audit.Word("refusal", why), audit.ID("report", report)}
	if mark != nil {
		detail = append(detail, audit.ID("run", mark.Run), audit.Number("base", mark.Base), audit.Number("count", mark.Count))
	}
	err := s.db.Append(ctx, audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.DeviceWentBack, Subject: subjectOf(device), Outcome: audit.Refused, Detail: detail})
	if err != nil {
		return err
	}
	s.log.Error().Stringer("device", subjectOf(device)).Msg("A managed device's store went back to an earlier state: " + rotation.NextAction(protocol.StoreWentBackwards))
	if err := s.takeAway(ctx, device, protocol.StoreWentBackwards); err != nil {
		return err
	}
	// Its message has just been decrypted, so there is an Olm session with it.
	to := crosssigning.Device{UserID: device.UserID, DeviceID: device.DeviceID, IdentityKey: device.IdentityKey, SigningKey: device.SigningKey}
	err = s.endpoint.Queue(ctx, todevice.Outgoing{Key: "went_back/" + report.String(), To: to, Type: protocol.TypeRevoked.Type,
		Content: protocol.Revoked{DeviceID: device.DeviceID, Reason: string(protocol.StoreWentBackwards), At: protocol.At(now)}}, nil)
	if err != nil {
		return err
	}
	return s.db.Notify(ctx, WorkChannel, "")
}
