package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/keyherald/keyherald/campaign"
)

// Campaign is a row of its table.
type Campaign struct {
	ID             uuid.UUID
	IdempotencyKey string
	// RequestHash is of what was asked for with the key, and Hash of users and parameters: what an approval is for.
	RequestHash string
	Hash        campaign.Hash
	Parameters  campaign.Parameters
	State       campaign.State
	// StateCause is why it is paused or ended, where that was not asked for.
	StateCause string
	// Wave is the running one, from 1; 0 before the first.
	Wave  int
	Users int
	// StartedBy is the actor, as the audit log shows him, and StartedKey whoever that is (audit.Actor.Identity).
	StartedBy     string
	StartedKey    string
	CreatedAt     time.Time
	NeedsApproval bool
	// AskedAt is since when approval is asked for, by AskedBy, who started or changed it; ApprovedAt is when the approval that
	// stands was given, zero for none.
	AskedAt, ApprovedAt        time.Time
	AskedBy, AskedKey          string
	BegunAt, PausedAt, EndedAt time.Time
	// WaveOpenedAt is when the last user of the running wave began; zero while some are left. CreditAt is until when the rate
	// is used up.
	WaveOpenedAt, CreditAt time.Time
}

const campaignColumns = `id, COALESCE(idempotency_key, ''), request_hash, hash, parameters, state, state_cause, wave, users, started_by, created_at, needs_approval,
	asked_at, asked_by, approved_at, begun_at, paused_at, ended_at, wave_opened_at, credit_at, started_key, asked_key`

func scanCampaign(row interface{ Scan(...any) error }) (Campaign, error) {
	var c Campaign
	var parameters []byte
	var approved, begun, paused, ended, opened, credit sql.NullTime
	err := row.Scan(&c.ID, &c.IdempotencyKey, &c.RequestHash, &c.Hash, &parameters, &c.State, &c.StateCause, &c.Wave, &c.Users, &c.StartedBy, &c.CreatedAt, &c.NeedsApproval,
		&c.AskedAt, &c.AskedBy, &approved, &begun, &paused, &ended, &opened, &credit, &c.StartedKey, &c.AskedKey)
	if err != nil {
		return c, err
	}
	c.ApprovedAt, c.BegunAt, c.PausedAt, c.EndedAt, c.WaveOpenedAt, c.CreditAt = approved.Time, begun.Time, paused.Time, ended.Time, opened.Time, credit.Time
	return c, json.Unmarshal(parameters, &c.Parameters)
}

func (db *DB) campaigns(ctx context.Context, where string, args ...any) ([]Campaign, error) {
	return collect(ctx, db, "the campaigns", scanCampaign, `SELECT `+campaignColumns+` FROM campaign c WHERE `+where, args...)
}

// CampaignFilter says which campaigns are listed, newest first.
type CampaignFilter struct {
	// State is any for an empty one.
	State campaign.State
	// After is the last campaign of the page before; uuid.Nil for the first page.
	After uuid.UUID
	// Limit is how many at most; 0 is 100.
	Limit int
}

// Campaigns lists campaigns.
func (db *DB) Campaigns(ctx context.Context, filter CampaignFilter) ([]Campaign, error) {
	if filter.Limit <= 0 {
		filter.Limit = 100
	}
	return db.campaigns(ctx, `($1 = '' OR state = $1) AND ($2::uuid = '00000000-0000-0000-0000-000000000000' OR id < $2) ORDER BY id DESC LIMIT $3`, filter.State, filter.After, filter.Limit)
}

// CampaignsToStep lists those where something may be due: those that have not ended, and those that have users whose
// rotations may still move.
func (db *DB) CampaignsToStep(ctx context.Context) ([]Campaign, error) {
	return db.campaigns(ctx, `ended_at IS NULL OR EXISTS (SELECT 1 FROM campaign_user u JOIN rotation r ON r.id = u.rotation WHERE u.campaign = c.id
		AND u.state IN ('waiting', 'working', 'needs_attention', 'failed', 'cancelled') AND u.read_at IS DISTINCT FROM r.updated_at) ORDER BY id`)
}

// Campaign reads one; ok is false if there is none.
func (db *DB) Campaign(ctx context.Context, key uuid.UUID) (c Campaign, ok bool, err error) {
	return db.oneCampaign(ctx, `id = $1`, key)
}

// LockCampaign reads one and locks it until the transaction ends. Whoever locks a campaign does it before users and
// rotations.
func (db *DB) LockCampaign(ctx context.Context, key uuid.UUID) (c Campaign, ok bool, err error) {
	return db.oneCampaign(ctx, `id = $1 FOR UPDATE`, key)
}

// CampaignByKey finds the campaign that was started with an idempotency key.
func (db *DB) CampaignByKey(ctx context.Context, key string) (c Campaign, ok bool, err error) {
	return db.oneCampaign(ctx, `idempotency_key = $1`, key)
}

