package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/rotation"
)

// The sources of rotations that the company's will asks for: by its policy, and by a campaign. Each has a bound of its own, so
// they neither count for the storm limit nor are held by it.
const (
	SourcePolicy   = "policy"
	SourceCampaign = "campaign"
)

// ChangedUsers counts the users whose rotations were let through since then, and says which of those named are among
// them or were released. Held rotations do not count, so the count stays near the limit.
func (db *DB) ChangedUsers(ctx context.Context, since time.Time, users []id.UserID) (changed int, through map[id.UserID]bool, err error) {
	rows, err := db.Query(ctx, `SELECT DISTINCT user_id FROM rotation WHERE created_at > $1 AND held_for <> 'storm' AND user_id = ANY($2)`, since, pq.Array(users))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the users whose keys changed: %w", err)
	}
	defer func() { _ = rows.Close() }()
	through = map[id.UserID]bool{}
	for rows.Next() {
		var user id.UserID
		if err := rows.Scan(&user); err != nil {
			return 0, nil, fmt.Errorf("reading the users whose keys changed: %w", err)
		}
		through[user] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, nil, fmt.Errorf("reading the users whose keys changed: %w", err)
	}
	err = db.QueryRow(ctx, `SELECT COUNT(DISTINCT user_id) FROM rotation WHERE created_at > $1 AND held_for <> 'storm' AND released_at IS NULL AND source NOT IN ($2, $3)`,
		since, SourcePolicy, SourceCampaign).Scan(&changed)
	if err != nil {
		return 0, nil, fmt.Errorf("counting the users whose keys changed: %w", err)
	}
	return changed, through, nil
}

// EnrolledUsers counts the users with an enrolled device.
func (db *DB) EnrolledUsers(ctx context.Context) (n int, err error) {
	if err = db.QueryRow(ctx, `SELECT COUNT(DISTINCT user_id) FROM device WHERE state = 'enrolled'`).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the enrolled users: %w", err)
	}
	return n, nil
}

// ReleaseRotations releases these held rotations that have not ended, or all for none named, and returns them.
func (db *DB) ReleaseRotations(ctx context.Context, keys []uuid.UUID, at time.Time) ([]Rotation, error) {
	held, err := db.rotations(ctx, `r.held AND r.ended_at IS NULL AND (COALESCE(cardinality($1::uuid[]), 0) = 0 OR r.id = ANY($1)) ORDER BY r.id FOR UPDATE`, pq.Array(keys))
	if err != nil {
		return nil, err
	}
	_, err = db.Exec(ctx, `UPDATE rotation SET held = false, held_for = '', released_at = $2, next_action = '', updated_at = $2 WHERE id = ANY($1)`, pq.Array(keysOf(held)), at)
	if err != nil {
		return nil, fmt.Errorf("releasing rotations: %w", err)
	}
	return held, nil
}

// HoldUntriggered holds the rotations that no device was triggered for yet, but those that are urgent or were released
// before, and returns them.
func (db *DB) HoldUntriggered(ctx context.Context, hold rotation.Hold, nextAction string, at time.Time) ([]Rotation, error) {
	free, err := db.rotations(ctx, `r.state IN ('received', 'waiting_for_enrollment') AND r.ended_at IS NULL AND NOT r.held AND r.released_at IS NULL
		AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.rotation_id = r.id) ORDER BY r.id FOR UPDATE SKIP LOCKED`)
	if err != nil {
		return nil, err
	}
	free = slices.DeleteFunc(free, func(r Rotation) bool { return r.Reason.Urgent() })
	_, err = db.Exec(ctx, `UPDATE rotation SET held = true, held_for = $2, next_action = $3, updated_at = $4 WHERE id = ANY($1)`,
		pq.Array(keysOf(free)), hold, nextAction, at)
	if err != nil {
		return nil, fmt.Errorf("holding rotations: %w", err)
	}
	return free, nil
}

// ReleaseHeldFor lets go every rotation that is held for this, and returns them.
func (db *DB) ReleaseHeldFor(ctx context.Context, hold rotation.Hold, at time.Time) ([]Rotation, error) {
	held, err := db.rotations(ctx, `r.held_for = $1 AND r.held AND r.ended_at IS NULL ORDER BY r.id FOR UPDATE`, hold)
	if err != nil || len(held) == 0 {
		return nil, err
	}
	_, err = db.Exec(ctx, `UPDATE rotation SET held = false, held_for = '', next_action = '', updated_at = $2 WHERE id = ANY($1)`, pq.Array(keysOf(held)), at)
	if err != nil {
		return nil, fmt.Errorf("releasing rotations: %w", err)
	}
	return held, nil
}

// ReleaseHeld lets go those of the rotations that are held for this, and returns them.
func (db *DB) ReleaseHeld(ctx context.Context, keys []uuid.UUID, hold rotation.Hold, at time.Time) ([]Rotation, error) {
	held, err := db.rotations(ctx, `r.id = ANY($1) AND r.held_for = $2 AND r.held AND r.ended_at IS NULL ORDER BY r.id FOR UPDATE`, pq.Array(keys), hold)
	if err != nil || len(held) == 0 {
		return nil, err
	}
	_, err = db.Exec(ctx, `UPDATE rotation SET held = false, held_for = '', released_at = $2, next_action = '', updated_at = $2 WHERE id = ANY($1)`, pq.Array(keysOf(held)), at)
	if err != nil {
		return nil, fmt.Errorf("releasing rotations: %w", err)
	}
	return held, nil
}

// HeldFor lists the open rotations that are held for this.
func (db *DB) HeldFor(ctx context.Context, hold rotation.Hold) ([]Rotation, error) {
	return db.rotations(ctx, `r.held_for = $1 AND r.held AND r.ended_at IS NULL ORDER BY r.id`, hold)
}

func keysOf(rotations []Rotation) []uuid.UUID {
	keys := make([]uuid.UUID, len(rotations))
	for i, r := range rotations {
		keys[i] = r.ID
	}
	return keys
}
