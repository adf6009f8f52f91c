package relay

import (
	"context"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// Freeze stops every trigger that is not in the outbox yet, on all replicas, until Thaw. Notifications are taken and
// rotations opened all the same: nothing is lost, it waits.
func (e *Engine) Freeze(ctx context.Context, actor audit.Actor) error {
	return e.setFreeze(ctx, postgres.Freeze{At: e.now(), By: actor.String()}, audit.TriggersFrozen, "frozen", actor)
}

// Thaw lets triggers go again; what waited goes at once.
func (e *Engine) Thaw(ctx context.Context, actor audit.Actor) error {
	return e.setFreeze(ctx, postgres.Freeze{}, audit.TriggersThawed, "thawed", actor)
}

func (e *Engine) setFreeze(ctx context.Context, f postgres.Freeze, action audit.Action, word string, actor audit.Actor) error {
	event := audit.Event{Time: e.now(), Actor: actor, Action: action, Subject: audit.OfTriggers(), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		changed, err := e.db.SetFreeze(ctx, f)
		if err != nil {
			return err
		}
		if !changed {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "triggers are %s already: %w", word, ErrNotPossible)
		}
		if err := e.db.Append(ctx, event); err != nil {
			return err
		}
		return e.db.Notify(ctx, WorkChannel, "")
	})
}
