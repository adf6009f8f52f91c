package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
)

// Redact deletes the detail of an event, as the owner, and appends the event that says so, in one transaction. A refusal
// is an *audit.RedactionRefused, and an event too. It returns the id of the event that it appended.
func (db *DB) Redact(ctx context.Context, target uuid.UUID, reason string, actor audit.Actor, now time.Time) (redaction uuid.UUID, err error) {
	event := audit.Event{Time: now, Actor: actor, Action: audit.DetailRedacted, Subject: audit.OfEvent(target), Outcome: audit.Accepted}
	why, err := audit.NewReason(reason)
	if err != nil {
		event.Outcome, event.Detail = audit.Refused, audit.Detail{audit.Word("refusal", audit.WhyNoReason(err))}
		return uuid.Nil, errors.Join(err, db.Append(ctx, event))
	}
	event.Detail = audit.Detail{audit.Text("reason", why)}
	var refused *audit.RedactionRefused
	err = db.Txn(ctx, func(ctx context.Context) error {
		// Whoever redacts the same event waits here, and then sees that it is done.
		if _, err := db.Exec(ctx, `SELECT 1 FROM audit_event WHERE id = $1 FOR UPDATE`, target); err != nil {
			return fmt.Errorf("locking the event: %w", err)
		}
		record, _, err := db.Event(ctx, target)
		if err != nil {
			return err
		}
		if errors.As(audit.CheckRedaction(record), &refused) {
			event.Outcome, event.Detail = audit.Refused, append(event.Detail, audit.Word("refusal", refused.Reason))
		}
		ids, err := db.AppendAll(ctx, []audit.Event{event})
		if err != nil {
			return err
		}
		redaction = ids[0]
		if refused != nil {
			return nil
		}
		// The trigger lets a detail go where its redaction stands.
		if _, err := db.Exec(ctx, `INSERT INTO audit_redaction (event_id, redaction_id) VALUES ($1, $2)`, target, redaction); err != nil {
			return fmt.Errorf("recording the redaction: %w", err)
		}
		if _, err := db.Exec(ctx, `DELETE FROM audit_detail WHERE event_id = $1`, target); err != nil {
			return fmt.Errorf("deleting the detail: %w", err)
		}
		return nil
	})
	if err == nil && refused != nil {
		err = refused
	}
	if err != nil {
		return redaction, fmt.Errorf("redacting the detail of %s: %w", target, err)
	}
	return redaction, nil
}
