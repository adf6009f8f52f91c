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
		subject := string(device.UserID)
		detail := audit.Detail{audit.ID("report", status.ReportID.String()), audit.Number("at", int64(act.At))}
		if act.DeviceID != "" {
			subject += "/" + string(act.DeviceID)
		}
		if act.Secret != "" {
			detail = append(detail, audit.Word("secret", act.Secret))
		}
		if act.Reason != "" {
			detail = append(detail, audit.Word("reason", act.Reason))
		}
		if act.KeyID != "" {
			detail = append(detail, audit.ID("key_id", act.KeyID))
		}
		events = append(events, audit.Event{Time: now, Actor: actorOf(device), Action: action, Subject: subject, Outcome: audit.Reported, Detail: detail})
	}
	if unknown > 0 {
		events = append(events, audit.Event{Time: now, Actor: actorOf(device), Action: audit.MessageUnusable, Subject: string(device.UserID),
			Outcome: audit.Refused, Detail: audit.Detail{audit.Word("reason", "unknown_acts"), audit.Number("count", unknown)}})
	}
	if len(events) == 0 {
		return nil
	}
	return s.db.Append(ctx, events...)
}
