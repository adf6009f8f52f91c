package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"
)

// NotificationKey names a notification for good.
type NotificationKey struct{ Source, ID string }

// Notification is a row of its table.
type Notification struct {
	NotificationKey
	KeyID, Problem string
	BodySHA256     [32]byte
	RotationID     uuid.NullUUID
}

// LockArrivals makes the transaction the only one, on all replicas, that takes notifications of these keys and changes
// which rotations of these users follow which. All the locks are taken in one order, so that groups never wait in a circle.
func (db *DB) LockArrivals(ctx context.Context, keys []NotificationKey, users []id.UserID) error {
	sources, ids := split(keys)
	_, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock(key) FROM (
		SELECT hashtextextended(id, hashtextextended(source, 1)) FROM unnest($1::text[], $2::text[]) AS notification (source, id)
		UNION SELECT hashtextextended(name, 0) FROM unnest($3::text[]) AS user_ (name) ORDER BY 1) AS keys (key)`,
		pq.Array(sources), pq.Array(ids), pq.Array(users))
	if err != nil {
		return fmt.Errorf("ordering what arrived: %w", err)
	}
	return nil
}

// Notifications returns those of the notifications that are kept.
func (db *DB) Notifications(ctx context.Context, keys []NotificationKey) ([]Notification, error) {
	sources, ids := split(keys)
	rows, err := db.Query(ctx, `SELECT source, id, key_id, problem, body_sha256, rotation_id FROM notification
		WHERE (source, id) IN (SELECT * FROM unnest($1::text[], $2::text[]))`, pq.Array(sources), pq.Array(ids))
	if err != nil {
		return nil, fmt.Errorf("reading notifications: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var kept []Notification
	for rows.Next() {
		var n Notification
		var sum []byte
		if err := rows.Scan(&n.Source, &n.ID, &n.KeyID, &n.Problem, &sum, &n.RotationID); err != nil {
			return nil, fmt.Errorf("reading notifications: %w", err)
		}
		copy(n.BodySHA256[:], sum)
		kept = append(kept, n)
	}
	return kept, rows.Err()
}

func split(keys []NotificationKey) (sources, ids []string) {
	for _, key := range keys {
		sources, ids = append(sources, key.Source), append(ids, key.ID)
	}
	return sources, ids
}

// InsertNotifications keeps notifications that are not kept yet.
func (db *DB) InsertNotifications(ctx context.Context, notifications []Notification, now time.Time) error {
	if len(notifications) == 0 {
		return nil
	}
	n := len(notifications)
	sources, ids, keyIDs, problems := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	sums, rotations := make([][]byte, n), make([]uuid.NullUUID, n)
	for i, kept := range notifications {
		sources[i], ids[i], keyIDs[i], problems[i] = kept.Source, kept.ID, kept.KeyID, kept.Problem
		sums[i], rotations[i] = kept.BodySHA256[:], kept.RotationID
	}
	_, err := db.Exec(ctx, `INSERT INTO notification (source, id, body_sha256, key_id, received_at, rotation_id, problem)
		SELECT source, id, body_sha256, key_id, $7, rotation_id, problem FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::uuid[], $6::text[])
			AS fresh (source, id, body_sha256, key_id, rotation_id, problem)`,
		pq.Array(sources), pq.Array(ids), pq.Array(sums), pq.Array(keyIDs), pq.Array(rotations), pq.Array(problems), now)
	if err != nil {
		return fmt.Errorf("keeping notifications: %w", err)
	}
	return nil
}

// Refused reports whether the database refused what a statement was about, and not to work at all: of a group of rows,
// the others may still be taken.
func Refused(err error) bool {
	var pqErr *pq.Error
	if !errors.As(err, &pqErr) {
		return false
	}
	switch pqErr.Code.Class() {
	case "22", // data exception
		"23", // integrity constraint violation
		"40", // rolled back to end a deadlock
		"54", // over a limit, such as an index entry's size
		"P0": // raised by a trigger
		return true
	}
	return false
}