func (db *DB) oneCampaign(ctx context.Context, where string, arg any) (c Campaign, ok bool, err error) {
	found, err := db.campaigns(ctx, where, arg)
	if err != nil || len(found) == 0 {
		return c, false, err
	}
	return found[0], true, nil
}

// LockCampaignStarts makes the transaction the only one, on all replicas, that starts a campaign.
func (db *DB) LockCampaignStarts(ctx context.Context) error {
	if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('keyherald campaign start', 0))`); err != nil {
		return fmt.Errorf("ordering the starts of campaigns: %w", err)
	}
	return nil
}

// TryCampaignStep makes the transaction the only one, on all replicas, that moves this campaign by itself; taken is false
// where another one does.
func (db *DB) TryCampaignStep(ctx context.Context, key uuid.UUID) (taken bool, err error) {
	err = db.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended($1, hashtextextended('keyherald campaign step', 0)))`, key.String()).Scan(&taken)
	if err != nil {
		return false, fmt.Errorf("taking the turn of campaign %s: %w", key, err)
	}
	return taken, nil
}

// InsertCampaign keeps a new campaign with its waves and users.
func (db *DB) InsertCampaign(ctx context.Context, c Campaign, places []campaign.Place) error {
	parameters, err := json.Marshal(c.Parameters)
	if err != nil {
		return fmt.Errorf("encoding a campaign: %w", err)
	}
	_, err = db.Exec(ctx, `INSERT INTO campaign (id, idempotency_key, request_hash, kind, parameters, hash, state, users, started_by, created_at, needs_approval, asked_at, asked_by, begun_at, credit_at,
			started_key, asked_key)
		VALUES ($1, NULLIF($2, ''), $3, $4, $5, $6, $7, $8, $9, $10, $11, $10, $9, $12, $12, $13, $13)`,
		c.ID, c.IdempotencyKey, c.RequestHash, c.Parameters.Kind, string(parameters), c.Hash, c.State, c.Users, c.StartedBy, c.CreatedAt, c.NeedsApproval, nullTime(c.BegunAt), c.StartedKey)
	if err != nil {
		return fmt.Errorf("keeping a campaign: %w", err)
	}
	sizes := make([]int64, len(c.Parameters.Waves))
	users, waves, turns := make([]string, len(places)), make([]int64, len(places)), make([]int64, len(places))
	for i, place := range places {
		users[i], waves[i], turns[i] = string(place.UserID), int64(place.Wave), int64(place.Turn)
		sizes[place.Wave-1]++
	}
	_, err = db.Exec(ctx, `INSERT INTO campaign_wave (campaign, wave, percent, users) SELECT $1, n, p, s FROM unnest($2::integer[], $3::integer[]) WITH ORDINALITY AS wave (p, s, n)`,
		c.ID, pq.Array(c.Parameters.Waves), pq.Array(sizes))
	if err != nil {
		return fmt.Errorf("keeping a campaign's waves: %w", err)
	}
	_, err = db.Exec(ctx, `INSERT INTO campaign_user (campaign, user_id, wave, turn, state) SELECT $1, u, w, t, 'pending' FROM unnest($2::text[], $3::integer[], $4::integer[]) AS place (u, w, t)`,
		c.ID, pq.Array(users), pq.Array(waves), pq.Array(turns))
	if err != nil {
		return fmt.Errorf("keeping a campaign's users: %w", err)
	}
	return nil
}

func nullTime(t time.Time) sql.NullTime { return sql.NullTime{Time: t, Valid: !t.IsZero()} }

// UpdateCampaign writes what moves of a locked campaign.
func (db *DB) UpdateCampaign(ctx context.Context, c Campaign) error {
	parameters, err := json.Marshal(c.Parameters)
	if err != nil {
		return fmt.Errorf("encoding a campaign: %w", err)
	}
	_, err = db.Exec(ctx, `UPDATE campaign SET parameters = $2, hash = $3, state = $4, state_cause = $5, wave = $6, needs_approval = $7, asked_at = $8, approved_at = $9, begun_at = $10,
		paused_at = $11, ended_at = $12, wave_opened_at = $13, credit_at = $14, asked_by = $15, asked_key = $16 WHERE id = $1`,
		c.ID, string(parameters), c.Hash, c.State, c.StateCause, c.Wave, c.NeedsApproval, c.AskedAt, nullTime(c.ApprovedAt), nullTime(c.BegunAt),
		nullTime(c.PausedAt), nullTime(c.EndedAt), nullTime(c.WaveOpenedAt), nullTime(c.CreditAt), c.AskedBy, c.AskedKey)
	if err != nil {
		return fmt.Errorf("updating campaign %s: %w", c.ID, err)
	}
	return nil
}

