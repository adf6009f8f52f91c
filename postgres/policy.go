package postgres

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// PolicyVersion is a version of the company's policy. Document is JSON, and SHA256 is of these bytes.
type PolicyVersion struct {
	Version   int64
	Document  []byte
	SHA256    [sha256.Size]byte
	CreatedAt time.Time
	CreatedBy string
	Reason    string
}

// Parse is the version's document.
func (v PolicyVersion) Parse() (policy.Document, error) {
	d, err := policy.ParseJSON(v.Document)
	if err != nil {
		return d, fmt.Errorf("reading version %d of the policy: %w", v.Version, err)
	}
	return d, nil
}

// Policy is the version, ready to be asked.
func (v PolicyVersion) Policy() (*policy.Policy, error) {
	d, err := v.Parse()
	if err != nil {
		return nil, err
	}
	p, err := policy.New(d)
	if err != nil {
		return nil, fmt.Errorf("reading version %d of the policy: %w", v.Version, err)
	}
	return p, nil
}

// LockPolicy lets one transaction at a time change the policy.
func (db *DB) LockPolicy(ctx context.Context) error {
	if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('keyherald policy', 0))`); err != nil {
		return fmt.Errorf("locking the policy: %w", err)
	}
	return nil
}

// PutPolicy keeps a version.
func (db *DB) PutPolicy(ctx context.Context, v PolicyVersion) error {
	_, err := db.Exec(ctx, `INSERT INTO policy_version (version, document, sha256, created_at, created_by, reason) VALUES ($1, $2, $3, $4, $5, $6)`,
		v.Version, string(v.Document), v.SHA256[:], v.CreatedAt, v.CreatedBy, v.Reason)
	if err != nil {
		return fmt.Errorf("keeping version %d of the policy: %w", v.Version, err)
	}
	return nil
}

// NewestPolicy is the policy of now; ok is false where there is none.
func (db *DB) NewestPolicy(ctx context.Context) (v PolicyVersion, ok bool, err error) {
	return db.onePolicy(ctx, `true`)
}

// PolicyAt is the policy of a time; ok is false where there was none.
func (db *DB) PolicyAt(ctx context.Context, at time.Time) (v PolicyVersion, ok bool, err error) {
	return db.onePolicy(ctx, `created_at <= $1`, at)
}

func (db *DB) onePolicy(ctx context.Context, where string, args ...any) (v PolicyVersion, ok bool, err error) {
	versions, err := db.policies(ctx, where+` ORDER BY version DESC LIMIT 1`, args...)
	if err != nil || len(versions) == 0 {
		return v, false, err
	}
	return versions[0], true, nil
}

// PolicyFilter chooses a page of the policy's versions, newest first: those below Before (0 for all), at most Limit.
type PolicyFilter struct {
	Before int64
	Limit  int
}

// PolicyVersions lists versions of the policy.
func (db *DB) PolicyVersions(ctx context.Context, filter PolicyFilter) ([]PolicyVersion, error) {
	return db.policies(ctx, `($1 = 0 OR version < $1) ORDER BY version DESC LIMIT $2`, filter.Before, sql.NullInt64{Int64: int64(filter.Limit), Valid: filter.Limit > 0})
}

func (db *DB) policies(ctx context.Context, where string, args ...any) ([]PolicyVersion, error) {
	rows, err := db.Query(ctx, `SELECT version, document, sha256, created_at, created_by, reason FROM policy_version WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var versions []PolicyVersion
	for rows.Next() {
		var v PolicyVersion
		var sum []byte
		if err := rows.Scan(&v.Version, &v.Document, &sum, &v.CreatedAt, &v.CreatedBy, &v.Reason); err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		copy(v.SHA256[:], sum)
		versions = append(versions, v)
	}
	return versions, rows.Err()
}

