package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"
)

// pendingPrefix begins the version of a rotation whose key the device makes, until it says which version it became.
const pendingPrefix = "pending/"

// PendingVersion is the version of such a rotation, which no KMS gives.
func PendingVersion(rotation uuid.UUID) string { return pendingPrefix + rotation.String() }

// Pending reports whether the rotation's version is not known yet.
func (r Rotation) Pending() bool { return strings.HasPrefix(r.KMS.Version, pendingPrefix) }

// BindVersions gives pending rotations the versions that their keys became.
func (db *DB) BindVersions(ctx context.Context, versions map[uuid.UUID]string, now time.Time) error {
	for key, version := range versions {
		if _, err := db.Exec(ctx, `UPDATE rotation SET version = $2, updated_at = $3 WHERE id = $1`, key, version, now); err != nil {
			return fmt.Errorf("keeping the version of rotation %s: %w", key, err)
		}
	}
	return nil
}

// Exclude keeps devices from every push to their user, from now on; those that were excluded already stay so.
func (db *DB) Exclude(ctx context.Context, user id.UserID, devices []id.DeviceID, by string, at time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO excluded_device (user_id, device_id, excluded_at, excluded_by) SELECT $1, d, $3, $4 FROM unnest($2::text[]) AS d ON CONFLICT DO NOTHING`,
		user, pq.Array(devices), at, by)
	if err != nil {
		return fmt.Errorf("excluding devices of %s: %w", user, err)
	}
	return nil
}

// Include lifts an exclusion, and reports whether there was one.
func (db *DB) Include(ctx context.Context, user id.UserID, device id.DeviceID) (bool, error) {
	result, err := db.Exec(ctx, `DELETE FROM excluded_device WHERE user_id = $1 AND device_id = $2`, user, device)
	if err != nil {
		return false, fmt.Errorf("including device %s of %s: %w", device, user, err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// Excluded lists the excluded devices of users.
func (db *DB) Excluded(ctx context.Context, users []id.UserID) (map[id.UserID][]id.DeviceID, error) {
	rows, err := db.Query(ctx, `SELECT user_id, device_id FROM excluded_device WHERE user_id = ANY($1) ORDER BY user_id, device_id`, pq.Array(users))
	if err != nil {
		return nil, fmt.Errorf("reading the excluded devices: %w", err)
	}
	defer func() { _ = rows.Close() }()
	excluded := map[id.UserID][]id.DeviceID{}
	for rows.Next() {
		var user id.UserID
		var device id.DeviceID
		if err := rows.Scan(&user, &device); err != nil {
			return nil, fmt.Errorf("reading the excluded devices: %w", err)
		}
		excluded[user] = append(excluded[user], device)
	}
	return excluded, rows.Err()
}

// AskRepeat asks for one more push of a rotation's key.
func (db *DB) AskRepeat(ctx context.Context, key uuid.UUID, at time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE rotation SET repeat_asked_at = $2, repeat_told_at = NULL WHERE id = $1`, key, at); err != nil {
		return fmt.Errorf("asking for a push of rotation %s: %w", key, err)
	}
	return nil
}

// RepeatsUntold lists rotations whose key is to be pushed once more and whose devices were not told.
func (db *DB) RepeatsUntold(ctx context.Context) ([]Rotation, error) {
	return db.rotations(ctx, `r.repeat_asked_at IS NOT NULL AND r.repeat_told_at IS NULL ORDER BY r.id`)
}

// RepeatTold records that the word to the device is in the outbox.
func (db *DB) RepeatTold(ctx context.Context, key uuid.UUID, at time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE rotation SET repeat_told_at = $2 WHERE id = $1`, key, at); err != nil {
		return fmt.Errorf("recording that a device was told: %w", err)
	}
	return nil
}

// LastPlace is where a user's key was rotated last; ok is false where it never was.
func (db *DB) LastPlace(ctx context.Context, user id.UserID, secret string) (place Place, ok bool, err error) {
	last, err := db.rotations(ctx, `r.user_id = $1 AND r.secret = $2 ORDER BY r.id DESC LIMIT 1`, user, secret)
	if err != nil || len(last) == 0 {
		return place, false, err
	}
	return last[0].Place(), true, nil
}

// TargetsSince is since when each device of a user is known as one that got a key, by the rotations that say so.
func (db *DB) TargetsSince(ctx context.Context, user id.UserID) (map[id.DeviceID]time.Time, error) {
	rows, err := db.Query(ctx, `SELECT d.device_id, MIN(r.created_at) FROM delivery d JOIN rotation r ON r.id = d.rotation_id
		WHERE r.user_id = $1 AND d.outcome IN ('sent', 'adopted') GROUP BY d.device_id`, user)
	if err != nil {
		return nil, fmt.Errorf("reading who got keys of %s: %w", user, err)
	}
	defer func() { _ = rows.Close() }()
	since := map[id.DeviceID]time.Time{}
	for rows.Next() {
		var device id.DeviceID
		var at time.Time
		if err := rows.Scan(&device, &at); err != nil {
			return nil, fmt.Errorf("reading who got keys of %s: %w", user, err)
		}
		since[device] = at
	}
	return since, rows.Err()
}
