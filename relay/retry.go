package relay

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// Retry asks for another attempt at a rotation that is open or came to nothing. The device goes on from where it was.
func (e *Engine) Retry(ctx context.Context, rotationID uuid.UUID, actor audit.Actor) error {
	return e.change(ctx, rotationID, audit.RotationRetried, actor, func(ctx context.Context, r postgres.Rotation) error {
		if !r.Facts.State.Retryable() {
			return refusal.New(refusal.Conflict, audit.RefusedEnded, "rotation %s is %s: %w: to rotate again, put a new version into the KMS", r.ID, r.Facts.State, ErrNotPossible)
		}
		if r.Held {
			return refusal.New(refusal.Conflict, audit.RefusedHeld, "rotation %s is held (%s): %w: `keyherald rotations release` lets it go", r.ID, r.HeldFor, ErrNotPossible)
		}
		return e.anotherAttempt(ctx, r, actor, e.now())
	})
}

// unreadTries is how many attempts a device gets at a rotation because it could not read a trigger.
const unreadTries = 10

// triggerUnread asks for another attempt at the rotations whose trigger a device has not answered, in the transaction of a
// message by which the device began an Olm session: it could not read something (client-server API, "Recovering from
// undecryptable messages"), and a trigger is not sent twice, since whoever did read it would reject the second.
func (s *Session) triggerUnread(ctx context.Context, d postgres.Device) error {
	asked := false
	err := s.ofDevice(ctx, d, func(r postgres.Rotation, attempts []postgres.Attempt) error {
		if attempts[len(attempts)-1].Stage != "" || len(attempts) > unreadTries {
			return nil
		}
		asked = true
		return s.anotherAttempt(ctx, r, audit.ByRelay(), s.now())
	})
	if err != nil || !asked {
		return err
	}
	return s.db.Notify(ctx, WorkChannel, "")
}

// anotherAttempt makes a locked rotation due again.
func (e *Engine) anotherAttempt(ctx context.Context, r postgres.Rotation, actor audit.Actor, now time.Time) error {
	before := r.Facts.State
	r.Facts.State, r.Facts.Attention, r.Facts.Failure, r.NextAction = rotation.Received, "", "", ""
	if err := e.db.UpdateRotation(ctx, r, now); err != nil {
		return err
	}
	return e.db.Append(ctx, audit.Event{Time: now, Actor: actor, Action: audit.RotationRetried, Subject: audit.OfUser(r.UserID), Rotation: r.ID,
		Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("from", before)}})
}

// Cancel ends an open rotation; the device is told to stop where it is. What is done stays done.
func (e *Engine) Cancel(ctx context.Context, rotationID uuid.UUID, actor audit.Actor) error {
	return e.change(ctx, rotationID, audit.RotationCancelled, actor, func(ctx context.Context, r postgres.Rotation) error {
		if r.Facts.State.Ended() {
			return refusal.New(refusal.Conflict, audit.RefusedEnded, "rotation %s is %s already: %w", r.ID, r.Facts.State, ErrNotPossible)
		}
		return e.cancel(ctx, r, actor)
	})
}

// cancel ends a locked rotation that is open.
func (e *Engine) cancel(ctx context.Context, r postgres.Rotation, actor audit.Actor) error {
	r.Facts.State, r.Facts.Attention, r.NextAction = rotation.Cancelled, "", ""
	return e.end(ctx, r, audit.RotationCancelled, actor)
}

func (e *Engine) change(ctx context.Context, rotationID uuid.UUID, action audit.Action, actor audit.Actor, do func(context.Context, postgres.Rotation) error) error {
	event := audit.Event{Actor: actor, Action: action, Subject: audit.OfRotations(), Rotation: rotationID}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		r, ok, err := e.db.LockRotation(ctx, rotationID)
		if err != nil {
			return err
		}
		if !ok {
			return refusal.New(refusal.NotFound, audit.RefusedUnknownRotation, "there is no rotation %s: `keyherald rotations list` shows them", rotationID)
		}
		event.Subject = audit.OfUser(r.UserID)
		if err := do(ctx, r); err != nil {
			return err
		}
		return e.db.Notify(ctx, WorkChannel, r.ID.String())
	})
}
