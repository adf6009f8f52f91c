package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/rotation"
)

// CampaignUser is a user's row in a campaign.
type CampaignUser struct {
	UserID id.UserID
	campaign.Standing
	Wave, Turn int
	// Rotation is uuid.Nil while he has none; Joined says that it was there before the campaign came to him.
	Rotation uuid.UUID
	Joined   bool
	// BegunAt is when his turn came, SettledAt when he was done; zero before.
	BegunAt, SettledAt time.Time
	// ReadAt is the rotation's UpdatedAt when it was read last.
	ReadAt time.Time
}

const campaignUserColumns = `u.user_id, u.wave, u.turn, u.state, u.rotation, u.joined, u.cause, u.next_action, u.begun_at, u.settled_at, u.read_at`

func (u *CampaignUser) targets() (fields []any, finish func()) {
	var key uuid.NullUUID
	var begun, settled, read sql.NullTime
	return []any{&u.UserID, &u.Wave, &u.Turn, &u.State, &key, &u.Joined, &u.Cause, &u.NextAction, &begun, &settled, &read}, func() {
		u.Rotation, u.BegunAt, u.SettledAt, u.ReadAt = key.UUID, begun.Time, settled.Time, read.Time
	}
}

func (db *DB) campaignUsers(ctx context.Context, where string, args ...any) ([]CampaignUser, error) {
	rows, err := db.Query(ctx, `SELECT `+campaignUserColumns+` FROM campaign_user u WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading a campaign's users: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var users []CampaignUser
	for rows.Next() {
		var u CampaignUser
		fields, finish := u.targets()
		if err := rows.Scan(fields...); err != nil {
			return nil, fmt.Errorf("reading a campaign's users: %w", err)
		}
		finish()
		users = append(users, u)
	}
	return users, rows.Err()
}

// CampaignUserFilter says which users of a campaign are listed, in the order of their ids.
type CampaignUserFilter struct {
	Campaign uuid.UUID
	// State is any for an empty one, Wave any for 0.
	State campaign.UserState
	Wave  int
	// After is the last user of the page before; empty for the first page.
	After id.UserID
	// Limit is how many at most; 0 is 100.
	Limit int
}

// CampaignUsers lists users of a campaign.
func (db *DB) CampaignUsers(ctx context.Context, filter CampaignUserFilter) ([]CampaignUser, error) {
	if filter.Limit <= 0 {
		filter.Limit = 100
	}
	return db.campaignUsers(ctx, `u.campaign = $1 AND ($2 = '' OR u.state = $2) AND ($3 = 0 OR u.wave = $3) AND u.user_id > $4 ORDER BY u.user_id LIMIT $5`,
		filter.Campaign, filter.State, filter.Wave, filter.After, filter.Limit)
}

// CampaignUserIDs are all users of a campaign.
func (db *DB) CampaignUserIDs(ctx context.Context, key uuid.UUID) ([]id.UserID, error) {
	return db.userIDs(ctx, `SELECT user_id FROM campaign_user WHERE campaign = $1 ORDER BY user_id`, key)
}

// NextCampaignUsers are users whose turn in a wave comes next, in that order.
func (db *DB) NextCampaignUsers(ctx context.Context, key uuid.UUID, wave, limit int) ([]CampaignUser, error) {
	return db.campaignUsers(ctx, `u.campaign = $1 AND u.state = 'pending' AND u.wave = $2 ORDER BY u.turn LIMIT $3`, key, wave, limit)
}

// UnderWay are the users of a campaign whose rotations it opened and that have not ended.
func (db *DB) UnderWay(ctx context.Context, key uuid.UUID) ([]CampaignUser, error) {
	return db.campaignUsers(ctx, `u.campaign = $1 AND u.state IN ('waiting', 'working', 'needs_attention') AND NOT u.joined ORDER BY u.user_id`, key)
}

// MovedUser is a user with his rotation as it is now.
type MovedUser struct {
	CampaignUser
	Now Rotation
}

// MovedCampaignUsers are users whose rotations changed since they were read last.
func (db *DB) MovedCampaignUsers(ctx context.Context, key uuid.UUID, limit int) ([]MovedUser, error) {
	users, err := db.campaignUsers(ctx, `u.campaign = $1 AND u.state IN ('waiting', 'working', 'needs_attention', 'failed', 'cancelled')
		AND EXISTS (SELECT 1 FROM rotation r WHERE r.id = u.rotation AND r.updated_at IS DISTINCT FROM u.read_at) LIMIT $2`, key, limit)
	if err != nil || len(users) == 0 {
		return nil, err
	}
	keys := make([]uuid.UUID, len(users))
	for i, u := range users {
		keys[i] = u.Rotation
	}
	rotations, err := db.rotations(ctx, `r.id = ANY($1)`, pq.Array(keys))
	if err != nil {
		return nil, err
	}
	now := make(map[uuid.UUID]Rotation, len(rotations))
	for _, r := range rotations {
		now[r.ID] = r
	}
	moved := make([]MovedUser, len(users))
	for i, u := range users {
		moved[i] = MovedUser{u, now[u.Rotation]}
	}
	return moved, nil
}

// SetCampaignUsers writes where users of a campaign stand.
func (db *DB) SetCampaignUsers(ctx context.Context, key uuid.UUID, users []CampaignUser) error {
	if len(users) == 0 {
		return nil
	}
	n := len(users)
	ids, states, causes, actions := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	rotations, joined := make([]uuid.NullUUID, n), make([]bool, n)
	begun, settled, read := make([]sql.NullTime, n), make([]sql.NullTime, n), make([]sql.NullTime, n)
	for i, u := range users {
		ids[i], states[i], causes[i], actions[i] = string(u.UserID), string(u.State), string(u.Cause), u.NextAction
		rotations[i], joined[i] = uuid.NullUUID{UUID: u.Rotation, Valid: u.Rotation != uuid.Nil}, u.Joined
		begun[i], settled[i], read[i] = nullTime(u.BegunAt), nullTime(u.SettledAt), nullTime(u.ReadAt)
	}
	_, err := db.Exec(ctx, `UPDATE campaign_user SET state = s, rotation = r, joined = j, cause = c, next_action = n, begun_at = b, settled_at = e, read_at = a
		FROM unnest($2::text[], $3::text[], $4::uuid[], $5::boolean[], $6::text[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])
			AS moved (id, s, r, j, c, n, b, e, a) WHERE campaign = $1 AND user_id = moved.id`,
		key, pq.Array(ids), pq.Array(states), pq.Array(rotations), pq.Array(joined), pq.Array(causes), pq.Array(actions), pq.Array(begun), pq.Array(settled), pq.Array(read))
	if err != nil {
		return fmt.Errorf("moving a campaign's users: %w", err)
	}
	return nil
}

// EndPendingUsers leaves those whose turn has not come as they are, for good, and returns how many they are.
func (db *DB) EndPendingUsers(ctx context.Context, key uuid.UUID) (int, error) {
	result, err := db.Exec(ctx, `UPDATE campaign_user SET state = 'not_started' WHERE campaign = $1 AND state = 'pending'`, key)
	if err != nil {
		return 0, fmt.Errorf("ending a campaign: %w", err)
	}
	n, err := result.RowsAffected()
	return int(n), err
}

// CampaignWave is a wave with its users by their states.
type CampaignWave struct {
	Wave, Percent, Users int
	// StartedAt and PassedAt are zero before.
	StartedAt, PassedAt time.Time
	Counts              campaign.Counts
}

// CampaignWaves lists the waves of a campaign, in their order.
func (db *DB) CampaignWaves(ctx context.Context, key uuid.UUID) ([]CampaignWave, error) {
	rows, err := db.Query(ctx, `SELECT w.wave, w.percent, w.users, w.started_at, w.passed_at, COALESCE(u.state, ''), COALESCE(u.n, 0) FROM campaign_wave w
		LEFT JOIN (SELECT wave, state, COUNT(*) AS n FROM campaign_user WHERE campaign = $1 GROUP BY wave, state) u ON u.wave = w.wave
		WHERE w.campaign = $1 ORDER BY w.wave`, key)
	if err != nil {
		return nil, fmt.Errorf("reading a campaign's waves: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var waves []CampaignWave
	for rows.Next() {
		var w CampaignWave
		var started, passed sql.NullTime
		var state campaign.UserState
		var n int
		if err := rows.Scan(&w.Wave, &w.Percent, &w.Users, &started, &passed, &state, &n); err != nil {
			return nil, fmt.Errorf("reading a campaign's waves: %w", err)
		}
		w.StartedAt, w.PassedAt = started.Time, passed.Time
		if len(waves) == 0 || waves[len(waves)-1].Wave != w.Wave {
			waves = append(waves, w)
		}
		if state != "" {
			*waves[len(waves)-1].Counts.Of(state) = n
		}
	}
	return waves, rows.Err()
}

// StartWave and PassWave keep when a wave began and when it passed.
func (db *DB) StartWave(ctx context.Context, key uuid.UUID, wave int, at time.Time) error {
	return db.markWave(ctx, `started_at`, key, wave, at)
}

// PassWave: see StartWave.
func (db *DB) PassWave(ctx context.Context, key uuid.UUID, wave int, at time.Time) error {
	return db.markWave(ctx, `passed_at`, key, wave, at)
}

func (db *DB) markWave(ctx context.Context, column string, key uuid.UUID, wave int, at time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE campaign_wave SET `+column+` = $3 WHERE campaign = $1 AND wave = $2`, key, wave, at); err != nil {
		return fmt.Errorf("marking wave %d of campaign %s: %w", wave, key, err)
	}
	return nil
}

