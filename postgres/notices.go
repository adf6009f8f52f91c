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
)

// AudienceAdmins is the audience of the admin room; every other one is a user's id.
const AudienceAdmins = "admins"

// Notice is a message for one of the bot's rooms. ID is also its transaction id; Key names it for good: a second notice with
// the same key is not kept. Rotation is the nil UUID where it is of none.
type Notice struct {
	ID          uuid.UUID
	Key         string
	Audience    string
	Rotation    uuid.UUID
	Plain, HTML string
	CreatedAt   time.Time
	// Tries counts the times that sending it was begun.
	Tries int
}

// PutNotice keeps a notice to be sent; fresh is false where its key is known.
func (db *DB) PutNotice(ctx context.Context, n Notice) (fresh bool, err error) {
	result, err := db.Exec(ctx, `INSERT INTO notice (id, key, audience, rotation_id, plain, html, created_at, next_try) VALUES ($1, $2, $3, $4, $5, $6, $7, $7) ON CONFLICT (key) DO NOTHING`,
		n.ID, n.Key, n.Audience, uuid.NullUUID{UUID: n.Rotation, Valid: n.Rotation != uuid.Nil}, n.Plain, n.HTML, n.CreatedAt)
	if err != nil {
		return false, fmt.Errorf("keeping a notice: %w", err)
	}
	kept, err := result.RowsAffected()
	return kept > 0, err
}

// DueNotices lists pending notices whose time has come, oldest first.
func (db *DB) DueNotices(ctx context.Context, now time.Time, limit int) ([]Notice, error) {
	rows, err := db.Query(ctx, `SELECT id, key, audience, rotation_id, plain, html, created_at, tries FROM notice
		WHERE state = 'pending' AND next_try <= $1 ORDER BY id LIMIT $2`, now, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the notices: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var due []Notice
	for rows.Next() {
		var n Notice
		var rotation uuid.NullUUID
		if err := rows.Scan(&n.ID, &n.Key, &n.Audience, &rotation, &n.Plain, &n.HTML, &n.CreatedAt, &n.Tries); err != nil {
			return nil, fmt.Errorf("reading the notices: %w", err)
		}
		n.Rotation = rotation.UUID
		due = append(due, n)
	}
	return due, rows.Err()
}

// NoticesSince counts what was kept for an audience since a time.
func (db *DB) NoticesSince(ctx context.Context, audience string, since time.Time) (n int, err error) {
	if err = db.QueryRow(ctx, `SELECT COUNT(*) FROM notice WHERE audience = $1 AND created_at >= $2`, audience, since).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting notices: %w", err)
	}
	return n, nil
}

// TryNotice records that sending a notice begins; until later nobody else begins.
func (db *DB) TryNotice(ctx context.Context, key uuid.UUID, later time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE notice SET tries = tries + 1, next_try = $2 WHERE id = $1 AND state = 'pending'`, key, later); err != nil {
		return fmt.Errorf("recording that a notice is sent: %w", err)
	}
	return nil
}

// HoldNotice leaves a notice for later, because of a problem.
func (db *DB) HoldNotice(ctx context.Context, key uuid.UUID, until time.Time, problem string) error {
	if _, err := db.Exec(ctx, `UPDATE notice SET next_try = $2, error = $3 WHERE id = $1 AND state = 'pending'`, key, until, problem); err != nil {
		return fmt.Errorf("postponing a notice: %w", err)
	}
	return nil
}

// EndNotice records that a notice is sent or, with a problem, never will be, and forgets its text; ended is false where that
// was so already.
func (db *DB) EndNotice(ctx context.Context, key uuid.UUID, problem string, now time.Time) (ended bool, err error) {
	result, err := db.Exec(ctx, `UPDATE notice SET state = CASE WHEN $2 = '' THEN 'sent' ELSE 'refused' END, error = $2, ended_at = $3, plain = '', html = '' WHERE id = $1 AND state = 'pending'`,
		key, problem, now)
	if err != nil {
		return false, fmt.Errorf("recording what became of a notice: %w", err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// NoticeRoom is a room of the bot's for an audience. RoomID is empty until it is known; TriedAt is when making it was begun,
// and zero where it is known what came of that.
type NoticeRoom struct {
	Audience  string
	RoomID    id.RoomID
	TriedAt   time.Time
	Invites   int
	InvitedAt time.Time
}

// NoticeRoom reads the room of an audience; it is the zero value but for Audience where there is none.
func (db *DB) NoticeRoom(ctx context.Context, audience string) (NoticeRoom, error) {
	r := NoticeRoom{Audience: audience}
	var tried, invited sql.NullTime
	err := db.QueryRow(ctx, `SELECT room_id, tried_at, invites, invited_at FROM notice_room WHERE audience = $1`, audience).Scan(&r.RoomID, &tried, &r.Invites, &invited)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return r, fmt.Errorf("reading a notice room: %w", err)
	}
	r.TriedAt, r.InvitedAt = tried.Time, invited.Time
	return r, nil
}

// NoticeRoomIDs are all rooms that are known.
func (db *DB) NoticeRoomIDs(ctx context.Context) (map[id.RoomID]bool, error) {
	rows, err := db.Query(ctx, `SELECT room_id FROM notice_room WHERE room_id <> ''`)
	if err != nil {
		return nil, fmt.Errorf("reading the notice rooms: %w", err)
	}
	defer func() { _ = rows.Close() }()
	known := map[id.RoomID]bool{}
	for rows.Next() {
		var room id.RoomID
		if err := rows.Scan(&room); err != nil {
			return nil, fmt.Errorf("reading the notice rooms: %w", err)
		}
		known[room] = true
	}
	return known, rows.Err()
}

// TryNoticeRoom records that making a room begins; the zero time takes that back, since nothing came of it.
func (db *DB) TryNoticeRoom(ctx context.Context, audience string, at time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO notice_room (audience, tried_at) VALUES ($1, $2) ON CONFLICT (audience) DO UPDATE SET tried_at = excluded.tried_at`,
		audience, sql.NullTime{Time: at, Valid: !at.IsZero()})
	if err != nil {
		return fmt.Errorf("recording that a room is made: %w", err)
	}
	return nil
}

