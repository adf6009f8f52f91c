package api

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// maxReading is how many callers read the log at once: each has a connection that reads, and one that says so.
const maxReading = 4

// eventFilter reads what events are asked for; asked is what the log keeps of it.
func (c *call) eventFilter() (f postgres.EventFilter, limit int, filters string, asked []audit.Field, err error) {
	q := c.query()
	wanted := reader.Query{Rotation: q.text("rotation"), User: q.text("user_id"), Actor: q.text("actor"), Outcome: q.text("outcome"), Since: q.text("since"), Until: q.text("until")}
	if text := q.text("action"); text != "" {
		wanted.Actions = strings.Split(text, ",")
	}
	f, asked, err = wanted.Filter(c.deps.Now())
	if wrong := new(reader.QueryError); errors.As(err, &wrong) {
		part := wrong.Part
		if part == "user" {
			part = "user_id"
		}
		q.fail(part, wrong.Instead.Error())
	}
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
	var events []reader.Event
	err = c.readLog(func() error {
		return c.deps.Reader.List(c.ctx, c.caller.actor, f, asked, func(record audit.Record) error {
			event, err := reader.EventOf(record)
			events = append(events, event)
			return err
		})
	})
	if err != nil {
		return answer{}, err
	}
	slices.Reverse(events)
	page, err := pageOf(events, limit, filters, func(e reader.Event) reader.Event { return e }, func(e reader.Event) any { return e.ID })
	return ok(page), err
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
	event, err := c.deps.Reader.Show(c.ctx, c.caller.actor, record)
	return ok(event), err
}
