package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"
)

// ChangedUsers counts the users whose rotations were let through since then, without this one, and says whether this
// one is among those let through or released. Held rotations do not count, so the count stays near the limit.
func (db *DB) ChangedUsers(ctx context.Context, since time.Time, user id.UserID, except uuid.UUID) (others int, through bool, err error) {
	err = db.QueryRow(ctx, `SELECT
		(SELECT COUNT(DISTINCT user_id) FROM rotation WHERE created_at > $1 AND NOT held AND released_at IS NULL AND user_id <> $2),
		EXISTS (SELECT 1 FROM rotation WHERE created_at > $1 AND NOT held AND user_id = $2 AND id <> $3)`, since, user, except).Scan(&others, &through)
	if err != nil {
		return 0, false, fmt.Errorf("counting the users whose keys changed: %w", err)
	}
	return others, through, nil
}

// EnrolledUsers counts the users with an enrolled device.
func (db *DB) EnrolledUsers(ctx context.Context) (n int, err error) {
	if err = db.QueryRow(ctx, `SELECT COUNT(DISTINCT user_id) FROM device WHERE state = 'enrolled'`).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the enrolled users: %w", err)
	}
	return n, nil
}

// HoldRotation holds a rotation until it is released.
func (db *DB) HoldRotation(ctx context.Context, key uuid.UUID, nextAction string) error {
	if _, err := db.Exec(ctx, `UPDATE rotation SET held = true, next_action = $2 WHERE id = $1`, key, nextAction); err != nil {
		return fmt.Errorf("holding rotation %s: %w", key, err)
	}
	return nil
}

// ReleaseRotations releases these held rotations that have not ended, or all for none named, and returns them.
func (db *DB) ReleaseRotations(ctx context.Context, keys []uuid.UUID, at time.Time) ([]Rotation, error) {
	held, err := db.rotations(ctx, `r.held AND r.ended_at IS NULL AND (COALESCE(cardinality($1::uuid[]), 0) = 0 OR r.id = ANY($1)) ORDER BY r.id FOR UPDATE`, pq.Array(keys))
	if err != nil {
		return nil, err
	}
	released := make([]uuid.UUID, len(held))
	for i, r := range held {
		released[i] = r.ID
	}
	_, err = db.Exec(ctx, `UPDATE rotation SET held = false, released_at = $2, next_action = '', updated_at = $2 WHERE id = ANY($1)`, pq.Array(released), at)
	if err != nil {
		return nil, fmt.Errorf("releasing rotations: %w", err)
	}
	return held, nil
}
