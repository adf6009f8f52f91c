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
	"github.com/keyherald/keyherald/rotation"
)

var _ intake.Recorder = (*Engine)(nil)

// Accept keeps a notification and opens its rotation in one transaction with their audit events; when it returns
// without error, all of it is durable. The same notification again changes nothing, and nothing is kept of a read of a
// version that is not the current one any more.
func (e *Engine) Accept(ctx context.Context, n intake.Notification) (intake.Receipt, error) {
	return e.recordOne(ctx, arrival{Notification: n})
}

// Unusable keeps a notification that is ours and cannot be acted on, with what is wrong with it.
func (e *Engine) Unusable(ctx context.Context, n intake.Notification, problem intake.Problem) (intake.Receipt, error) {
	return e.recordOne(ctx, arrival{Notification: n, problem: problem})
}

// Handshake audits that a sender's request about its subscription was authentic and is being answered.
func (e *Engine) Handshake(ctx context.Context, source audit.SourceName, key audit.CredentialID, kind audit.Handshake) error {
	return e.db.Append(ctx, audit.Event{Time: e.now(), Actor: audit.BySource(source), Action: audit.HandshakeAccepted, Subject: audit.OfSource(source), Outcome: audit.Accepted,
		Detail: audit.Detail{audit.Word("kind", kind), audit.ID("key", key)}})
}

// Refused audits refusals, which come in counts, so that they cannot flood the log. No source is named where the one
// that was called does not exist.
func (e *Engine) Refused(ctx context.Context, source audit.SourceName, why audit.Refusal, minute time.Time, count int) error {
	event := audit.Event{Time: e.now(), Actor: audit.ByAnybody(), Action: audit.NotificationRefused, Subject: audit.OfIntake(), Outcome: audit.Refused,
		Detail: audit.Detail{audit.Word("refusal", why), audit.Time("minute", minute), audit.Number("count", count)}}
	if source != "" {
		event.Actor, event.Subject = audit.BySource(source), audit.OfSource(source)
	}
	return e.db.Append(ctx, event)
}

// Ignored audits what changes nothing, in counts as well.
func (e *Engine) Ignored(ctx context.Context, source audit.SourceName, how audit.Ignored, minute time.Time, count int) error {
	return e.db.Append(ctx, audit.Event{Time: e.now(), Actor: audit.BySource(source), Action: audit.NotificationIgnored, Subject: audit.OfSource(source),
		Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("kind", how), audit.Time("minute", minute), audit.Number("count", count)}})
}

// arrival is a notification as it came; one with a problem is kept and opens nothing.
type arrival struct {
	intake.Notification
	problem intake.Problem
}

func (a arrival) key() postgres.NotificationKey {
	return postgres.NotificationKey{Source: a.Source, ID: a.ID}
}

func (a arrival) source() audit.SourceName { return audit.SourceName(a.Source) }

func (a arrival) usable() bool { return a.problem == intake.Problem{} }

func (a arrival) change() Change {
	return Change{Source: a.Source, UserID: id.UserID(a.User), Secret: a.Secret, Actor: audit.BySource(a.source()), Read: a.Read,
		KMS: protocol.KMSRef{Name: a.KMS, Path: a.Path, Version: a.Version}}
}

// event tells what became of a fresh arrival.
func (a arrival) event(now time.Time, opened uuid.NullUUID) audit.Event {
	event := audit.Event{Time: now, Actor: audit.BySource(a.source()), Action: audit.NotificationAccepted, Subject: audit.OfUser(id.UserID(a.User)), Rotation: opened.UUID,
		Outcome: audit.Accepted, Detail: append(a.named(), audit.ID("kms", audit.KMSName(a.KMS)), audit.ID("path", audit.KMSPath(a.Path)), audit.ID("version", audit.KMSVersion(a.Version)))}
	if a.Read && a.usable() {
		event.Action, event.Detail = audit.RotationAsked, append(a.named(), audit.ID("kms", audit.KMSName(a.KMS)), audit.ID("path", audit.KMSPath(a.Path)), audit.Word("reason", rotation.ReasonDisclosed))
		if a.Version != "" {
			event.Detail = append(event.Detail, audit.ID("read_version", audit.KMSVersion(a.Version)))
		}
		if a.Reader != "" {
			event.Detail = append(event.Detail, audit.ID("reader", audit.ReaderName(a.Reader)))
		}
	}
	if a.usable() {
		return event
	}
	event.Action, event.Outcome, event.Detail = audit.NotificationUnusable, audit.Refused, append(event.Detail, audit.Word("refusal", a.problem.Why))
	if a.problem.Why == audit.RefusedNoUserID || a.User == "" {
		event.Subject = audit.OfSource(a.source())
	}
	return event
}

