package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

// Grant lets first managed devices enroll without a code, by a proof.
type Grant struct {
	ID uuid.UUID `json:"id"`
	// Users is a pattern of user ids (package glob), and Proof a name of the configuration.
	Users     string    `json:"users"`
	Proof     string    `json:"proof"`
	Max       int       `json:"max"`
	Used      int       `json:"used"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	ExpiresAt time.Time `json:"expires_at"`
	// RevokedAt is zero, and RevokedBy empty, where nobody revoked it.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	RevokedBy string    `json:"revoked_by,omitempty"`
}

// GrantState is where a grant stands.
type GrantState string

// The states of a grant. Only an open one lets anybody enroll.
const (
	GrantOpen    GrantState = "open"
	GrantUsedUp  GrantState = "used_up"
	GrantExpired GrantState = "expired"
	GrantRevoked GrantState = "revoked"
)

// State is where the grant stands at a time.
func (g Grant) State(now time.Time) GrantState {
	switch {
	case !g.RevokedAt.IsZero():
		return GrantRevoked
	case g.Used >= g.Max:
		return GrantUsedUp
	case !now.Before(g.ExpiresAt):
		return GrantExpired
	}
	return GrantOpen
}

const grantColumns = `id, users, proof, max, used, created_at, created_by, expires_at, revoked_at, revoked_by`

func scanGrant(row interface{ Scan(...any) error }) (g Grant, err error) {
	var revoked sql.NullTime
	err = row.Scan(&g.ID, &g.Users, &g.Proof, &g.Max, &g.Used, &g.CreatedAt, &g.CreatedBy, &g.ExpiresAt, &revoked, &g.RevokedBy)
	g.RevokedAt = revoked.Time
	return g, err
}

func (db *DB) grants(ctx context.Context, where string, args ...any) ([]Grant, error) {
	return collect(ctx, db, "the grants", scanGrant, `SELECT `+grantColumns+` FROM enrollment_grant WHERE `+where, args...)
}

// PutGrant keeps a new grant.
func (db *DB) PutGrant(ctx context.Context, g Grant) error {
	_, err := db.Exec(ctx, `INSERT INTO enrollment_grant (id, users, proof, max, created_at, created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		g.ID, g.Users, g.Proof, g.Max, g.CreatedAt, g.CreatedBy, g.ExpiresAt)
	if err != nil {
		return fmt.Errorf("keeping a grant: %w", err)
	}
	return nil
}

// GrantFilter is which grants are listed, and from where on: After is the last of the page before, and Limit 0 is all.
type GrantFilter struct {
	Open  bool
	Now   time.Time
	After uuid.UUID
	Limit int
}

// Grants lists grants in the order in which they were made.
func (db *DB) Grants(ctx context.Context, f GrantFilter) ([]Grant, error) {
	return db.grants(ctx, `id > $1 AND (NOT $2 OR revoked_at IS NULL AND used < max AND expires_at > $3) ORDER BY id LIMIT NULLIF($4, 0)`, f.After, f.Open, f.Now, f.Limit)
}

// RecentGrants lists those that are open, or ended after a time.
func (db *DB) RecentGrants(ctx context.Context, since time.Time) ([]Grant, error) {
	return db.grants(ctx, `expires_at > $1 AND (revoked_at IS NULL OR revoked_at > $1) ORDER BY expires_at, id`, since)
}

// LockGrant reads a grant and locks it until the transaction ends.
func (db *DB) LockGrant(ctx context.Context, key uuid.UUID) (g Grant, ok bool, err error) {
	g, err = scanGrant(db.QueryRow(ctx, `SELECT `+grantColumns+` FROM enrollment_grant WHERE id = $1 FOR UPDATE`, key))
	if errors.Is(err, sql.ErrNoRows) {
		return g, false, nil
	} else if err != nil {
		return g, false, fmt.Errorf("reading grant %s: %w", key, err)
	}
	return g, true, nil
}

