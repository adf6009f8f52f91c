package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/roster"
)

// RosterRow is a user of the roster, and who put him there when.
type RosterRow struct {
	roster.Entry
	AddedAt time.Time
	AddedBy string
}

// RosterFilter chooses a page of the roster, in the order of user ids: who comes after After, at most Limit (0 for all),
// of Users alone unless it is nil.
type RosterFilter struct {
	After id.UserID
	Limit int
	Users []id.UserID
}

// chosenUsers is the page of a RosterFilter, whose arguments are $1 to $3.
const chosenUsers = `(SELECT * FROM roster WHERE user_id > $1 AND ($3::text[] IS NULL OR user_id = ANY ($3)) ORDER BY user_id LIMIT $2)`

func (f RosterFilter) args() []any {
	var users any
	if f.Users != nil {
		users = pq.Array(f.Users)
	}
	return []any{f.After, sql.NullInt64{Int64: int64(f.Limit), Valid: f.Limit > 0}, users}
}

// LockRoster lets one transaction at a time change the roster.
func (db *DB) LockRoster(ctx context.Context) error {
	if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('keyherald roster', 0))`); err != nil {
		return fmt.Errorf("locking the roster: %w", err)
	}
	return nil
}

// Roster lists users of the roster.
func (db *DB) Roster(ctx context.Context, filter RosterFilter) ([]RosterRow, error) {
	rows, err := db.Query(ctx, `SELECT user_id, added_at, added_by, exempt_reason, exempt_until FROM `+chosenUsers+` r ORDER BY user_id`, filter.args()...)
	if err != nil {
		return nil, fmt.Errorf("reading the roster: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var list []RosterRow
	for rows.Next() {
		var r RosterRow
		var until sql.NullTime
		if err := rows.Scan(&r.UserID, &r.AddedAt, &r.AddedBy, &r.Exemption.Reason, &until); err != nil {
			return nil, fmt.Errorf("reading the roster: %w", err)
		}
		r.Exemption.Until = until.Time
		list = append(list, r)
	}
	return list, rows.Err()
}

// RosterSize is how many users are on the roster.
func (db *DB) RosterSize(ctx context.Context) (n int, err error) {
	if err = db.QueryRow(ctx, `SELECT COUNT(*) FROM roster`).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the roster: %w", err)
	}
	return n, nil
}

// PutRoster puts users on the roster; of those that are there already the exemption alone is written.
func (db *DB) PutRoster(ctx context.Context, entries []roster.Entry, by string, at time.Time) error {
	if len(entries) == 0 {
		return nil
	}
	users, reasons, untils := make([]string, len(entries)), make([]string, len(entries)), make([]sql.NullTime, len(entries))
	for i, e := range entries {
		users[i], reasons[i], untils[i] = string(e.UserID), e.Exemption.Reason, sql.NullTime{Time: e.Exemption.Until.Truncate(time.Millisecond), Valid: !e.Exemption.Until.IsZero()}
	}
	_, err := db.Exec(ctx, `INSERT INTO roster (user_id, added_at, added_by, exempt_reason, exempt_until)
		SELECT user_id, $4, $5, reason, until FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS fresh (user_id, reason, until)
		ON CONFLICT (user_id) DO UPDATE SET exempt_reason = excluded.exempt_reason, exempt_until = excluded.exempt_until`,
		pq.Array(users), pq.Array(reasons), pq.Array(untils), at, by)
	if err != nil {
		return fmt.Errorf("writing the roster: %w", err)
	}
	return nil
}

// RemoveFromRoster takes users off the roster.
func (db *DB) RemoveFromRoster(ctx context.Context, users []id.UserID) error {
	if _, err := db.Exec(ctx, `DELETE FROM roster WHERE user_id = ANY ($1)`, pq.Array(users)); err != nil {
		return fmt.Errorf("taking users off the roster: %w", err)
	}
	return nil
}

// BurnCodes voids the open enrollment codes of users, and says how many each had.
func (db *DB) BurnCodes(ctx context.Context, users []id.UserID, now time.Time) (map[id.UserID]int, error) {
	rows, err := db.Query(ctx, `UPDATE enrollment_code SET burned = true WHERE user_id = ANY ($1) AND NOT burned AND used_by IS NULL AND expires_at > $2 RETURNING user_id`, pq.Array(users), now)
	if err != nil {
		return nil, fmt.Errorf("voiding enrollment codes: %w", err)
	}
	defer func() { _ = rows.Close() }()
	burned := map[id.UserID]int{}
	for rows.Next() {
		var user id.UserID
		if err := rows.Scan(&user); err != nil {
			return nil, fmt.Errorf("voiding enrollment codes: %w", err)
		}
		burned[user]++
	}
	return burned, rows.Err()
}

// LockDevicesOf reads the devices of users that are not revoked, and locks them until the transaction ends.
func (db *DB) LockDevicesOf(ctx context.Context, users []id.UserID) ([]Device, error) {
	return db.devices(ctx, `user_id = ANY ($1) AND state <> 'revoked' ORDER BY id FOR NO KEY UPDATE`, pq.Array(users))
}

// RevokeDevices revokes devices; that their events are appended, and they are told, is for the caller.
func (db *DB) RevokeDevices(ctx context.Context, devices []Device) error {
	if _, err := db.Exec(ctx, `UPDATE device SET state = 'revoked' WHERE id = ANY ($1::uuid[])`, pq.Array(deviceKeys(devices))); err != nil {
		return fmt.Errorf("revoking devices: %w", err)
	}
	return nil
}

func deviceKeys(devices []Device) []uuid.UUID {
	keys := make([]uuid.UUID, len(devices))
	for i, d := range devices {
		keys[i] = d.ID
	}
	return keys
}

// LockOpenRotations reads the open rotations of users, and locks them until the transaction ends, newest first as everybody.
func (db *DB) LockOpenRotations(ctx context.Context, users []id.UserID) ([]Rotation, error) {
	return db.rotations(ctx, `r.user_id = ANY ($1) AND r.ended_at IS NULL ORDER BY r.id DESC FOR UPDATE`, pq.Array(users))
}

// SawKeyVersion keeps that a status named a key-backup version: since when it is there, if nothing better is known. Where the
// version has another public key than before, it is another one that a homeserver without its memory gave the same name.
func (db *DB) SawKeyVersion(ctx context.Context, user id.UserID, version, publicKey string, at time.Time) error {
	return db.putKeyVersion(ctx, `false`, user, version, publicKey, at, true)
}

// CreatedKeyVersion keeps when a managed device created a key-backup version. That is better than when one was first seen;
// of two who say so, the first is right.
func (db *DB) CreatedKeyVersion(ctx context.Context, user id.UserID, version, publicKey string, at time.Time) error {
	return db.putKeyVersion(ctx, `key_version.only_seen`, user, version, publicKey, at, false)
}

func (db *DB) putKeyVersion(ctx context.Context, overwrite string, user id.UserID, version, publicKey string, at time.Time, onlySeen bool) error {
	_, err := db.Exec(ctx, `INSERT INTO key_version (user_id, version, public_key, created_at, only_seen) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, version) DO UPDATE SET public_key = excluded.public_key, created_at = excluded.created_at, only_seen = excluded.only_seen
		WHERE (`+overwrite+`) OR key_version.public_key <> excluded.public_key AND key_version.public_key <> '' AND excluded.public_key <> ''`, user, version, publicKey, at, onlySeen)
	if err != nil {
		return fmt.Errorf("keeping key-backup version %s of %s: %w", version, user, err)
	}
	return nil
}

// OffRoster reports whether there is a roster and a user is not on it. It waits for a roster that is being applied, and one
// that is to be applied waits for the caller's transaction, so that nobody enrolls while he leaves.
func (db *DB) OffRoster(ctx context.Context, user id.UserID) (off bool, err error) {
	if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock_shared(hashtextextended('keyherald roster', 0))`); err != nil {
		return false, fmt.Errorf("locking the roster: %w", err)
	}
	if err = db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM roster) AND NOT EXISTS (SELECT 1 FROM roster WHERE user_id = $1)`, user).Scan(&off); err != nil {
		return false, fmt.Errorf("looking for %s on the roster: %w", user, err)
	}
	return off, nil
}