// conflict tells that the arrival has the id of another notification.
func (a arrival) conflict(now time.Time) audit.Event {
	return audit.Event{Time: now, Actor: audit.BySource(a.source()), Action: audit.NotificationRefused, Subject: audit.OfSource(a.source()), Outcome: audit.Refused,
		Detail: append(a.named(), audit.Word("refusal", audit.RefusedConflict))}
}

func (a arrival) named() audit.Detail {
	return audit.Detail{audit.ID("id", audit.NotificationID(a.ID)), audit.ID("key", audit.CredentialID(a.KeyID))}
}

func (e *Engine) recordOne(ctx context.Context, a arrival) (intake.Receipt, error) {
	receipts, err := e.record(ctx, []arrival{a})
	if err != nil {
		return intake.Receipt{}, err
	}
	return receipts[0], nil
}

// record keeps a group of notifications, opens their rotations and writes the audit events in one transaction, as if
// they had come one after the other. There is a receipt for each, or an error and nothing is kept.
func (e *Engine) record(ctx context.Context, group []arrival) ([]intake.Receipt, error) {
	var receipts []intake.Receipt
	err := e.db.Txn(ctx, func(ctx context.Context) error {
		now := e.now()
		known, err := e.lockAndRead(ctx, group)
		if err != nil {
			return err
		}
		receipts = make([]intake.Receipt, len(group))
		var fresh []arrival
		var changes []Change
		var conflicts []audit.Event
		for i, a := range group {
			if before, ok := known[a.key()]; !ok {
				receipts[i].Answer = intake.Fresh
			} else if before.BodySHA256 == a.BodySHA256 {
				receipts[i].Answer = intake.Duplicate
			} else {
				receipts[i].Answer = intake.Conflict
				conflicts = append(conflicts, a.conflict(now))
			}
			if receipts[i].Answer != intake.Fresh {
				continue
			}
			known[a.key()] = postgres.Notification{NotificationKey: a.key(), KeyID: a.KeyID, Problem: a.problem.Text, BodySHA256: a.BodySHA256}
			fresh = append(fresh, a)
			if a.usable() {
				changes = append(changes, a.change())
			}
		}
		rotations, events, err := e.open(ctx, changes, now)
		if err != nil {
			return err
		}
		var kept []postgres.Notification
		outdated := map[postgres.NotificationKey]bool{}
		for _, a := range fresh {
			n := known[a.key()]
			if a.usable() {
				n.RotationID = uuid.NullUUID{UUID: rotations[0], Valid: true}
				rotations = rotations[1:]
				if outdated[a.key()] = n.RotationID.UUID == uuid.Nil; outdated[a.key()] {
					continue
				}
			}
			known[a.key()] = n
			kept, events = append(kept, n), append(events, a.event(now, n.RotationID))
		}
		for i, a := range group {
			if outdated[a.key()] {
				receipts[i].Answer = intake.Outdated
			} else if opened := known[a.key()].RotationID; opened.Valid {
				receipts[i].RotationID = opened.UUID.String()
			}
		}
		if err := e.db.InsertNotifications(ctx, kept, now); err != nil {
			return err
		}
		return e.db.Append(ctx, append(events, conflicts...)...)
	})
	return receipts, err
}

// lockAndRead takes the locks of a group and returns what is kept of its notifications already.
func (e *Engine) lockAndRead(ctx context.Context, group []arrival) (map[postgres.NotificationKey]postgres.Notification, error) {
	keys := make([]postgres.NotificationKey, len(group))
	var users []id.UserID
	for i, a := range group {
		keys[i] = a.key()
		if a.usable() {
			users = append(users, id.UserID(a.User))
		}
	}
	if err := e.db.LockArrivals(ctx, keys, users); err != nil {
		return nil, err
	}
	kept, err := e.db.Notifications(ctx, keys)
	if err != nil {
		return nil, err
	}
	known := make(map[postgres.NotificationKey]postgres.Notification, len(group))
	for _, n := range kept {
		known[n.NotificationKey] = n
	}
	return known, nil
}
