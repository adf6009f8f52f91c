package reader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/postgres"
)

// Event is an event of the audit log. Checkpoint is the first one that covers it, and only there where one event is
// asked for.
type Event struct {
	export.Line
	Sealed     bool        `json:"sealed"`
	Redacted   bool        `json:"redacted"`
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
}

// Checkpoint names a signed checkpoint.
type Checkpoint struct {
	Origin   string    `json:"origin"`
	Size     int64     `json:"size"`
	SignedAt time.Time `json:"signed_at"`
}

// EventOf is a record of the log as it is shown.
func EventOf(record audit.Record) (Event, error) {
	line, err := export.LineOf(record)
	return Event{Line: line, Sealed: record.Index != audit.Unsealed, Redacted: record.RedactedBy != uuid.Nil}, err
}

// Named is a checkpoint by its name.
func (r *Reader) Named(c checkpoint.Signed) *Checkpoint {
	return &Checkpoint{checkpoint.Origin(r.LogName(), c.Epoch), c.Size, c.At.UTC()}
}

// Show is one event and which checkpoint covers it.
func (r *Reader) Show(ctx context.Context, by audit.Actor, record audit.Record) (Event, error) {
	event, err := EventOf(record)
	if err != nil {
		return event, err
	}
	if event.Sealed {
		c, found, err := r.Read.CheckpointCovering(ctx, record.Index)
		if err != nil {
			return event, err
		}
		if found {
			event.Checkpoint = r.Named(c)
		}
	}
	return event, r.Record(ctx, Reading{By: by, Action: audit.LogRead, Command: audit.CommandShow, Asked: []audit.Field{audit.ID("event", record.ID)}})
}

// Query chooses events, as somebody wrote it. What is empty chooses all.
type Query struct {
	Rotation, User, Actor, Outcome, Since, Until string
	Actions                                      []string
}

// QueryError says which part of a query cannot be understood, and what to write there.
type QueryError struct {
	Part    string // rotation, user, actor, action, outcome or since
	Instead error
}

func (e *QueryError) Error() string { return e.Part + ": " + e.Instead.Error() }

// Filter reads a query; asked is what the log keeps of it. An error is a QueryError.
func (q Query) Filter(now time.Time) (f postgres.EventFilter, asked []audit.Field, err error) {
	wrong := func(part string, instead error) (postgres.EventFilter, []audit.Field, error) {
		return postgres.EventFilter{}, nil, &QueryError{part, instead}
	}
	if q.Rotation != "" {
		if f.Rotation, err = uuid.Parse(q.Rotation); err != nil {
			return wrong("rotation", errors.New("write a rotation's id"))
		}
		asked = append(asked, audit.ID("rotation", f.Rotation))
	}
	if q.User != "" {
		user := id.UserID(q.User)
		if _, _, err := user.Parse(); err != nil || len(user) > id.UserIDMaxLength {
			return wrong("user", errors.New("write a user such as @alice:example.org"))
		}
		f.User, asked = q.User, append(asked, audit.ID("user", user))
	}
	if q.Actor != "" {
		if len(q.Actor) > postgres.MaxFilter {
			return wrong("actor", fmt.Errorf("write at most %d bytes", postgres.MaxFilter))
		}
		f.Actor, asked = q.Actor, append(asked, audit.ID("actor", audit.Filter(q.Actor)))
	}
	if len(q.Actions) > 0 {
		var actions []audit.Filter
		for _, action := range q.Actions {
			if !postgres.IsActionFilter(action) {
				return wrong("action", fmt.Errorf("%q is no action: write one such as rotation.done, or rotation.* for all of them", action))
			}
			actions = append(actions, audit.Filter(action))
		}
		f.Actions, asked = q.Actions, append(asked, audit.IDs("actions", actions))
	}
	if q.Outcome != "" {
		if !postgres.IsOutcomeFilter(q.Outcome) {
			return wrong("outcome", errors.New("write accepted, refused, failed or reported_by_device"))
		}
		f.Outcome, asked = q.Outcome, append(asked, audit.Word("outcome", audit.Outcome(q.Outcome)))
	}
	if f.Since, f.Until, err = period.Between(q.Since, q.Until, now); err != nil {
		return wrong("since", err)
	}
	return f, append(asked, periodFields(f.Since, f.Until)...), nil
}

// List has show print the events that a filter chooses, in the order of their ids. The event of the listing, whose asked it
// is, is not among them.
func (r *Reader) List(ctx context.Context, by audit.Actor, f postgres.EventFilter, asked []audit.Field, show func(audit.Record) error) error {
	return r.Read.Snapshot(ctx, func(in context.Context) error {
		// It fixes the moment that is read.
		if _, err := r.Read.TreeState(in); err != nil {
			return err
		}
		if err := r.Record(ctx, Reading{By: by, Action: audit.LogRead, Command: audit.CommandList, Asked: asked}); err != nil {
			return err
		}
		for record, err := range r.Read.Events(in, f) {
			if err != nil {
				return err
			}
			if err := show(record); err != nil {
				return err
			}
		}
		return nil
	})
}
