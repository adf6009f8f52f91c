package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/rotation"
)

// DueRotations lists, in the order of their ids and above after, rotations that may be due by rotation.Due and for
// which somebody could act: it narrows the search, and the rule decides. A rotation that waits costs nothing here.
func (db *DB) DueRotations(ctx context.Context, now time.Time, ackTimeout time.Duration, after uuid.UUID, limit int) ([]Rotation, error) {
	return db.rotations(ctx, `r.ended_at IS NULL AND NOT r.held AND r.id > $1 AND (
		r.state = 'received'
		OR r.state = 'waiting_for_enrollment' AND EXISTS (SELECT 1 FROM device d WHERE d.user_id = r.user_id AND d.state = 'enrolled')
		OR r.state = 'working' AND EXISTS (SELECT 1 FROM attempt a WHERE a.rotation_id = r.id AND a.stage = '' AND a.sent_at <= $2)
			AND EXISTS (SELECT 1 FROM device d WHERE d.user_id = r.user_id AND d.state = 'enrolled'
				AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.rotation_id = r.id AND a.device = d.id)))
		ORDER BY r.id LIMIT $3`, after, now.Add(-ackTimeout), limit)
}

// WorkingUsers lists the users whose devices were triggered for a rotation that is open.
func (db *DB) WorkingUsers(ctx context.Context) ([]id.UserID, error) {
	rows, err := db.Query(ctx, `SELECT DISTINCT user_id FROM rotation WHERE ended_at IS NULL AND state = 'working'`)
	if err != nil {
		return nil, fmt.Errorf("reading whose devices were triggered: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var users []id.UserID
	for rows.Next() {
		var user id.UserID
		if err := rows.Scan(&user); err != nil {
			return nil, fmt.Errorf("reading whose devices were triggered: %w", err)
		}
		users = append(users, user)
	}
	return users, rows.Err()
}

// LockFreeRotations reads rotations and locks them until the transaction ends; those that another transaction holds
// are left out, since that one's commit makes them due again if they are.
func (db *DB) LockFreeRotations(ctx context.Context, keys []uuid.UUID) ([]Rotation, error) {
	return db.rotations(ctx, `r.id = ANY($1) ORDER BY r.id FOR UPDATE SKIP LOCKED`, pq.Array(keys))
}

// MoveRotations writes the state and next action of locked rotations whose other facts stay as they are.
func (db *DB) MoveRotations(ctx context.Context, keys []uuid.UUID, state rotation.State, nextAction string, now time.Time) error {
	_, err := db.Exec(ctx, `UPDATE rotation SET state = $2, next_action = $3, updated_at = $4 WHERE id = ANY($1)`, pq.Array(keys), state, nextAction, now)
	if err != nil {
		return fmt.Errorf("moving rotations to %s: %w", state, err)
	}
	return nil
}

// AttemptsOf lists the attempts of several rotations, each in their order.
func (db *DB) AttemptsOf(ctx context.Context, keys []uuid.UUID) (map[uuid.UUID][]Attempt, error) {
	attempts, err := db.attempts(ctx, `rotation_id = ANY($1)`, pq.Array(keys))
	if err != nil {
		return nil, err
	}
	of := make(map[uuid.UUID][]Attempt, len(keys))
	for _, a := range attempts {
		of[a.RotationID] = append(of[a.RotationID], a)
	}
	return of, nil
}

// InsertAttempts keeps new attempts.
func (db *DB) InsertAttempts(ctx context.Context, attempts []Attempt, now time.Time) error {
	rotations, devices := make([]uuid.UUID, len(attempts)), make([]uuid.UUID, len(attempts))
	numbers, sequences := make([]int64, len(attempts)), make([]int64, len(attempts))
	for i, a := range attempts {
		rotations[i], devices[i], numbers[i], sequences[i] = a.RotationID, a.Device, int64(a.Number), a.Sequence
	}
	_, err := db.Exec(ctx, `INSERT INTO attempt (rotation_id, attempt, device, sequence, created_at)
		SELECT r, n, d, s, $5 FROM unnest($1::uuid[], $2::integer[], $3::uuid[], $4::bigint[]) AS new (r, n, d, s)`,
		pq.Array(rotations), pq.Array(numbers), pq.Array(devices), pq.Array(sequences), now)
	if err != nil {
		return fmt.Errorf("keeping attempts: %w", err)
	}
	return nil
}

// AttemptsSent records that the homeserver took the triggers of these attempts.
func (db *DB) AttemptsSent(ctx context.Context, attempts []Attempt, now time.Time) error {
	rotations, numbers := make([]uuid.UUID, len(attempts)), make([]int64, len(attempts))
	for i, a := range attempts {
		rotations[i], numbers[i] = a.RotationID, int64(a.Number)
	}
	_, err := db.Exec(ctx, `UPDATE attempt SET sent_at = COALESCE(sent_at, $3) FROM unnest($1::uuid[], $2::integer[]) AS sent (r, n)
		WHERE rotation_id = sent.r AND attempt = sent.n`, pq.Array(rotations), pq.Array(numbers), now)
	if err != nil {
		return fmt.Errorf("recording sent triggers: %w", err)
	}
	return nil
}

// DevicesOf lists the devices of several users, each user's in the order of enrollment.
func (db *DB) DevicesOf(ctx context.Context, users []id.UserID) (map[id.UserID][]Device, error) {
	devices, err := db.devices(ctx, `user_id = ANY($1) ORDER BY user_id, enrolled_at, id`, pq.Array(users))
	if err != nil {
		return nil, err
	}
	of := make(map[id.UserID][]Device, len(users))
	for _, d := range devices {
		of[d.UserID] = append(of[d.UserID], d)
	}
	return of, nil
}

// UserSecret is what sequences are counted by.
type UserSecret struct {
	User   id.UserID
	Secret string
}

// LockSequences reads the highest sequences given out and locks them until the transaction ends; a pair without one is
// missing in the answer.
func (db *DB) LockSequences(ctx context.Context, pairs []UserSecret) (map[UserSecret]int64, error) {
	users, secrets := unzip(pairs)
	rows, err := db.Query(ctx, `SELECT user_id, secret, last FROM sequence_mark WHERE (user_id, secret) IN (SELECT * FROM unnest($1::text[], $2::text[]))
		ORDER BY user_id, secret FOR UPDATE`, pq.Array(users), pq.Array(secrets))
	if err != nil {
		return nil, fmt.Errorf("reading the sequences: %w", err)
	}
	defer func() { _ = rows.Close() }()
	last := map[UserSecret]int64{}
	for rows.Next() {
		var pair UserSecret
		var mark int64
		if err := rows.Scan(&pair.User, &pair.Secret, &mark); err != nil {
			return nil, fmt.Errorf("reading the sequences: %w", err)
		}
		last[pair] = mark
	}
	return last, rows.Err()
}

// PutSequences keeps the highest sequences given out. A mark never goes back, whoever came between.
func (db *DB) PutSequences(ctx context.Context, marks map[UserSecret]int64) error {
	pairs, last := make([]UserSecret, 0, len(marks)), make([]int64, 0, len(marks))
	for pair, mark := range marks {
		pairs, last = append(pairs, pair), append(last, mark)
	}
	users, secrets := unzip(pairs)
	_, err := db.Exec(ctx, `INSERT INTO sequence_mark (user_id, secret, last) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
		ON CONFLICT (user_id, secret) DO UPDATE SET last = GREATEST(sequence_mark.last, excluded.last)`, pq.Array(users), pq.Array(secrets), pq.Array(last))
	if err != nil {
		return fmt.Errorf("keeping the sequences: %w", err)
	}
	return nil
}

func unzip(pairs []UserSecret) (users, secrets []string) {
	for _, pair := range pairs {
		users, secrets = append(users, string(pair.User)), append(secrets, pair.Secret)
	}
	return users, secrets
}
