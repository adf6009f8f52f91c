package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
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
	// Held rotations wait for an admin's release: too many users changed at once.
	Held      bool
	CreatedAt time.Time
	UpdatedAt time.Time
	EndedAt   time.Time
}

const rotationColumns = `id, user_id, secret, kms, path, version, source, state, stage, backup_version, recovery_copy,
	carry_complete, pushed, needs_attention, failure, next_action, created_at, updated_at, ended_at, held`

func scanRotation(row interface{ Scan(...any) error }) (Rotation, error) {
	var r Rotation
	var ended sql.NullTime
	err := row.Scan(&r.ID, &r.UserID, &r.Secret, &r.KMS.Name, &r.KMS.Path, &r.KMS.Version, &r.Source, &r.Facts.State, &r.Facts.Stage,
		&r.Facts.BackupVersion, &r.Facts.RecoveryCopy, &r.Facts.CarryComplete, &r.Facts.Pushed, &r.Facts.Attention, &r.Facts.Failure,
		&r.NextAction, &r.CreatedAt, &r.UpdatedAt, &ended, &r.Held)
	r.EndedAt = ended.Time
	return r, err
}

// Rotations lists rotations, newest first: of one user, or all for an empty user; open ones only if open.
func (db *DB) Rotations(ctx context.Context, user id.UserID, open bool) ([]Rotation, error) {
	return db.rotations(ctx, `($1 = '' OR r.user_id = $1) AND (NOT $2 OR r.ended_at IS NULL) ORDER BY r.id DESC LIMIT 10000`, user, open)
}

func (db *DB) rotations(ctx context.Context, where string, args ...any) ([]Rotation, error) {
	rows, err := db.Query(ctx, `SELECT `+rotationColumns+` FROM rotation r WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the rotations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var rotations []Rotation
	for rows.Next() {
		r, err := scanRotation(rows)
		if err != nil {
			return nil, fmt.Errorf("reading the rotations: %w", err)
		}
		rotations = append(rotations, r)
	}
	return rotations, rows.Err()
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

// InsertRotation makes a rotation, or returns the one that exists for the same user, secret and KMS version.
func (db *DB) InsertRotation(ctx context.Context, r Rotation) (Rotation, bool, error) {
	result, err := db.Exec(ctx, `INSERT INTO rotation (id, user_id, secret, kms, path, version, source, state, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9) ON CONFLICT (user_id, secret, kms, path, version) DO NOTHING`,
		r.ID, r.UserID, r.Secret, r.KMS.Name, r.KMS.Path, r.KMS.Version, r.Source, r.Facts.State, r.CreatedAt)
	if err != nil {
		return r, false, fmt.Errorf("keeping a rotation: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return r, true, err
	}
	existing, err := scanRotation(db.QueryRow(ctx, `SELECT `+rotationColumns+` FROM rotation
		WHERE user_id = $1 AND secret = $2 AND kms = $3 AND path = $4 AND version = $5`, r.UserID, r.Secret, r.KMS.Name, r.KMS.Path, r.KMS.Version))
	if err != nil {
		return r, false, fmt.Errorf("reading the rotation that exists: %w", err)
	}
	return existing, false, nil
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

// Notification is a row of its table.
type Notification struct {
	Source, ID, KeyID, Problem string
	BodySHA256                 [32]byte
	RotationID                 uuid.NullUUID
}

// PutNotification keeps a notification, unless one with its source and id is there, which it returns instead.
func (db *DB) PutNotification(ctx context.Context, n Notification, now time.Time) (existing Notification, inserted bool, err error) {
	result, err := db.Exec(ctx, `INSERT INTO notification (source, id, body_sha256, key_id, received_at, rotation_id, problem)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (source, id) DO NOTHING`,
		n.Source, n.ID, n.BodySHA256[:], n.KeyID, now, n.RotationID, n.Problem)
	if err != nil {
		return n, false, fmt.Errorf("keeping a notification: %w", err)
	}
	if count, err := result.RowsAffected(); err != nil || count == 1 {
		return n, true, err
	}
	var sum []byte
	err = db.QueryRow(ctx, `SELECT source, id, key_id, problem, body_sha256, rotation_id FROM notification WHERE source = $1 AND id = $2`, n.Source, n.ID).
		Scan(&existing.Source, &existing.ID, &existing.KeyID, &existing.Problem, &sum, &existing.RotationID)
	if err != nil {
		return n, false, fmt.Errorf("reading the notification that exists: %w", err)
	}
	copy(existing.BodySHA256[:], sum)
	return existing, false, nil
}

// SetNotificationRotation names the rotation a kept notification belongs to.
func (db *DB) SetNotificationRotation(ctx context.Context, source, notificationID string, key uuid.UUID) error {
	_, err := db.Exec(ctx, `UPDATE notification SET rotation_id = $3 WHERE source = $1 AND id = $2`, source, notificationID, key)
	if err != nil {
		return fmt.Errorf("binding a notification to its rotation: %w", err)
	}
	return nil
}