// SetNoticeRoom keeps the room of an audience that has none; set is false where it has one.
func (db *DB) SetNoticeRoom(ctx context.Context, audience string, room id.RoomID, now time.Time) (set bool, err error) {
	result, err := db.Exec(ctx, `INSERT INTO notice_room (audience, room_id, created_at, invites, invited_at) VALUES ($1, $2, $3, 1, $3)
		ON CONFLICT (audience) DO UPDATE SET room_id = excluded.room_id, tried_at = NULL, created_at = excluded.created_at, invites = 1, invited_at = excluded.invited_at
		WHERE notice_room.room_id = ''`, audience, room, now)
	if err != nil {
		return false, fmt.Errorf("keeping a room: %w", err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// NoticeRoomInvited records one more invitation of a user to his room.
func (db *DB) NoticeRoomInvited(ctx context.Context, audience string, now time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE notice_room SET invites = invites + 1, invited_at = $2 WHERE audience = $1`, audience, now); err != nil {
		return fmt.Errorf("recording an invitation: %w", err)
	}
	return nil
}

// InvitedAdmin records that somebody is invited to the admin room; fresh is false where he was before.
func (db *DB) InvitedAdmin(ctx context.Context, user id.UserID, now time.Time) (fresh bool, err error) {
	result, err := db.Exec(ctx, `INSERT INTO notice_admin (user_id, invited_at) VALUES ($1, $2) ON CONFLICT DO NOTHING`, user, now)
	if err != nil {
		return false, fmt.Errorf("recording an invitation: %w", err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// KeepAdmins forgets that anybody else was invited to the admin room.
func (db *DB) KeepAdmins(ctx context.Context, users []id.UserID) error {
	if _, err := db.Exec(ctx, `DELETE FROM notice_admin WHERE user_id <> ALL($1::text[])`, pq.Array(users)); err != nil {
		return fmt.Errorf("forgetting invitations: %w", err)
	}
	return nil
}

// noticeCause is what there is to tell of a rotation: a cause of needs_attention while it is open, the state where it came
// to an end that says something. The index rotation_untold has the same expression.
const noticeCause = `CASE WHEN ended_at IS NULL THEN needs_attention WHEN state IN ('done', 'failed', 'timed_out') THEN state ELSE '' END`

// UntoldRotations lists the rotations whose user may have to be told of how they stand, the longest waiting first.
func (db *DB) UntoldRotations(ctx context.Context, limit int) ([]Rotation, error) {
	return db.rotations(ctx, noticeCause+` NOT IN ('', notice_told) ORDER BY updated_at LIMIT $1`, limit)
}

// NoticeTold records that the user was told, or is not to be told, of how a rotation stands.
func (db *DB) NoticeTold(ctx context.Context, key uuid.UUID) error {
	if _, err := db.Exec(ctx, `UPDATE rotation SET notice_told = `+noticeCause+` WHERE id = $1`, key); err != nil {
		return fmt.Errorf("recording that a user was told: %w", err)
	}
	return nil
}

// NoticesTooLate has nobody told of what happened before a time.
func (db *DB) NoticesTooLate(ctx context.Context, before time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE rotation SET notice_told = `+noticeCause+` WHERE updated_at < $1 AND `+noticeCause+` NOT IN ('', notice_told)`, before); err != nil {
		return fmt.Errorf("passing over what is too old to be told: %w", err)
	}
	return nil
}

// NoticeDigest reads what the admin room was told last, as JSON, and locks it; it is nil where it was told nothing yet.
func (db *DB) NoticeDigest(ctx context.Context) (status []byte, toldAt time.Time, err error) {
	err = db.QueryRow(ctx, `SELECT status, told_at FROM notice_digest FOR UPDATE`).Scan(&status, &toldAt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, time.Time{}, nil
	} else if err != nil {
		return nil, toldAt, fmt.Errorf("reading what the admin room was told: %w", err)
	}
	return status, toldAt, nil
}

// SetNoticeDigest keeps what the admin room is told.
func (db *DB) SetNoticeDigest(ctx context.Context, status []byte, now time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO notice_digest (singleton, status, told_at) VALUES (1, $1, $2) ON CONFLICT (singleton) DO UPDATE SET status = excluded.status, told_at = excluded.told_at`, string(status), now)
	if err != nil {
		return fmt.Errorf("keeping what the admin room is told: %w", err)
	}
	return nil
}
