package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Rotation is a row of its table.
type Rotation struct {
	ID         uuid.UUID
	UserID     id.UserID
	Secret     string
	KMS        protocol.KMSRef
	Source     string
	Facts      rotation.Facts
	NextAction string
	// Held rotations wait, for an admin's release or until the audit log is signed again: HeldFor says what for.
	Held    bool
	HeldFor rotation.Hold
	// Reason is why the key was rotated, where that is known: empty for a plain change.
	Reason rotation.Reason
	// ReadVersion is the version whose reading by somebody else opened the rotation, where that is why and it is known.
	ReadVersion string
	// Action is what the device is to do. Where it makes the key, the version is Pending until the device says which one
	// it became.
	Action protocol.Action
	// OldBackupGrace is how long the key backup that is replaced is kept; nil is as the device's account file says.
	OldBackupGrace *protocol.Seconds
	// ReplaceRecovery asks for a new recovery key as well.
	ReplaceRecovery bool
	CreatedAt       time.Time
	UpdatedAt       time.Time
	EndedAt         time.Time
}

const rotationColumns = `id, user_id, secret, kms, path, version, source, state, stage, backup_version, recovery_copy,
	carry_complete, pushed, needs_attention, failure, next_action, created_at, updated_at, ended_at, held, held_for, reason, read_version, action, old_backup_grace, replace_recovery`

func scanRotation(row interface{ Scan(...any) error }) (Rotation, error) {
	var r Rotation
	var ended sql.NullTime
	err := row.Scan(&r.ID, &r.UserID, &r.Secret, &r.KMS.Name, &r.KMS.Path, &r.KMS.Version, &r.Source, &r.Facts.State, &r.Facts.Stage,
		&r.Facts.BackupVersion, &r.Facts.RecoveryCopy, &r.Facts.CarryComplete, &r.Facts.Pushed, &r.Facts.Attention, &r.Facts.Failure,
		&r.NextAction, &r.CreatedAt, &r.UpdatedAt, &ended, &r.Held, &r.HeldFor, &r.Reason, &r.ReadVersion, &r.Action,
		&r.OldBackupGrace, &r.ReplaceRecovery)
	r.EndedAt = ended.Time
	return r, err
}

// Rotations lists rotations, newest first: of one user, or all for an empty user; open ones only if open.
func (db *DB) Rotations(ctx context.Context, user id.UserID, open bool) ([]Rotation, error) {
	return db.rotations(ctx, `($1 = '' OR r.user_id = $1) AND (NOT $2 OR r.ended_at IS NULL) ORDER BY r.id DESC LIMIT 10000`, user, open)
}

// AllRotations lists every rotation, oldest first.
func (db *DB) AllRotations(ctx context.Context) ([]Rotation, error) {
	return db.rotations(ctx, `true ORDER BY r.id`)
}

func (db *DB) rotations(ctx context.Context, where string, args ...any) ([]Rotation, error) {
	return collect(ctx, db, "the rotations", scanRotation, `SELECT `+rotationColumns+` FROM rotation r WHERE `+where, args...)
}

// Rotation reads a rotation; ok is false if there is none.
func (db *DB) Rotation(ctx context.Context, key uuid.UUID) (r Rotation, ok bool, err error) {
	return db.rotation(ctx, key, "")
}

// LockRotation reads a rotation and locks it until the transaction ends; ok is false if there is none.
func (db *DB) LockRotation(ctx context.Context, key uuid.UUID) (r Rotation, ok bool, err error) {
	return db.rotation(ctx, key, " FOR UPDATE")
}

func (db *DB) rotation(ctx context.Context, key uuid.UUID, lock string) (r Rotation, ok bool, err error) {
	r, err = scanRotation(db.QueryRow(ctx, `SELECT `+rotationColumns+` FROM rotation WHERE id = $1`+lock, key))
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	} else if err != nil {
		return r, false, fmt.Errorf("reading rotation %s: %w", key, err)
	}
	return r, true, nil
}

// Place is where a secret of a user lives: its rotations follow each other.
type Place struct {
	UserID            id.UserID
	Secret, KMS, Path string
}