// StartedUnapproved is how many users the campaigns have that were started since then and need no approval.
func (db *DB) StartedUnapproved(ctx context.Context, since time.Time) (users int, err error) {
	err = db.QueryRow(ctx, `SELECT COALESCE(SUM(users), 0) FROM campaign WHERE NOT needs_approval AND created_at > $1`, since).Scan(&users)
	if err != nil {
		return 0, fmt.Errorf("counting who is moved without an approval: %w", err)
	}
	return users, nil
}

// PauseCampaigns pauses all that run, and returns these as they are then.
func (db *DB) PauseCampaigns(ctx context.Context, cause string, at time.Time) ([]Campaign, error) {
	return collect(ctx, db, "the campaigns that are paused", scanCampaign,
		`UPDATE campaign SET state = 'paused', state_cause = $1, paused_at = $2 WHERE state = 'running' RETURNING `+campaignColumns, cause, at)
}

// CampaignApproval is a second admin's word for what a hash stands for.
type CampaignApproval struct {
	ID       uuid.UUID
	Campaign uuid.UUID
	Hash     campaign.Hash
	// Approver is the actor, as the audit log shows him.
	Approver           string
	GivenAt, ExpiresAt time.Time
	// VoidedAt is zero while it stands; VoidCause is why it does not.
	VoidedAt  time.Time
	VoidCause string
}

// PutApproval keeps an approval.
func (db *DB) PutApproval(ctx context.Context, a CampaignApproval) error {
	_, err := db.Exec(ctx, `INSERT INTO campaign_approval (id, campaign, hash, approver, given_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		a.ID, a.Campaign, a.Hash, a.Approver, a.GivenAt, a.ExpiresAt)
	if err != nil {
		return fmt.Errorf("keeping an approval: %w", err)
	}
	return nil
}

// VoidApprovals ends the approvals of a campaign that stand, and returns how many there were.
func (db *DB) VoidApprovals(ctx context.Context, key uuid.UUID, cause string, at time.Time) (int, error) {
	result, err := db.Exec(ctx, `UPDATE campaign_approval SET voided_at = $2, void_cause = $3 WHERE campaign = $1 AND voided_at IS NULL`, key, at, cause)
	if err != nil {
		return 0, fmt.Errorf("voiding approvals: %w", err)
	}
	n, err := result.RowsAffected()
	return int(n), err
}

// Approvals lists the approvals of a campaign, oldest first.
func (db *DB) Approvals(ctx context.Context, key uuid.UUID) ([]CampaignApproval, error) {
	rows, err := db.Query(ctx, `SELECT id, campaign, hash, approver, given_at, expires_at, voided_at, void_cause FROM campaign_approval WHERE campaign = $1 ORDER BY given_at, id`, key)
	if err != nil {
		return nil, fmt.Errorf("reading approvals: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var approvals []CampaignApproval
	for rows.Next() {
		var a CampaignApproval
		var voided sql.NullTime
		if err := rows.Scan(&a.ID, &a.Campaign, &a.Hash, &a.Approver, &a.GivenAt, &a.ExpiresAt, &voided, &a.VoidCause); err != nil {
			return nil, fmt.Errorf("reading approvals: %w", err)
		}
		a.VoidedAt = voided.Time
		approvals = append(approvals, a)
	}
	return approvals, rows.Err()
}

// Latency is how long the homeserver takes for a message of the bot's; ok is false where nobody measured since then.
func (db *DB) Latency(ctx context.Context, since time.Time) (mean time.Duration, ok bool, err error) {
	var us int64
	err = db.QueryRow(ctx, `SELECT mean_us FROM homeserver_latency WHERE measured_at >= $1`, since).Scan(&us)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, fmt.Errorf("reading the homeserver's latency: %w", err)
	}
	return time.Duration(us) * time.Microsecond, true, nil
}

// Unsent is for how long the bot's oldest messages wait by now: that of those that were never sent, and that of all that the
// homeserver has not answered for good; zero for none.
func (db *DB) Unsent(ctx context.Context, now time.Time) (untried, unsent time.Duration, err error) {
	var first, all int64
	err = db.QueryRow(ctx, `SELECT COALESCE($1 - MIN(created_at) FILTER (WHERE tries = 0), 0), COALESCE($1 - MIN(created_at), 0) FROM todevice_outbox
		WHERE account_id = 'bot' AND state = 'pending'`, now.UnixMilli()).Scan(&first, &all)
	if err != nil {
		return 0, 0, fmt.Errorf("reading what waits in the outbox: %w", err)
	}
	return time.Duration(first) * time.Millisecond, time.Duration(all) * time.Millisecond, nil
}

// PutLatency keeps it.
func (db *DB) PutLatency(ctx context.Context, mean time.Duration, at time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO homeserver_latency (singleton, mean_us, measured_at) VALUES (1, $1, $2)
		ON CONFLICT (singleton) DO UPDATE SET mean_us = excluded.mean_us, measured_at = excluded.measured_at`, mean.Microseconds(), at)
	if err != nil {
		return fmt.Errorf("keeping the homeserver's latency: %w", err)
	}
	return nil
}