// CampaignPace is how long the users of a campaign took, of those that are done and whose rotations it opened.
func (db *DB) CampaignPace(ctx context.Context, key uuid.UUID) (pace campaign.Pace, err error) {
	var half, most sql.NullFloat64
	err = db.QueryRow(ctx, `SELECT COUNT(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds), percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds)
		FROM (SELECT EXTRACT(EPOCH FROM settled_at - begun_at)::float8 AS seconds FROM campaign_user WHERE campaign = $1 AND state = 'done' AND NOT joined AND settled_at >= begun_at) took`,
		key).Scan(&pace.Done, &half, &most)
	if err != nil {
		return pace, fmt.Errorf("reading a campaign's pace: %w", err)
	}
	pace.Half, pace.Most = time.Duration(half.Float64*float64(time.Second)), time.Duration(most.Float64*float64(time.Second))
	return pace, nil
}

// CampaignCandidate is a user whose turn has come, or may come.
type CampaignCandidate struct {
	campaign.Candidate
	// LastSeen is when a managed device of his was heard of last.
	LastSeen time.Time
	// Rotation is the one that is open, uuid.Nil for none, and HeldFor what that waits for.
	Rotation uuid.UUID
	HeldFor  rotation.Hold
	LastAt   Place
}

// CampaignCandidates says of each of these users what decides about his turn.
func (db *DB) CampaignCandidates(ctx context.Context, users []id.UserID, secret string, now time.Time) (map[id.UserID]CampaignCandidate, error) {
	rows, err := db.Query(ctx, `SELECT u.user_id, l.user_id IS NOT NULL, COALESCE(l.exempt_until > $3, false), d.n > 0, d.seen, r.id, COALESCE(r.held, false), COALESCE(r.held_for, ''),
			p.kms IS NOT NULL, COALESCE(p.kms, ''), COALESCE(p.path, '')
		FROM unnest($1::text[]) AS u (user_id)
		LEFT JOIN roster l ON l.user_id = u.user_id
		LEFT JOIN LATERAL (SELECT COUNT(*) AS n, MAX(last_seen) AS seen FROM device d WHERE d.user_id = u.user_id AND d.state = 'enrolled') d ON true
		LEFT JOIN LATERAL (SELECT id, held, held_for FROM rotation r WHERE r.user_id = u.user_id AND r.secret = $2 AND r.ended_at IS NULL ORDER BY id DESC LIMIT 1) r ON true
		LEFT JOIN LATERAL (SELECT kms, path FROM rotation p WHERE p.user_id = u.user_id AND p.secret = $2 ORDER BY id DESC LIMIT 1) p ON true`, pq.Array(users), secret, now)
	if err != nil {
		return nil, fmt.Errorf("reading whose turn it is: %w", err)
	}
	defer func() { _ = rows.Close() }()
	candidates := make(map[id.UserID]CampaignCandidate, len(users))
	for rows.Next() {
		var c CampaignCandidate
		var seen sql.NullTime
		var open uuid.NullUUID
		var held bool
		c.LastAt.Secret = secret
		if err := rows.Scan(&c.LastAt.UserID, &c.OnRoster, &c.Exempt, &c.Enrolled, &seen, &open, &held, &c.HeldFor, &c.Place, &c.LastAt.KMS, &c.LastAt.Path); err != nil {
			return nil, fmt.Errorf("reading whose turn it is: %w", err)
		}
		c.LastSeen, c.Rotation, c.Open = seen.Time, open.UUID, open.Valid
		// One that waits for the log to be signed, or for a window of its policy, goes on by itself.
		c.Held = held && c.HeldFor != rotation.HoldLogUnsigned && c.HeldFor != rotation.HoldWindow
		candidates[c.LastAt.UserID] = c
	}
	return candidates, rows.Err()
}

// RosterUserIDs are all users of the roster.
func (db *DB) RosterUserIDs(ctx context.Context) ([]id.UserID, error) {
	return db.userIDs(ctx, `SELECT user_id FROM roster ORDER BY user_id`)
}

// StormHeldUsers are the users with a rotation that the storm limit holds.
func (db *DB) StormHeldUsers(ctx context.Context) ([]id.UserID, error) {
	return db.userIDs(ctx, `SELECT DISTINCT user_id FROM rotation WHERE held AND held_for = 'storm' AND ended_at IS NULL ORDER BY user_id`)
}

func (db *DB) userIDs(ctx context.Context, query string, args ...any) ([]id.UserID, error) {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading users: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var users []id.UserID
	for rows.Next() {
		var user id.UserID
		if err := rows.Scan(&user); err != nil {
			return nil, fmt.Errorf("reading users: %w", err)
		}
		users = append(users, user)
	}
	return users, rows.Err()
}