// Place is the rotation's place.
func (r Rotation) Place() Place { return Place{r.UserID, r.Secret, r.KMS.Name, r.KMS.Path} }

// RotationsAt lists the rotations of places, open or ended, newest first.
func (db *DB) RotationsAt(ctx context.Context, places []Place) ([]Rotation, error) {
	users, secrets, kms, paths := columnsOf(places)
	return db.rotations(ctx, `(user_id, secret, kms, path) IN
		(SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])) ORDER BY id DESC`,
		pq.Array(users), pq.Array(secrets), pq.Array(kms), pq.Array(paths))
}

func columnsOf(places []Place) (users, secrets, kms, paths []string) {
	for _, p := range places {
		users, secrets, kms, paths = append(users, string(p.UserID)), append(secrets, p.Secret), append(kms, p.KMS), append(paths, p.Path)
	}
	return users, secrets, kms, paths
}

// InsertRotations makes rotations, which exist only once for a place and version.
func (db *DB) InsertRotations(ctx context.Context, rotations []Rotation) error {
	if len(rotations) == 0 {
		return nil
	}
	var columns [13][]string
	graces, replace := make([]sql.NullInt64, len(rotations)), make([]bool, len(rotations))
	created, ended, held := make([]time.Time, len(rotations)), make([]sql.NullTime, len(rotations)), make([]bool, len(rotations))
	for i, r := range rotations {
		for c, value := range []string{r.ID.String(), string(r.UserID), r.Secret, r.KMS.Name, r.KMS.Path, r.KMS.Version, r.Source, string(r.Facts.State), r.NextAction, string(r.HeldFor), string(r.Reason), string(r.Action), r.ReadVersion} {
			columns[c] = append(columns[c], value)
		}
		held[i], replace[i] = r.Held, r.ReplaceRecovery
		if r.OldBackupGrace != nil {
			graces[i] = sql.NullInt64{Int64: int64(*r.OldBackupGrace), Valid: true}
		}
		created[i], ended[i] = r.CreatedAt, sql.NullTime{Time: r.EndedAt, Valid: !r.EndedAt.IsZero()}
	}
	args := make([]any, 0, len(columns)+5)
	for _, column := range columns {
		args = append(args, pq.Array(column))
	}
	_, err := db.Exec(ctx, `INSERT INTO rotation (id, user_id, secret, kms, path, version, source, state, next_action, held_for, reason, action, read_version,
			created_at, updated_at, ended_at, held, old_backup_grace, replace_recovery)
		SELECT id, user_id, secret, kms, path, version, source, state, next_action, held_for, reason, action, read_version,
			created_at, created_at, ended_at, held, grace, replace FROM unnest(
			$1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
			$14::timestamptz[], $15::timestamptz[], $16::boolean[], $17::bigint[], $18::boolean[])
			AS fresh (id, user_id, secret, kms, path, version, source, state, next_action, held_for, reason, action, read_version, created_at, ended_at, held, grace, replace)`,
		append(args, pq.Array(created), pq.Array(ended), pq.Array(held), pq.Array(graces), pq.Array(replace))...)
	if err != nil {
		return fmt.Errorf("keeping rotations: %w", err)
	}
	return nil
}