// Ruled is a user of the roster, as the policy looks at him.
type Ruled struct {
	UserID      id.UserID
	ExemptUntil time.Time
	Enrolled    bool
	// LastSeen is when a managed device of his was last heard of.
	LastSeen time.Time
	// Version is the key-backup version that is current, and Since is when it was created, or seen first where OnlySeen;
	// Since is zero where that is not known.
	Version  string
	Since    time.Time
	OnlySeen bool
	Drift    protocol.DriftKind
	// Open is his newest rotation that has not ended, if there is one.
	Open uuid.NullUUID
	// Placed says that it is known where his key is in a KMS.
	Placed bool
	// Asked is what the policy asked for this version, with what became of it; At is zero where it did not.
	Asked struct {
		At       time.Time
		Rotation uuid.UUID
		State    rotation.State
		EndedAt  time.Time
	}
	// ReclaimedAt is when the policy last had his device make a key for a drift.
	ReclaimedAt time.Time
	// OverdueTold says that this version was told of as overdue.
	OverdueTold bool
}

// What a device did last can be newer than what it said of the homeserver last: a status may be lost, or on its way. Each
// look beside the roster is one by an index for each user (LIMIT), whatever the planner knows of tables that just filled.
const ruledQuery = `SELECT r.user_id, r.exempt_until, d.id IS NOT NULL, d.last_seen, cur.version, cur.since, cur.only_seen,
		CASE WHEN cur.version = d.status ->> 'backup_version' THEN d.status #>> '{drifted,kind}' END,
		(SELECT id FROM rotation o WHERE o.user_id = r.user_id AND o.ended_at IS NULL ORDER BY id DESC LIMIT 1),
		EXISTS (SELECT 1 FROM rotation o WHERE o.user_id = r.user_id AND o.secret = $1),
		p.asked_at, p.rotation_id, a.state, a.ended_at, (SELECT MAX(asked_at) FROM policy_key WHERE user_id = r.user_id AND cause = 'drift'), p.overdue_at IS NOT NULL
	FROM roster r
	LEFT JOIN LATERAL (SELECT id, last_seen, status FROM device WHERE user_id = r.user_id AND state = 'enrolled' ORDER BY status_at DESC NULLS LAST, last_seen DESC NULLS LAST LIMIT 1) d ON true
	LEFT JOIN LATERAL (SELECT created_at, only_seen FROM key_version WHERE user_id = r.user_id AND version = d.status ->> 'backup_version' LIMIT 1) k ON true
	LEFT JOIN LATERAL (SELECT NULLIF(backup_version, '') AS backup_version, ended_at FROM rotation n WHERE n.user_id = r.user_id AND n.state = 'done' ORDER BY id DESC LIMIT 1) n ON true
	LEFT JOIN LATERAL (SELECT created_at, only_seen FROM key_version WHERE user_id = r.user_id AND version = n.backup_version LIMIT 1) kn ON true
	CROSS JOIN LATERAL (SELECT made, CASE WHEN made THEN n.backup_version ELSE COALESCE(d.status ->> 'backup_version', '') END AS version,
			CASE WHEN made THEN COALESCE(kn.created_at, n.ended_at) ELSE k.created_at END AS since, COALESCE(CASE WHEN made THEN kn.only_seen ELSE k.only_seen END, true) AS only_seen
		FROM (SELECT n.backup_version IS NOT NULL AND n.backup_version IS DISTINCT FROM d.status ->> 'backup_version' AND (k.created_at IS NULL OR n.ended_at > k.created_at) AS made) made) cur
	LEFT JOIN LATERAL (SELECT asked_at, rotation_id, overdue_at FROM policy_key WHERE user_id = r.user_id AND version = cur.version
		AND (asked_at IS NULL OR cur.since IS NULL OR asked_at >= cur.since) LIMIT 1) p ON true
	LEFT JOIN rotation a ON a.id = p.rotation_id
	WHERE $2::text[] IS NULL OR r.user_id = ANY ($2) ORDER BY r.user_id`

