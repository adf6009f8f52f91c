package relay

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// holdStorm holds a new rotation where more users' keys changed lately than the storm limit allows: a KMS that changes
// everybody's key at once is more likely broken, or broken into, than meant. Replicas that take notifications in the
// same moment do not see each other's, so a storm may exceed the limit by what they had in hand.
func (e *Engine) holdStorm(ctx context.Context, r postgres.Rotation, actor string) error {
	now := e.now()
	others, through, err := e.db.ChangedUsers(ctx, now.Add(-rotation.StormWindow), r.UserID, r.ID)
	if err != nil || through || others < e.storm.Users {
		return err
	}
	enrolled, err := e.db.EnrolledUsers(ctx)
	if err != nil || !e.storm.Holds(others, enrolled) {
		return err
	}
	if err := e.db.HoldRotation(ctx, r.ID, "admin: too many users changed at once: if that is meant, release it (keyherald rotations release "+r.ID.String()+", or --all)"); err != nil {
		return err
	}
	return e.db.Append(ctx, audit.Event{Time: now, Actor: actor, Action: audit.RotationHeld, Subject: string(r.UserID), Rotation: r.ID,
		Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("users_changed", others), audit.Number("users_enrolled", enrolled)}})
}

// Release lets held rotations go: those named, or all for none named. It returns how many.
func (e *Engine) Release(ctx context.Context, keys []uuid.UUID, actor string) (released int, err error) {
	err = e.db.Txn(ctx, func(ctx context.Context) error {
		now := e.now()
		held, err := e.db.ReleaseRotations(ctx, keys, now)
		if err != nil {
			return err
		}
		if len(held) < len(keys) {
			return fmt.Errorf("%d of these %d rotations are held: %w: `keyherald rotations list --open` shows them", len(held), len(keys), ErrNotPossible)
		}
		events := make([]audit.Event, len(held))
		for i, r := range held {
			events[i] = audit.Event{Time: now, Actor: actor, Action: audit.RotationReleased, Subject: string(r.UserID), Rotation: r.ID, Outcome: audit.Accepted}
		}
		if err := e.db.Append(ctx, events...); err != nil {
			return err
		}
		released = len(held)
		return e.db.Notify(ctx, WorkChannel, "")
	})
	return released, err
}
