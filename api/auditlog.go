package api

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// maxReading is how many callers read the log at once: each has a connection that reads, and one that says so.
const maxReading = 4

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

func eventOf(record audit.Record) (Event, error) {
	line, err := export.LineOf(record)
	return Event{Line: line, Sealed: record.Index != audit.Unsealed, Redacted: record.RedactedBy != uuid.Nil}, err
}

// eventFilter reads what events are asked for; asked is what the log keeps of it.
func (c *call) eventFilter() (f postgres.EventFilter, limit int, filters string, asked []audit.Field, err error) {
	q := c.query()
	if text := q.text("rotation"); text != "" {
		if f.Rotation, err = uuid.Parse(text); err != nil {
			q.fail("rotation", "write a rotation's id")
		}
		asked = append(asked, audit.ID("rotation", f.Rotation))
	}
	if f.User = q.user("user_id").String(); f.User != "" {
		asked = append(asked, audit.ID("user", id.UserID(f.User)))
	}
	if f.Actor = q.text("actor"); f.Actor != "" {
		if len(f.Actor) > postgres.MaxFilter {
			q.fail("actor", fmt.Sprintf("write at most %d bytes", postgres.MaxFilter))
		}
		asked = append(asked, audit.ID("actor", audit.Filter(f.Actor)))
	}
	if text := q.text("action"); text != "" {
		var actions []audit.Filter
		for action := range strings.SplitSeq(text, ",") {
			if !postgres.IsActionFilter(action) {
				q.fail("action", "write actions such as rotation.done, or rotation.* for all of them, with commas between them")
				continue
			}
			f.Actions, actions = append(f.Actions, action), append(actions, audit.Filter(action))
		}
		asked = append(asked, audit.IDs("actions", actions))
	}
	if f.Outcome = q.text("outcome"); f.Outcome != "" {
		if !postgres.IsOutcomeFilter(f.Outcome) {
			q.fail("outcome", "write accepted, refused, failed or reported_by_device")
		}
		asked = append(asked, audit.Word("outcome", audit.Outcome(f.Outcome)))
	}
	since, until := q.text("since"), q.text("until")
	if f.Since, f.Until, err = period.Between(since, until, c.deps.Now()); err != nil {
		q.fail("since", err.Error())
	}
	asked = append(asked, reader.PeriodFields(f.Since, f.Until)...)
	limit, filters = q.page(&f.Before)
	f.Newest = limit + 1
	return f, limit, filters, asked, q.end()
}

// listEvents is a page of the log, newest first. It leaves its own event before it answers, which is not among what it
// shows.
func listEvents(c *call) (answer, error) {
	f, limit, filters, asked, err := c.eventFilter()
	if err != nil {
		return answer{}, err
	}
	var page Page[Event]
	err = c.readLog(func() error {
		return c.deps.DB.Snapshot(c.ctx, func(in context.Context) error {
			// It fixes the moment that is read.
			if _, err := c.deps.DB.TreeState(in); err != nil {
				return err
			}
			if err := c.recordRead(reader.Reading{Command: audit.CommandList, Asked: asked}); err != nil {
				return err
			}
			var events []Event
			for record, err := range c.deps.DB.Events(in, f) {
				if err != nil {
					return err
				}
				event, err := eventOf(record)
				if err != nil {
					return err
				}
				events = append(events, event)
			}
			reverse(events)
			page, err = pageOf(events, limit, filters, func(e Event) Event { return e }, func(e Event) any { return e.ID })
			return err
		})
	})
	return ok(page), err
}

func reverse[T any](list []T) {
	for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
		list[i], list[j] = list[j], list[i]
	}
}

// readLog bounds how many read at once.
func (c *call) readLog(do func() error) error { return c.oneOf(c.reading, do) }

func (c *call) oneOf(places chan struct{}, do func() error) error {
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
		return do()
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-time.After(5 * time.Second):
		return unavailable("too many read the log at this moment")
	}
}

// recordRead appends that the caller reads the log, before anything of it is put out. c.ctx is of no transaction.
func (c *call) recordRead(reading reader.Reading) error {
	reading.By, reading.Action = c.caller.actor, audit.LogRead
	return c.deps.Reader.Record(c.ctx, reading)
}

// event reads the event in the path. That it was read is for the caller to record.
func (c *call) event() (audit.Record, error) {
	key, err := c.key("event_id", "event")
	if err != nil {
		return audit.Record{}, err
	}
	record, there, err := c.deps.DB.Event(c.ctx, key)
	if err == nil && !there {
		err = &Problem{Status: statusOf[refusal.NotFound], Code: CodeNotFound, Detail: "there is no event " + key.String()}
	}
	return record, err
}

func getEvent(c *call) (answer, error) {
	record, err := c.event()
	if err != nil {
		return answer{}, err
	}
	event, err := eventOf(record)
	if err != nil {
		return answer{}, err
	}
	if event.Sealed {
		covering, found, err := c.deps.DB.CheckpointCovering(c.ctx, record.Index)
		if err != nil {
			return answer{}, err
		}
		if found {
			event.Checkpoint = &Checkpoint{checkpoint.Origin(c.deps.Reader.LogName(), covering.Epoch), covering.Size, covering.At.UTC()}
		}
	}
	return ok(event), c.recordRead(reader.Reading{Command: audit.CommandShow, Asked: []audit.Field{audit.ID("event", record.ID)}})
}
