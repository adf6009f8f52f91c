package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
)

// Token is an API token as the server keeps it: the hash alone.
type Token struct {
	ID        uuid.UUID
	Name      string
	SHA256    [32]byte
	Role      audit.APIRole
	CreatedAt time.Time
	CreatedBy string
	ExpiresAt time.Time
	// RevokedAt and LastUsedAt are zero where that never was. LastUsedAt may be a minute behind.
	RevokedAt  time.Time
	LastUsedAt time.Time
}

const tokenColumns = `id, name, sha256, role, created_at, created_by, expires_at, revoked_at, last_used_at`

func scanToken(row interface{ Scan(...any) error }) (Token, error) {
	var t Token
	var sum []byte
	var revoked, used sql.NullTime
	err := row.Scan(&t.ID, &t.Name, &sum, &t.Role, &t.CreatedAt, &t.CreatedBy, &t.ExpiresAt, &revoked, &used)
	copy(t.SHA256[:], sum)
	t.RevokedAt, t.LastUsedAt = revoked.Time, used.Time
	return t, err
}

// PutToken keeps a new token; made is false where there is, or was, one of that name.
func (db *DB) PutToken(ctx context.Context, t Token) (made bool, err error) {
	result, err := db.Exec(ctx, `INSERT INTO api_token (id, name, sha256, role, created_at, created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING`,
		t.ID, t.Name, t.SHA256[:], t.Role, t.CreatedAt, t.CreatedBy, t.ExpiresAt)
	if err != nil {
		return false, fmt.Errorf("keeping an API token: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// TokenByHash finds a token, whether it still counts or not; ok is false if there is none.
func (db *DB) TokenByHash(ctx context.Context, hash [32]byte) (t Token, ok bool, err error) {
	t, err = scanToken(db.QueryRow(ctx, `SELECT `+tokenColumns+` FROM api_token WHERE sha256 = $1`, hash[:]))
	if errors.Is(err, sql.ErrNoRows) {
		return t, false, nil
	} else if err != nil {
		return t, false, fmt.Errorf("reading an API token: %w", err)
	}
	return t, true, nil
}

// TokenFilter is from where on tokens are listed: After is the last name of the page before, and Limit 0 is all.
type TokenFilter struct {
	After string
	Limit int
}

// Tokens lists tokens, by their names.
func (db *DB) Tokens(ctx context.Context, f TokenFilter) ([]Token, error) {
	return collect(ctx, db, "the API tokens", scanToken, `SELECT `+tokenColumns+` FROM api_token WHERE name > $1 ORDER BY name LIMIT NULLIF($2, 0)`, f.After, f.Limit)
}

// RevokeToken ends a token. known is false where there is none of that name, and revoked where it was ended before.
func (db *DB) RevokeToken(ctx context.Context, name string, at time.Time) (known, revoked bool, err error) {
	err = db.QueryRow(ctx, `WITH there AS (SELECT name FROM api_token WHERE name = $1),
			ended AS (UPDATE api_token SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL RETURNING name)
		SELECT EXISTS (SELECT 1 FROM there), EXISTS (SELECT 1 FROM ended)`, name, at).Scan(&known, &revoked)
	if err != nil {
		return false, false, fmt.Errorf("revoking the API token %s: %w", name, err)
	}
	return known, revoked, nil
}

// UsedToken records that a token was used.
func (db *DB) UsedToken(ctx context.Context, key uuid.UUID, at time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE api_token SET last_used_at = $2 WHERE id = $1`, key, at); err != nil {
		return fmt.Errorf("recording that an API token was used: %w", err)
	}
	return nil
}

// Answer is what a write of the API was answered with. Body is nil where it had a secret.
type Answer struct {
	Request [32]byte
	Status  int
	Body    []byte
}

// ClaimAnswer takes a caller's idempotency key for a request, in the transaction of its effect. Where the key was taken
// after since, first is false and the answer is what was kept then. Whoever comes meanwhile with the same key waits for
// the transaction's end.
func (db *DB) ClaimAnswer(ctx context.Context, caller, key string, request [32]byte, now, since time.Time) (before Answer, first bool, err error) {
	var sum []byte
	err = db.QueryRow(ctx, `INSERT INTO api_answer AS a (caller, key, request, status, created_at) VALUES ($1, $2, $3, 0, $4)
		ON CONFLICT (caller, key) DO UPDATE SET request = excluded.request, status = 0, body = NULL, created_at = excluded.created_at WHERE a.created_at < $5
		RETURNING a.request`, caller, key, request[:], now, since).Scan(&sum)
	if err == nil {
		return before, true, nil
	} else if !errors.Is(err, sql.ErrNoRows) {
		return before, false, fmt.Errorf("taking an idempotency key: %w", err)
	}
	err = db.QueryRow(ctx, `SELECT request, status, body FROM api_answer WHERE caller = $1 AND key = $2`, caller, key).Scan(&sum, &before.Status, &before.Body)
	if err != nil {
		return before, false, fmt.Errorf("reading the answer of an idempotency key: %w", err)
	}
	copy(before.Request[:], sum)
	return before, false, nil
}

// KeepAnswer keeps the answer of a key that ClaimAnswer took, in the same transaction.
func (db *DB) KeepAnswer(ctx context.Context, caller, key string, a Answer) error {
	if _, err := db.Exec(ctx, `UPDATE api_answer SET status = $3, body = $4 WHERE caller = $1 AND key = $2`, caller, key, a.Status, a.Body); err != nil {
		return fmt.Errorf("keeping the answer of an idempotency key: %w", err)
	}
	return nil
}

// DropAnswer gives back a key that ClaimAnswer took.
func (db *DB) DropAnswer(ctx context.Context, caller, key string) error {
	if _, err := db.Exec(ctx, `DELETE FROM api_answer WHERE caller = $1 AND key = $2`, caller, key); err != nil {
		return fmt.Errorf("giving an idempotency key back: %w", err)
	}
	return nil
}

// DropAnswersBefore forgets answers that are older.
func (db *DB) DropAnswersBefore(ctx context.Context, before time.Time) error {
	if _, err := db.Exec(ctx, `DELETE FROM api_answer WHERE created_at < $1`, before); err != nil {
		return fmt.Errorf("forgetting old answers: %w", err)
	}
	return nil
}

// KeepRefusals returns a context in which the Txn that it is given to are savepoints: what fails in one is undone, and the
// transaction around them goes on. So an event that somebody was refused commits with whatever the caller keeps of it.
func KeepRefusals(ctx context.Context) context.Context {
	return context.WithValue(ctx, keepRefusals{}, true)
}

type keepRefusals struct{}

// savepoint runs fn within a transaction that is there already.
func (db *DB) savepoint(ctx context.Context, fn func(ctx context.Context) error) error {
	// A name may be taken again: what is released or rolled back to is the newest one.
	if _, err := db.Exec(ctx, `SAVEPOINT keyherald`); err != nil {
		return fmt.Errorf("making a savepoint: %w", err)
	}
	if err := fn(ctx); err != nil {
		if _, undone := db.Exec(ctx, `ROLLBACK TO SAVEPOINT keyherald; RELEASE SAVEPOINT keyherald`); undone != nil {
			return errors.Join(err, fmt.Errorf("undoing what failed: %w", undone))
		}
		return err
	}
	if _, err := db.Exec(ctx, `RELEASE SAVEPOINT keyherald`); err != nil {
		return fmt.Errorf("ending a savepoint: %w", err)
	}
	return nil
}
