package relay

import (
	"context"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// actActions is what an act is called in the audit log. A newer device may report acts that are not in it: these are
// logged as such, with nothing of theirs but the count.
var actActions = map[protocol.ActKind]audit.Action{
	protocol.ActSecretRequestAnswered: audit.SecretRequestAnswered,
	protocol.ActSecretRequestRefused:  audit.SecretRequestRefused,
	protocol.ActSecretKept:            audit.SecretKept,
	protocol.ActSecretAccepted:        audit.SecretAccepted,
	protocol.ActSecretRejected:        audit.SecretRejected,
	protocol.ActRecoveryKeyProvided:   audit.RecoveryKeyProvided,
	protocol.ActRecoveryKeyReplaced:   audit.RecoveryKeyReplaced,
	protocol.ActDeviceVerified:        audit.DeviceVerified,
	protocol.ActAccountEnded:          audit.AccountEnded,
}

// acts writes what a device did with its user's secrets into the log, with the device's own time in the detail.
func (s *Session) acts(ctx context.Context, device postgres.Device, status protocol.Status, now time.Time) error {
	var events []audit.Event
	unknown := 0
	for _, act := range status.Acts {
		action, ok := actActions[act.Kind]
		if !ok {
			unknown++
			continue
		}
		subject := audit.OfUser(device.UserID)
		detail := audit.Detail{audit.ID("report", status.ReportID), audit.Time("at", act.At.Time())}
		if act.DeviceID != "" {
			subject = audit.OfDevice(device.UserID, act.DeviceID)
		}
		if act.Secret != "" {
			detail = append(detail, audit.Word("secret", audit.Secret(act.Secret)))
		}
		if act.Reason != "" {
			detail = append(detail, audit.Word("reason", audit.ActReason(act.Reason)))
		}
		if act.KeyID != "" {
			detail = append(detail, audit.ID("key_id", audit.StorageKeyID(act.KeyID)))
		}
		events = append(events, audit.Event{Time: now, Actor: actorOf(device), Action: action, Subject: subject, Outcome: audit.Reported, Detail: detail})
	}
	if unknown > 0 {
		events = append(events, audit.Event{Time: now, Actor: actorOf(device), Action: audit.MessageUnusable, Subject: audit.OfUser(device.UserID),
			Outcome: audit.Refused, Detail: audit.Detail{audit.ID("report", status.ReportID), audit.Word("refusal", audit.RefusedUnknownActs), audit.Number("count", unknown)}})
	}
	if len(events) == 0 {
		return nil
	}
	return s.db.Append(ctx, events...)
}
