package relay

import (
	"context"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/rotation"
)

// unsignedPatience is for how long rotations go on while the audit log is not signed.
const unsignedPatience = 24 * time.Hour

// unsigned reports whether events have waited for a signature for too long.
func (e *Engine) unsigned(ctx context.Context) (bool, error) {
	if !e.sealed {
		return false, nil
	}
	oldest, err := e.db.OldestUnsealed(ctx)
	return err == nil && !oldest.IsZero() && e.now().Sub(oldest) > unsignedPatience, err
}

// holdUnsigned holds the rotations that nobody works on yet while the audit log is not signed: what nobody can prove
// should not go on for long. What is urgent goes on, and what an admin released.
func (e *Engine) holdUnsigned(ctx context.Context) error {
	if is, err := e.unsigned(ctx); err != nil || !is {
		return err
	}
	return e.db.Txn(ctx, func(ctx context.Context) error {
		held, err := e.db.HoldUntriggered(ctx, rotation.HoldLogUnsigned,
			"operator: the audit log has not been signed for a day, and its signer says why (keyherald_audit_signer_stopped, the log, /readyz); the rotation goes on by itself when it is, or by keyherald rotations release", e.now())
		if err != nil {
			return err
		}
		events := make([]audit.Event, len(held))
		for i, r := range held {
			events[i] = audit.Event{Time: e.now(), Actor: audit.ByRelay(), Action: audit.RotationHeld, Subject: audit.OfUser(r.UserID), Rotation: r.ID, Outcome: audit.Accepted,
				Detail: audit.Detail{audit.Word("for", rotation.HoldLogUnsigned)}}
		}
		return e.db.Append(ctx, events...)
	})
}

// releaseSigned lets go what holdUnsigned held, once the audit log is signed again.
func (e *Engine) releaseSigned(ctx context.Context) error {
	if is, err := e.unsigned(ctx); err != nil || is {
		return err
	}
	return e.db.Txn(ctx, func(ctx context.Context) error {
		released, err := e.db.ReleaseHeldFor(ctx, rotation.HoldLogUnsigned, e.now())
		if err != nil {
			return err
		}
		events := make([]audit.Event, len(released))
		for i, r := range released {
			events[i] = audit.Event{Time: e.now(), Actor: audit.ByRelay(), Action: audit.RotationReleased, Subject: audit.OfUser(r.UserID), Rotation: r.ID, Outcome: audit.Accepted}
		}
		return e.db.Append(ctx, events...)
	})
}
