package relay

import (
	"context"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

var _ intake.Recorder = (*Engine)(nil)

// Accept keeps a notification and opens its rotation in one transaction with their audit event; when it returns
// without error, all of it is durable. The same notification again changes nothing.
func (e *Engine) Accept(ctx context.Context, n intake.Notification) (intake.Receipt, error) {
	return e.record(ctx, n, "", func(ctx context.Context) (uuid.UUID, error) {
		r, err := e.open(ctx, Change{Source: n.Source, UserID: id.UserID(n.User), Secret: n.Secret,
			KMS: protocol.KMSRef{Name: n.KMS, Path: n.Path, Version: n.Version}}, actorOfSource(n))
		return r.ID, err
	})
}

// Unusable keeps a notification that is ours and cannot be acted on, with what is wrong with it.
func (e *Engine) Unusable(ctx context.Context, n intake.Notification, problem string) (intake.Receipt, error) {
	return e.record(ctx, n, problem, nil)
}

func (e *Engine) record(ctx context.Context, n intake.Notification, problem string, open func(context.Context) (uuid.UUID, error)) (intake.Receipt, error) {
	var receipt intake.Receipt
	err := e.db.Txn(ctx, func(ctx context.Context) error {
		now := e.now()
		kept, inserted, err := e.db.PutNotification(ctx, postgres.Notification{Source: n.Source, ID: n.ID, KeyID: n.KeyID, Problem: problem, BodySHA256: n.BodySHA256}, now)
		if err != nil {
			return err
		}
		if !inserted {
			receipt.Answer = intake.Duplicate
			if kept.BodySHA256 != n.BodySHA256 {
				receipt.Answer = intake.Conflict
			}
			if kept.RotationID.Valid {
				receipt.RotationID = kept.RotationID.UUID.String()
			}
			return nil
		}
		receipt.Answer = intake.Fresh
		event := audit.Event{Time: now, Actor: actorOfSource(n), Action: audit.NotificationUnusable, Subject: n.User, Outcome: audit.Refused,
			Detail: audit.Detail{audit.ID("id", n.ID), audit.ID("key", n.KeyID), audit.ID("path", n.Path), audit.ID("version", n.Version)}}
		if open == nil {
			return e.db.Append(ctx, event)
		}
		rotationID, err := open(ctx)
		if err != nil {
			return err
		}
		receipt.RotationID = rotationID.String()
		if err := e.db.SetNotificationRotation(ctx, n.Source, n.ID, rotationID); err != nil {
			return err
		}
		event.Action, event.Outcome, event.Rotation = audit.NotificationAccepted, audit.Accepted, rotationID
		return e.db.Append(ctx, event)
	})
	return receipt, err
}

// Refused audits refusals of the unauthenticated, which come in counts, so that they cannot flood the log.
func (e *Engine) Refused(ctx context.Context, source, reason string, minute time.Time, count int) error {
	return e.db.Txn(ctx, func(ctx context.Context) error {
		return e.db.Append(ctx, audit.Event{Time: e.now(), Actor: "source:" + source, Action: audit.NotificationRefused, Subject: source, Outcome: audit.Refused,
			Detail: audit.Detail{audit.Word("reason", reason), audit.Number("minute", minute.UnixMilli()), audit.Number("count", count)}})
	})
}

func actorOfSource(n intake.Notification) string { return "source:" + n.Source }