// UseGrant counts a device that enrolled by a grant, and returns how many did.
func (db *DB) UseGrant(ctx context.Context, grant, device uuid.UUID) (used int, err error) {
	err = db.QueryRow(ctx, `UPDATE enrollment_grant SET used = used + 1 WHERE id = $1 RETURNING used`, grant).Scan(&used)
	if err == nil {
		_, err = db.Exec(ctx, `UPDATE device SET grant_id = $1 WHERE id = $2`, grant, device)
	}
	if err != nil {
		return 0, fmt.Errorf("using grant %s: %w", grant, err)
	}
	return used, nil
}

// GrantOf is the grant by which a device enrolled; ok is false where it was another way.
func (db *DB) GrantOf(ctx context.Context, device uuid.UUID) (grant uuid.UUID, ok bool, err error) {
	var found uuid.NullUUID
	if err = db.QueryRow(ctx, `SELECT grant_id FROM device WHERE id = $1`, device).Scan(&found); err != nil {
		return grant, false, fmt.Errorf("reading the grant of device %s: %w", device, err)
	}
	return found.UUID, found.Valid, nil
}

// RevokeGrant ends a grant.
func (db *DB) RevokeGrant(ctx context.Context, key uuid.UUID, at time.Time, by string) error {
	if _, err := db.Exec(ctx, `UPDATE enrollment_grant SET revoked_at = $1, revoked_by = $2 WHERE id = $3`, at, by, key); err != nil {
		return fmt.Errorf("revoking grant %s: %w", key, err)
	}
	return nil
}

// WrongProof counts a wrong proof of a user against a grant, and returns how many there were.
func (db *DB) WrongProof(ctx context.Context, grant uuid.UUID, user id.UserID) (wrong int, err error) {
	err = db.QueryRow(ctx, `INSERT INTO grant_try (grant_id, user_id, wrong) VALUES ($1, $2, 1)
		ON CONFLICT (grant_id, user_id) DO UPDATE SET wrong = grant_try.wrong + 1 RETURNING wrong`, grant, user).Scan(&wrong)
	if err != nil {
		return 0, fmt.Errorf("counting a wrong proof: %w", err)
	}
	return wrong, nil
}

// WrongProofs is how many wrong proofs of a user were counted, by grant.
func (db *DB) WrongProofs(ctx context.Context, user id.UserID) (map[uuid.UUID]int, error) {
	rows, err := db.Query(ctx, `SELECT grant_id, wrong FROM grant_try WHERE user_id = $1`, user)
	if err != nil {
		return nil, fmt.Errorf("reading the wrong proofs of %s: %w", user, err)
	}
	defer func() { _ = rows.Close() }()
	counts := map[uuid.UUID]int{}
	for rows.Next() {
		var grant uuid.UUID
		var wrong int
		if err := rows.Scan(&grant, &wrong); err != nil {
			return nil, fmt.Errorf("reading the wrong proofs of %s: %w", user, err)
		}
		counts[grant] = wrong
	}
	return counts, rows.Err()
}

// ShowProof records an authentic proof as the device's, and reports whether it is: another one may have shown it before.
// Proofs that are over are forgotten, since they are refused by their time.
func (db *DB) ShowProof(ctx context.Context, unique [32]byte, user id.UserID, identityKey id.Curve25519, now, expiry time.Time) (own bool, err error) {
	if _, err := db.Exec(ctx, `DELETE FROM enrollment_proof WHERE expires_at < $1`, now.Add(-time.Hour)); err != nil {
		return false, fmt.Errorf("forgetting proofs that are over: %w", err)
	}
	_, err = db.Exec(ctx, `INSERT INTO enrollment_proof (sha256, user_id, identity_key, seen_at, expires_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		unique[:], user, identityKey, now, expiry)
	if err == nil {
		err = db.QueryRow(ctx, `SELECT user_id = $2 AND identity_key = $3 FROM enrollment_proof WHERE sha256 = $1`, unique[:], user, identityKey).Scan(&own)
	}
	if err != nil {
		return false, fmt.Errorf("keeping that a proof was shown: %w", err)
	}
	return own, nil
}

// HasDevice reports whether a user has or had a managed device.
func (db *DB) HasDevice(ctx context.Context, user id.UserID) (has bool, err error) {
	if err = db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM device WHERE user_id = $1)`, user).Scan(&has); err != nil {
		return false, fmt.Errorf("looking for a device of %s: %w", user, err)
	}
	return has, nil
}
