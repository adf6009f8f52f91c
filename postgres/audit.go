package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/keyherald/keyherald/audit"
)

// Most transactions append one event, for which arrays cost more than they are worth. It reads no table, so no plan of it
// grows old.
const appendEvent = `WITH event AS (INSERT INTO audit_event (id, body) VALUES ($1, $2))
	INSERT INTO audit_detail (event_id, salt, detail) VALUES ($1, $3, $4)`

const appendEvents = `WITH fresh AS (SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[]) AS fresh (id, body, salt, detail)),
		event AS (INSERT INTO audit_event (id, body) SELECT id, body FROM fresh)
	INSERT INTO audit_detail (event_id, salt, detail) SELECT id, salt, detail FROM fresh`

// Append writes events into the log, in the transaction of their effects.
func (db *DB) Append(ctx context.Context, events ...audit.Event) error {
	_, err := db.AppendAll(ctx, events)
	return err
}

// AppendAll is Append, and returns the events' ids.
func (db *DB) AppendAll(ctx context.Context, events []audit.Event) ([]uuid.UUID, error) {
	if len(events) == 0 {
		return nil, nil
	}
	ids, bodies, salts, details := make([]uuid.UUID, len(events)), make([][]byte, len(events)), make([][]byte, len(events)), make([][]byte, len(events))
	for i, event := range events {
		sealed, err := event.Seal()
		if err != nil {
			return nil, err
		}
		ids[i], bodies[i], salts[i], details[i] = sealed.ID, sealed.Body, sealed.Salt, sealed.Detail
	}
	var err error
	if len(events) == 1 {
		_, err = db.appending.exec(ctx, db.Database, ids[0], bodies[0], salts[0], details[0])
	} else {
		_, err = db.Exec(ctx, appendEvents, pq.Array(ids), pq.Array(bodies), pq.Array(salts), pq.Array(details))
	}
	if err != nil {
		return nil, fmt.Errorf("appending to the audit log: %w", err)
	}
	return ids, nil
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