// Supersede ends those of the rotations that are still open, and says which these were.
func (db *DB) Supersede(ctx context.Context, rotations []uuid.UUID, now time.Time) (map[uuid.UUID]bool, error) {
	superseded := map[uuid.UUID]bool{}
	if len(rotations) == 0 {
		return superseded, nil
	}
	// Whoever locks several rotations does it newest first, so that nobody waits in a circle.
	rows, err := db.Query(ctx, `WITH still_open AS (
			SELECT id FROM rotation WHERE id = ANY($1::uuid[]) AND ended_at IS NULL ORDER BY id DESC FOR NO KEY UPDATE)
		UPDATE rotation SET state = $2, needs_attention = '', next_action = '', updated_at = $3, ended_at = $3
		FROM still_open WHERE rotation.id = still_open.id RETURNING rotation.id`, pq.Array(rotations), rotation.Superseded, now)
	if err != nil {
		return nil, fmt.Errorf("superseding rotations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var key uuid.UUID
		if err := rows.Scan(&key); err != nil {
			return nil, fmt.Errorf("superseding rotations: %w", err)
		}
		superseded[key] = true
	}
	return superseded, rows.Err()
}

// CancelRotations ends those of the rotations that are still open, and says whose these were.
func (db *DB) CancelRotations(ctx context.Context, keys []uuid.UUID, now time.Time) (map[uuid.UUID]id.UserID, error) {
	rows, err := db.Query(ctx, `WITH still_open AS (
			SELECT id FROM rotation WHERE id = ANY($1::uuid[]) AND ended_at IS NULL ORDER BY id DESC FOR NO KEY UPDATE)
		UPDATE rotation SET state = $2, needs_attention = '', next_action = '', updated_at = $3, ended_at = $3
		FROM still_open WHERE rotation.id = still_open.id RETURNING rotation.id, rotation.user_id`, pq.Array(keys), rotation.Cancelled, now)
	if err != nil {
		return nil, fmt.Errorf("cancelling rotations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	cancelled := map[uuid.UUID]id.UserID{}
	for rows.Next() {
		var key uuid.UUID
		var user id.UserID
		if err := rows.Scan(&key, &user); err != nil {
			return nil, fmt.Errorf("cancelling rotations: %w", err)
		}
		cancelled[key] = user
	}
	return cancelled, rows.Err()
}

// UpdateRotation writes the facts of a locked rotation.
func (db *DB) UpdateRotation(ctx context.Context, r Rotation, now time.Time) error {
	var ended any
	if r.Facts.State.Ended() {
		ended = now
	}
	_, err := db.Exec(ctx, `UPDATE rotation SET state = $2, stage = $3, backup_version = $4, recovery_copy = $5, carry_complete = $6,
		pushed = $7, needs_attention = $8, failure = $9, next_action = $10, updated_at = $11,
		ended_at = CASE WHEN $12::timestamptz IS NULL THEN NULL ELSE COALESCE(ended_at, $12) END WHERE id = $1`,
		r.ID, r.Facts.State, r.Facts.Stage, r.Facts.BackupVersion, r.Facts.RecoveryCopy, r.Facts.CarryComplete, r.Facts.Pushed,
		r.Facts.Attention, r.Facts.Failure, r.NextAction, now, ended)
	if err != nil {
		return fmt.Errorf("updating rotation %s: %w", r.ID, err)
	}
	return nil
}

// NextSequence gives out the next sequence of a user and secret, above floor, and never the same twice.
func (db *DB) NextSequence(ctx context.Context, user id.UserID, secret string, floor int64, now time.Time) (int64, error) {
	var last int64
	err := db.QueryRow(ctx, `SELECT last FROM sequence_mark WHERE user_id = $1 AND secret = $2 FOR UPDATE`, user, secret).Scan(&last)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("reading the sequence of %s: %w", user, err)
	}
	next := rotation.NextSequence(max(last, floor), now)
	_, err = db.Exec(ctx, `INSERT INTO sequence_mark (user_id, secret, last) VALUES ($1, $2, $3) ON CONFLICT (user_id, secret) DO UPDATE SET last = excluded.last`,
		user, secret, next)
	if err != nil {
		return 0, fmt.Errorf("keeping the sequence of %s: %w", user, err)
	}
	return next, nil
}

// LastSequence is the highest sequence given out for a user, over all secrets.
func (db *DB) LastSequence(ctx context.Context, user id.UserID) (last int64, err error) {
	if err = db.QueryRow(ctx, `SELECT COALESCE(MAX(last), 0) FROM sequence_mark WHERE user_id = $1`, user).Scan(&last); err != nil {
		return 0, fmt.Errorf("reading the sequence of %s: %w", user, err)
	}
	return last, nil
}

// FirstReport records a report's id and says whether it is the first time.
func (db *DB) FirstReport(ctx context.Context, report uuid.UUID, rotationID uuid.NullUUID, device uuid.UUID, now time.Time) (bool, error) {
	result, err := db.Exec(ctx, `INSERT INTO report (id, rotation_id, device, received_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, report, rotationID, device, now)
	if err != nil {
		return false, fmt.Errorf("recording a report: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}
