package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// tell queues a word to a device, to the keys it was enrolled with, and records in the same transaction that it was
// told: told writes that down, and the event goes into the log.
func (s *Session) tell(ctx context.Context, d postgres.Device, out todevice.Outgoing, event audit.Event, told func(ctx context.Context, at time.Time) error) error {
	out.To = pinned(d)
	claims, err := s.endpoint.Claim(ctx, false, out.To)
	if err != nil {
		return err
	}
	return s.endpoint.InTxn(ctx, func(ctx context.Context) error {
		event.Time, event.Actor, event.Subject, event.Outcome = s.now(), audit.ByRelay(), subjectOf(d), audit.Accepted
		err := s.endpoint.Queue(ctx, out, claims)
		if errors.Is(err, todevice.ErrNoOneTimeKey) {
			// It was logged out already, most likely: there is nobody to tell.
			event.Outcome, event.Detail = audit.Refused, append(event.Detail, audit.Word("refusal", audit.RefusedNoOneTimeKey))
		} else if err != nil {
			return err
		}
		if err := told(ctx, event.Time); err != nil {
			return err
		}
		return s.db.Append(ctx, event)
	})
}

// tellRevoked tells every revoked device that has not been told.
func (s *Session) tellRevoked(ctx context.Context) error {
	devices, err := s.db.RevokedUntold(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		out := todevice.Outgoing{Key: "revoked/" + d.ID.String(), Type: protocol.TypeRevoked.Type, Content: protocol.Revoked{DeviceID: d.DeviceID, At: protocol.At(s.now())}}
		err := s.tell(ctx, d, out, audit.Event{Action: audit.RevocationQueued}, func(ctx context.Context, at time.Time) error {
			return s.db.RevocationTold(ctx, d.ID, at)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tellCancelled tells every device that was triggered for a rotation that is cancelled since.
func (s *Session) tellCancelled(ctx context.Context) error {
	attempts, err := s.db.CancelledUntold(ctx)
	if err != nil {
		return err
	}
	for _, a := range attempts {
		d, err := s.db.Device(ctx, a.Device)
		if err != nil {
			return err
		}
		out := todevice.Outgoing{Key: fmt.Sprintf("cancel/%s/%d", a.RotationID, a.Number), Type: protocol.TypeCancel.Type, Content: protocol.Cancel{RotationID: a.RotationID}}
		event := audit.Event{Action: audit.CancelQueued, Rotation: a.RotationID, Detail: audit.Detail{audit.Number("attempt", a.Number)}}
		err = s.tell(ctx, d, out, event, func(ctx context.Context, at time.Time) error {
			return s.db.CancelTold(ctx, a.RotationID, a.Number, at)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
