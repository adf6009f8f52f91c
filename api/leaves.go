package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// Leaf is a leaf of the log's tree with all that there is of its event, so that whoever gets it can hash it himself.
type Leaf struct {
	Index    int64  `json:"index"`
	LeafHash []byte `json:"leaf_hash"` // base64
	// ID is the event's; Event are its bytes, nil where somebody deleted it.
	ID    uuid.UUID `json:"id"`
	Event *string   `json:"event,omitempty"`
	// Salt and Detail are what the event commits to; nil where it was redacted.
	Salt       []byte     `json:"salt,omitempty"` // base64
	Detail     *string    `json:"detail,omitempty"`
	RedactedBy *uuid.UUID `json:"redacted_by,omitempty"`
}

func leafOf(record audit.Record) Leaf {
	l := Leaf{Index: record.Index, LeafHash: record.LeafHash, ID: record.ID, Salt: record.Salt}
	if record.Body != nil {
		event := string(record.Body)
		l.Event = &event
	}
	if record.Detail != nil {
		detail := string(record.Detail)
		l.Detail = &detail
	}
	if record.RedactedBy != uuid.Nil {
		l.RedactedBy = &record.RedactedBy
	}
	return l
}

// Record is the leaf as the server read it.
func (l Leaf) Record() audit.Record {
	record := audit.Record{ID: l.ID, Index: l.Index, LeafHash: l.LeafHash, Salt: l.Salt}
	if l.Event != nil {
		record.Body = []byte(*l.Event)
	}
	if l.Detail != nil {
		record.Detail = []byte(*l.Detail)
	}
	if l.RedactedBy != nil {
		record.RedactedBy = *l.RedactedBy
	}
	return record
}

// watchLeaves streams sealed events in the order of their leaves (event `leaf`, whose id is the leaf's index). That the
// stream is opened is the reading: an event for each look would make a leaf, which would be looked at.
func watchLeaves(c *call) *Problem {
	q := c.query()
	w := leafWatch{next: q.number("first"), end: -1}
	once := q.flag("once")
	if last := c.echo.Request().Header.Get("Last-Event-ID"); last != "" {
		seen, err := strconv.ParseInt(last, 10, 64)
		if err != nil || seen < 0 {
			return malformed("Last-Event-ID is none of this stream's")
		}
		w.next = seen + 1
	}
	if err := q.end(); err != nil {
		return c.problemOf(err)
	}
	state, err := c.deps.DB.TreeState(c.ctx)
	if err != nil {
		return c.problemOf(err)
	}
	if w.next > state.Size {
		return c.problemOf(refusal.New(refusal.Conflict, "", "there is no leaf %d yet, and none before it: the log has %d. If it had more, it went back", w.next, state.Size))
	}
	if once {
		w.end = state.Size
	}
	if err := c.recordRead(reader.Reading{Command: audit.CommandFollow, Asked: []audit.Field{audit.Number("from", w.next)}}); err != nil {
		return c.problemOf(err)
	}
	return c.follow(func(to streamed) (bool, error) { return w.look(c.ctx, c.deps.DB, to) })
}

// leavesAtOnce is how many leaves are in memory for a stream.
const leavesAtOnce = 500

// leafWatch is what a client has been sent of the log.
type leafWatch struct {
	// next is the leaf to send next, and hash that of the one before, once there was one.
	next int64
	hash []byte
	// end is the leaf to end before; -1 for none.
	end int64
}

var errWentBack = errors.New("the log is not the one that was streamed until now: it went back")

func (w *leafWatch) look(ctx context.Context, db *postgres.DB, to streamed) (ended bool, err error) {
	for w.end < 0 || w.next < w.end {
		first := w.next
		if w.hash != nil {
			first-- // The last one again: that it is still there tells that it is the same log.
		}
		page, err := db.LeavesBetween(ctx, first, w.next+leavesAtOnce)
		if err != nil {
			return false, err
		}
		if w.hash != nil {
			if len(page) == 0 || page[0].Index != first || !bytes.Equal(page[0].LeafHash, w.hash) {
				return false, errWentBack
			}
			page = page[1:]
		}
		for _, record := range page {
			if w.end >= 0 && record.Index >= w.end {
				return true, nil
			}
			if err := to.event("leaf", strconv.FormatInt(record.Index, 10), leafOf(record)); err != nil {
				return false, fmt.Errorf("leaf %d: %w", record.Index, err)
			}
			w.next, w.hash = record.Index+1, record.LeafHash
		}
		if len(page) < leavesAtOnce {
			return w.end >= 0 && w.next >= w.end, nil
		}
	}
	return true, nil
}
