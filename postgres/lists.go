package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// conditions collects a WHERE clause; a ? stands for the value.
type conditions struct {
	texts []string
	args  []any
}

func (c *conditions) add(condition string, value any) {
	c.args = append(c.args, value)
	c.texts = append(c.texts, strings.ReplaceAll(condition, "?", fmt.Sprintf("$%d", len(c.args))))
}

func (c *conditions) String() string {
	return strings.Join(append([]string{"true"}, c.texts...), " AND ")
}

// limit is a LIMIT clause.
func (c *conditions) limit(n int) string {
	c.args = append(c.args, n)
	return fmt.Sprintf(" LIMIT $%d", len(c.args))
}

// RotationFilter chooses rotations; what is zero chooses all. Before is the last one of the page before.
type RotationFilter struct {
	User      id.UserID
	State     rotation.State
	Open      bool
	Attention bool
	Held      bool
	Before    uuid.UUID
	Limit     int
}

// ListRotations is a page of rotations, newest first.
func (db *DB) ListRotations(ctx context.Context, f RotationFilter) ([]Rotation, error) {
	var where conditions
	if f.User != "" {
		where.add("user_id = ?", f.User)
	}
	if len(f.State) > 0 {
		where.add("state = ?", f.State)
	}
	if f.Open {
		where.texts = append(where.texts, "ended_at IS NULL")
	}
	if f.Attention {
		where.texts = append(where.texts, "needs_attention <> ''")
	}
	if f.Held {
		where.texts = append(where.texts, "held AND ended_at IS NULL")
	}
	if f.Before != uuid.Nil {
		where.add("id < ?", f.Before)
	}
	clause := where.String() + " ORDER BY id DESC" + where.limit(f.Limit)
	return db.rotations(ctx, clause, where.args...)
}

// DeviceFilter chooses devices; what is zero chooses all. AfterUser and AfterID are the last one of the page before.
type DeviceFilter struct {
	User      id.UserID
	State     DeviceState
	AfterUser id.UserID
	AfterID   uuid.UUID
	Limit     int
}

// ListDevices is a page of managed devices, by user and in the order of their numbers.
func (db *DB) ListDevices(ctx context.Context, f DeviceFilter) ([]Device, error) {
	var where conditions
	if f.User != "" {
		where.add("user_id = ?", f.User)
	}
	if f.State != "" {
		where.add("state = ?", f.State)
	}
	if f.AfterUser != "" {
		where.add("(user_id, id) > (?, ", f.AfterUser)
		where.args = append(where.args, f.AfterID)
		where.texts[len(where.texts)-1] += fmt.Sprintf("$%d)", len(where.args))
	}
	clause := where.String() + " ORDER BY user_id, id" + where.limit(f.Limit)
	return db.devices(ctx, clause, where.args...)
}

// UserRow is a user whom Keyherald has to do with: who is on the roster, or has or had a managed device or a rotation.
type UserRow struct {
	UserID   id.UserID
	Enrolled int  // how many managed devices are enrolled
	OnRoster bool // whether he must be covered
	// Newest is the user's newest rotation; its ID is uuid.Nil where he had none.
	Newest struct {
		ID         uuid.UUID
		State      rotation.State
		Stage      protocol.Stage
		Attention  protocol.ErrorCode
		NextAction string
		Held       bool
		UpdatedAt  time.Time
	}
	// LastDone is when a rotation of the user was last done; zero for never.
	LastDone time.Time
}

// usersQuery is a page of users; $1 is the last user of the page before, $2 how many, and $3 the only one that is meant,
// where it is not empty.
const usersQuery = `WITH page AS (SELECT user_id FROM (
		(SELECT DISTINCT user_id FROM device WHERE user_id > $1 AND ($3 = '' OR user_id = $3) ORDER BY user_id LIMIT $2)
		UNION (SELECT DISTINCT user_id FROM rotation WHERE user_id > $1 AND ($3 = '' OR user_id = $3) ORDER BY user_id LIMIT $2)
		UNION (SELECT user_id FROM roster WHERE user_id > $1 AND ($3 = '' OR user_id = $3) ORDER BY user_id LIMIT $2)) everybody
		ORDER BY user_id LIMIT $2)
	SELECT page.user_id, (SELECT COUNT(*) FROM device d WHERE d.user_id = page.user_id AND d.state = 'enrolled'),
		EXISTS (SELECT 1 FROM roster WHERE roster.user_id = page.user_id),
		newest.id, COALESCE(newest.state, ''), COALESCE(newest.stage, ''), COALESCE(newest.needs_attention, ''), COALESCE(newest.next_action, ''), COALESCE(newest.held, false), newest.updated_at,
		(SELECT MAX(ended_at) FROM rotation d WHERE d.user_id = page.user_id AND d.state = 'done')
	FROM page LEFT JOIN LATERAL (SELECT id, state, stage, needs_attention, next_action, held, updated_at FROM rotation r WHERE r.user_id = page.user_id ORDER BY r.id DESC LIMIT 1) newest ON true
	ORDER BY page.user_id`

// ListUsers is a page of users by their ids, after one.
func (db *DB) ListUsers(ctx context.Context, after id.UserID, limit int) ([]UserRow, error) {
	return db.users(ctx, after, limit, "")
}

// User is what ListUsers says of one user; ok is false where Keyherald has nothing to do with him.
func (db *DB) User(ctx context.Context, user id.UserID) (row UserRow, ok bool, err error) {
	rows, err := db.users(ctx, "", 1, user)
	if err != nil || len(rows) == 0 {
		return row, false, err
	}
	return rows[0], true, nil
}

func (db *DB) users(ctx context.Context, after id.UserID, limit int, only id.UserID) ([]UserRow, error) {
	rows, err := db.Query(ctx, usersQuery, after, limit, only)
	if err != nil {
		return nil, fmt.Errorf("reading the users: %w", err)
	}
	defer func() { _ = rows.Close() }()
	users := make([]UserRow, 0, limit)
	for rows.Next() {
		var u UserRow
		var newest uuid.NullUUID
		var updated, done sql.NullTime
		err := rows.Scan(&u.UserID, &u.Enrolled, &u.OnRoster, &newest, &u.Newest.State, &u.Newest.Stage, &u.Newest.Attention, &u.Newest.NextAction, &u.Newest.Held, &updated, &done)
		if err != nil {
			return nil, fmt.Errorf("reading the users: %w", err)
		}
		u.Newest.ID, u.Newest.UpdatedAt, u.LastDone = newest.UUID, updated.Time, done.Time
		users = append(users, u)
	}
	return users, rows.Err()
}