// Ruled lists users of the roster, or all of them for nil.
func (db *DB) Ruled(ctx context.Context, users []id.UserID) ([]Ruled, error) {
	var only any
	if users != nil {
		only = pq.Array(users)
	}
	var all []Ruled
	err := db.Txn(ctx, func(ctx context.Context) error {
		// Compiling the query takes longer than running it.
		if _, err := db.Exec(ctx, `SET LOCAL jit = off`); err != nil {
			return fmt.Errorf("reading whom the policy is for: %w", err)
		}
		rows, err := db.Query(ctx, ruledQuery, protocol.SecretMegolmBackup, only)
		if err != nil {
			return fmt.Errorf("reading whom the policy is for: %w", err)
		}
		defer func() { _ = rows.Close() }()
		all, err = scanRuled(rows)
		return err
	})
	return all, err
}

func scanRuled(rows dbutil.Rows) ([]Ruled, error) {
	var all []Ruled
	for rows.Next() {
		var r Ruled
		var exempt, seen, since, asked, ended, reclaimed sql.NullTime
		var drift, state sql.NullString
		var asking uuid.NullUUID
		err := rows.Scan(&r.UserID, &exempt, &r.Enrolled, &seen, &r.Version, &since, &r.OnlySeen, &drift, &r.Open, &r.Placed, &asked, &asking, &state, &ended, &reclaimed, &r.OverdueTold)
		if err != nil {
			return nil, fmt.Errorf("reading whom the policy is for: %w", err)
		}
		r.ExemptUntil, r.LastSeen, r.Since, r.Drift, r.ReclaimedAt = exempt.Time, seen.Time, since.Time, protocol.DriftKind(drift.String), reclaimed.Time
		r.Asked.At, r.Asked.Rotation, r.Asked.State, r.Asked.EndedAt = asked.Time, asking.UUID, rotation.State(state.String), ended.Time
		all = append(all, r)
	}
	return all, rows.Err()
}

// RosterUsers lists who is on the roster.
func (db *DB) RosterUsers(ctx context.Context) ([]id.UserID, error) {
	// As JSON, so that nobody is an empty list and not none.
	var raw []byte
	if err := db.QueryRow(ctx, `SELECT COALESCE(json_agg(user_id ORDER BY user_id), '[]') FROM roster`).Scan(&raw); err != nil {
		return nil, fmt.Errorf("reading the roster: %w", err)
	}
	users := []id.UserID{}
	if err := json.Unmarshal(raw, &users); err != nil {
		return nil, fmt.Errorf("reading the roster: %w", err)
	}
	return users, nil
}

// PolicyAsked counts what the policy asked for since then.
func (db *DB) PolicyAsked(ctx context.Context, since time.Time) (n int, err error) {
	if err = db.QueryRow(ctx, `SELECT COUNT(*) FROM policy_key WHERE asked_at > $1`, since).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting what the policy asked for: %w", err)
	}
	return n, nil
}

// PutPolicyAsked keeps that the policy asked for a version's successor. A version that was asked for before is so again
// where that rotation timed out.
func (db *DB) PutPolicyAsked(ctx context.Context, user id.UserID, version string, opened uuid.UUID, cause rotation.Reason, at time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO policy_key (user_id, version, rotation_id, cause, asked_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, version) DO UPDATE SET rotation_id = excluded.rotation_id, cause = excluded.cause, asked_at = excluded.asked_at`, user, version, opened, cause, at)
	if err != nil {
		return fmt.Errorf("keeping that the policy asked for a key of %s: %w", user, err)
	}
	return nil
}

// PutPolicyOverdue keeps that a user's version was told of as overdue, and reports whether it was not before.
func (db *DB) PutPolicyOverdue(ctx context.Context, user id.UserID, version string, at time.Time) (first bool, err error) {
	var told bool
	err = db.QueryRow(ctx, `INSERT INTO policy_key (user_id, version, overdue_at) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, version) DO UPDATE SET overdue_at = excluded.overdue_at WHERE policy_key.overdue_at IS NULL RETURNING true`, user, version, at).Scan(&told)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("keeping that the key of %s is overdue: %w", user, err)
	}
	return told, nil
}
