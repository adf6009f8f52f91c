package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyherald/keyherald/audit"
)

// Append writes an event into the log, in the transaction of its effect.
func (db *DB) Append(ctx context.Context, event audit.Event) error {
	sealed, err := event.Seal()
	if err != nil {
		return err
	}
	if _, err := db.Exec(ctx, `INSERT INTO audit_event (id, body) VALUES ($1, $2)`, sealed.ID, sealed.Body); err != nil {
		return fmt.Errorf("appending to the audit log: %w", err)
	}
	if _, err := db.Exec(ctx, `INSERT INTO audit_detail (event_id, salt, detail) VALUES ($1, $2, $3)`, sealed.ID, sealed.Salt, sealed.Detail); err != nil {
		return fmt.Errorf("appending to the audit log: %w", err)
	}
	return nil
}

// LogLine is an event as people read it.
type LogLine struct {
	Time                                      time.Time
	Actor, Action, Subject, Rotation, Outcome string
	Detail                                    json.RawMessage
}

// Log returns the newest lines, oldest first; rotation limits it to one rotation if it is not empty.
func (db *DB) Log(ctx context.Context, rotation string, limit int) ([]LogLine, error) {
	rows, err := db.Query(ctx, `SELECT time, actor, action, subject, COALESCE(rotation, ''), outcome, detail FROM (
		SELECT * FROM audit_log WHERE $1 = '' OR rotation = $1 ORDER BY id DESC LIMIT $2) newest ORDER BY id`, rotation, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var lines []LogLine
	for rows.Next() {
		var line LogLine
		if err := rows.Scan(&line.Time, &line.Actor, &line.Action, &line.Subject, &line.Rotation, &line.Outcome, &line.Detail); err != nil {
			return nil, fmt.Errorf("reading the audit log: %w", err)
		}
		lines = append(lines, line)
	}
	return lines, rows.Err()
}
