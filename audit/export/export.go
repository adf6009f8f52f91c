// Package export writes the audit log for others: JSON Lines, CSV for spreadsheets, OCSF for a SIEM, and the bundle that
// keyherald-verify reads. It is pure but for the writer it is given, and holds one event at a time.
package export

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
)

// Rows are the events to write, in the order to write them in; an error ends them.
type Rows = iter.Seq2[audit.Record, error]

// Between leaves the events whose own time is at or after since and before until; a zero time is no bound.
func Between(rows Rows, since, until time.Time) Rows {
	if since.IsZero() && until.IsZero() {
		return rows
	}
	return func(yield func(audit.Record, error) bool) {
		for record, err := range rows {
			if err == nil {
				var fields audit.Fields
				if fields, err = audit.ParseBody(record.Body); err != nil {
					err = unreadable(record, err)
				} else if fields.Time.Before(since) || (!until.IsZero() && !fields.Time.Before(until)) {
					continue
				}
			}
			if !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// Encoder writes one event.
type Encoder func(to io.Writer, record audit.Record) error

// Each writes all rows with an encoder, and returns how many.
func Each(to io.Writer, rows Rows, encode Encoder) (n int64, err error) {
	for record, err := range rows {
		if err == nil {
			err = encode(to, record)
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Line is an event as JSON Lines has it. Index and LeafHash are left out while the event is not sealed, Detail where it
// was redacted.
type Line struct {
	Index      *int64          `json:"index,omitempty"`
	ID         uuid.UUID       `json:"id"`
	Time       string          `json:"time"` // RFC 3339 with milliseconds, UTC
	Actor      string          `json:"actor"`
	Action     audit.Action    `json:"action"`
	Subject    string          `json:"subject"`
	Rotation   string          `json:"rotation,omitempty"`
	Outcome    audit.Outcome   `json:"outcome"`
	Detail     json.RawMessage `json:"detail,omitempty"`
	RedactedBy *uuid.UUID      `json:"redacted_by,omitempty"`
	LeafHash   string          `json:"leaf_hash,omitempty"` // base64
}

// timeLayout is RFC 3339 with the milliseconds that an event has.
const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// LineOf reads an event. It fails where the event's bytes or its detail are not what keyherald writes: then somebody
// changed them.
func LineOf(record audit.Record) (Line, error) {
	line, _, err := open(record)
	return line, err
}

func open(record audit.Record) (Line, audit.Fields, error) {
	fields, err := audit.ParseBody(record.Body)
	if err == nil && record.Detail != nil && !json.Valid(record.Detail) {
		err = errors.New("its detail is not JSON")
	}
	if err != nil {
		return Line{}, fields, unreadable(record, err)
	}
	line := Line{ID: record.ID, Time: fields.Time.Format(timeLayout), Actor: fields.Actor, Action: fields.Action, Subject: fields.Subject,
		Rotation: fields.Rotation, Outcome: fields.Outcome, Detail: record.Detail}
	if record.Index != audit.Unsealed {
		line.Index, line.LeafHash = &record.Index, base64.StdEncoding.EncodeToString(record.LeafHash)
	}
	if record.RedactedBy != uuid.Nil {
		line.RedactedBy = &record.RedactedBy
	}
	return line, fields, nil
}

// ErrUnreadable is that of an event which somebody changed.
var ErrUnreadable = errors.New("is not as keyherald wrote it (see `keyherald audit verify`)")

func unreadable(record audit.Record, err error) error {
	place := "which is not sealed"
	if record.Index != audit.Unsealed {
		place = fmt.Sprintf("leaf %d", record.Index)
	}
	return fmt.Errorf("event %s, %s, %w: %w", record.ID, place, ErrUnreadable, err)
}

// JSONLine is an Encoder that writes a Line.
func JSONLine(to io.Writer, record audit.Record) error {
	line, err := LineOf(record)
	if err != nil {
		return err
	}
	return writeJSON(to, line)
}

// writeJSON writes a value and a line feed; <, > and & are left as they are.
func writeJSON(to io.Writer, value any) error {
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("writing an event: %w", err)
	}
	return nil
}
