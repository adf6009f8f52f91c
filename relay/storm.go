package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// holdStorm holds those of the rotations about to be opened that are of more users than the storm limit allows: a KMS
// that changes everybody's key at once is more likely broken, or broken into, than meant. Replicas that take
// notifications in the same moment do not see each other's, so a storm may exceed the limit by what they had in hand.
func (e *Engine) holdStorm(ctx context.Context, opened []postgres.Rotation, now time.Time) ([]audit.Event, error) {
	if e.storm.Off() {
		return nil, nil
	}
	changed, through, err := e.db.ChangedUsers(ctx, now.Add(-rotation.StormWindow), users(opened))
	if err != nil {
		return nil, err
	}
	enrolled := -1
	var events []audit.Event
	for i := range opened {
		r := &opened[i]
		if through[r.UserID] || r.Held || r.Facts.State.Ended() || r.Source == postgres.SourcePolicy || r.Source == postgres.SourceCampaign {
			continue
		}
		if changed >= e.storm.Users && enrolled < 0 {
			if enrolled, err = e.db.EnrolledUsers(ctx); err != nil {
				return nil, err
			}
		}
		if changed < e.storm.Users || !e.storm.Holds(changed, enrolled) {
			changed++
			through[r.UserID] = true
			continue
		}
		r.Held, r.HeldFor = true, rotation.HoldStorm
		r.NextAction = "admin: too many users changed at once: if that is meant, release it (keyherald rotations release " + r.ID.String() + ", or all in waves: keyherald campaign start --release --all)"
		events = append(events, audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.RotationHeld, Subject: audit.OfUser(r.UserID), Rotation: r.ID,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("for", rotation.HoldStorm), audit.Number("users_changed", changed), audit.Number("users_enrolled", enrolled)}})
	}
	return events, nil
}

// Storm is the limit that the engine goes by.
func (e *Engine) Storm() rotation.StormLimit { return e.storm }

// Release lets held rotations go: those named, or all for none named. It returns how many.
func (e *Engine) Release(ctx context.Context, keys []uuid.UUID, actor audit.Actor) (released int, err error) {
	var held []postgres.Rotation
	err = e.db.Txn(ctx, func(ctx context.Context) error {
		now := e.now()
		if held, err = e.db.ReleaseRotations(ctx, keys, now); err != nil {
			return err
		}
		if len(held) == 0 || len(held) < len(keys) {
			return refusal.New(refusal.Conflict, audit.RefusedNotHeld, "%d of these %d rotations are held: %w: `keyherald rotations list --open` shows them", len(held), len(keys), ErrNotPossible)
		}
		events := make([]audit.Event, len(held))
		for i, r := range held {
			events[i] = audit.Event{Time: now, Actor: actor, Action: audit.RotationReleased, Subject: audit.OfUser(r.UserID), Rotation: r.ID, Outcome: audit.Accepted}
		}
		if err := e.db.Append(ctx, events...); err != nil {
			return err
		}
		return e.db.Notify(ctx, WorkChannel, "")
	})
	if _, _, no := refusal.Of(err); no {
		return 0, e.releaseRefused(ctx, keys, held, actor, err)
	} else if err != nil {
		return 0, err
	}
	return len(held), nil
}

// ReleaseHeld lets a rotation go that the server held by itself and now has go on, if it is held for that still.
func (e *Engine) ReleaseHeld(ctx context.Context, key uuid.UUID, hold rotation.Hold) error {
	return e.db.Txn(ctx, func(ctx context.Context) error {
		now := e.now()
		released, err := e.db.ReleaseHeld(ctx, []uuid.UUID{key}, hold, now)
		if err != nil || len(released) == 0 {
			return err
		}
		err = e.db.Append(ctx, audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.RotationReleased, Subject: audit.OfUser(released[0].UserID), Rotation: key,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("for", hold)}})
		if err != nil {
			return err
		}
		return e.db.Notify(ctx, WorkChannel, "")
	})
}

// releaseRefused tells of each rotation that was named why it was not released. That nothing is held is no error where
// all were meant.
func (e *Engine) releaseRefused(ctx context.Context, keys []uuid.UUID, held []postgres.Rotation, actor audit.Actor, no error) error {
	of := audit.Event{Time: e.now(), Actor: actor, Action: audit.RotationReleased, Subject: audit.OfRotations(), Outcome: audit.Refused,
		Detail: audit.Detail{audit.Word("refusal", audit.RefusedNotHeld)}}
	if len(keys) == 0 {
		return e.db.Append(ctx, of)
	}
	var events []audit.Event
	for _, key := range keys {
		event := of
		event.Rotation = key
		r, ok, err := e.db.Rotation(ctx, key)
		switch {
		case err != nil:
			return errors.Join(no, err)
		case !ok:
			event.Detail = audit.Detail{audit.Word("refusal", audit.RefusedUnknownRotation)}
		case slices.ContainsFunc(held, func(h postgres.Rotation) bool { return h.ID == key }):
			event.Subject, event.Detail = audit.OfUser(r.UserID), audit.Detail{audit.Word("refusal", audit.RefusedBesideOthers)}
		default:
			event.Subject = audit.OfUser(r.UserID)
		}
		events = append(events, event)
	}
	return errors.Join(no, e.db.Append(ctx, events...))
}
