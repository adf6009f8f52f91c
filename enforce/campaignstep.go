package enforce

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

const (
	// beginBatch is how many users begin in one transaction: how long its locks are held.
	beginBatch = 200
	// readBatch is how many rotations are read in one.
	readBatch = 2000
	// silent is how long a device that reports every hour is not heard of before it counts as offline.
	silent = 3 * time.Hour
	// latencyLife is how long a measurement of the homeserver says something.
	latencyLife = 5 * time.Minute
)

// StepCampaigns moves every campaign as far as it may go now: it reads what became of its rotations, ends waves, and begins
// users at the rate that is allowed. It may run on any replica, any time; each campaign is moved by one at a time.
func (e *Enforcer) StepCampaigns(ctx context.Context) error {
	campaigns, err := e.db.CampaignsToStep(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, c := range campaigns {
		for again := true; again && ctx.Err() == nil; {
			if again, err = e.stepCampaign(ctx, c.ID); err != nil {
				all, again = errors.Join(all, fmt.Errorf("campaign %s: %w", c.ID, err)), false
			}
		}
	}
	return all
}

// stepCampaign is one transaction; again says that there is more to do at once.
func (e *Enforcer) stepCampaign(ctx context.Context, key uuid.UUID) (again bool, err error) {
	err = e.db.Txn(ctx, func(ctx context.Context) error {
		again = false
		if taken, err := e.db.TryCampaignStep(ctx, key); err != nil || !taken {
			return err
		}
		c, ok, err := e.db.LockCampaign(ctx, key)
		if err != nil || !ok {
			return err
		}
		if again, err = e.readRotations(ctx, key); err != nil || again {
			return err
		}
		before := c
		switch c.State {
		case campaign.AwaitingApproval:
			err = e.expire(ctx, &c)
		case campaign.Running:
			again, err = e.advance(ctx, &c)
		}
		if err != nil || reflect.DeepEqual(c, before) {
			return err
		}
		return e.db.UpdateCampaign(ctx, c)
	})
	return again && err == nil, err
}

// readRotations takes up what became of users' rotations, and says whether there are more to read. What happened to the
// rotations stands in the audit log already; here it is only read.
func (e *Enforcer) readRotations(ctx context.Context, key uuid.UUID) (more bool, err error) {
	moved, err := e.db.MovedCampaignUsers(ctx, key, readBatch)
	if err != nil || len(moved) == 0 {
		return false, err
	}
	var overtaken []postgres.Rotation
	for _, u := range moved {
		if u.Now.Facts.State == rotation.Superseded {
			overtaken = append(overtaken, u.Now)
		}
	}
	successors, err := e.engine.Successors(ctx, overtaken)
	if err != nil {
		return false, err
	}
	users := make([]postgres.CampaignUser, len(moved))
	for i, u := range moved {
		r := u.Now
		if next, ok := successors[r.ID]; ok {
			// It is not the campaign's own any more.
			r, u.Joined = next, true
		}
		u.Standing = campaign.StandingOf(r.Facts, r.Held, r.NextAction)
		u.Rotation, u.ReadAt, u.SettledAt = r.ID, r.UpdatedAt, time.Time{}
		if u.State == campaign.Done {
			u.SettledAt = r.EndedAt
		}
		users[i] = u.CampaignUser
	}
	if err := e.db.SetCampaignUsers(ctx, key, users); err != nil {
		return false, err
	}
	return len(moved) == readBatch, e.db.Notify(ctx, CampaignChannel, key.String())
}

// expire ends a campaign that nobody approved in time.
func (e *Enforcer) expire(ctx context.Context, c *postgres.Campaign) error {
	now := e.now()
	if now.Sub(c.AskedAt) <= campaign.ApprovalLife {
		return nil
	}
	notStarted, err := e.db.EndPendingUsers(ctx, c.ID)
	if err != nil {
		return err
	}
	c.State, c.StateCause, c.EndedAt = campaign.Aborted, string(audit.CauseApprovalExpired), now
	return e.tell(ctx, *c, e.event(*c, audit.CampaignAborted, now, audit.Word("why", audit.CauseApprovalExpired), audit.Number("not_started", notStarted)))
}

func (e *Enforcer) event(c postgres.Campaign, action audit.Action, now time.Time, detail ...audit.Field) audit.Event {
	return audit.Event{Time: now, Actor: audit.ByRelay(), Action: action, Subject: audit.OfCampaign(c.ID), Outcome: audit.Accepted, Detail: detail}
}

// advance judges the running wave and begins users of it.
func (e *Enforcer) advance(ctx context.Context, c *postgres.Campaign) (again bool, err error) {
	waves, err := e.db.CampaignWaves(ctx, c.ID)
	if err != nil {
		return false, err
	}
	now := e.now()
	if c.Wave == 0 {
		if !approved(c, now) {
			return false, e.pause(ctx, c, audit.CauseApprovalExpired, now)
		}
		return true, e.startWave(ctx, c, waves)
	}
	wave, all := waves[c.Wave-1].Counts, Total(waves)
	var opened time.Duration
	if !c.WaveOpenedAt.IsZero() {
		opened = now.Sub(c.WaveOpenedAt)
	}
	switch campaign.Judge(c.Parameters, wave, all, opened) {
	case campaign.Stop:
		notStarted, err := e.db.EndPendingUsers(ctx, c.ID)
		if err != nil {
			return false, err
		}
		c.State, c.StateCause, c.EndedAt = campaign.Stopped, string(audit.CauseFailing), now
		return false, e.tell(ctx, *c, e.event(*c, audit.CampaignStopped, now, append(told(c.Wave, all), audit.Number("not_started", notStarted))...))
	case campaign.Pause:
		why := audit.CauseWaiting
		if wave.Failing()*100 > c.Parameters.MaxFailures*(wave.Done+wave.Failing()) {
			why = audit.CauseFailing
		}
		return false, e.pause(ctx, c, why, now, told(c.Wave, wave)...)
	case campaign.Pass:
		if c.Wave < len(waves) && !approved(c, now) { // the wave that is under way may go on
			return false, e.pause(ctx, c, audit.CauseApprovalExpired, now, told(c.Wave, wave)...)
		}
		return e.passWave(ctx, c, waves, now)
	}
	if wave.Pending == 0 {
		if c.WaveOpenedAt.IsZero() {
			c.WaveOpenedAt = now
		}
		return false, nil
	}
	return e.begin(ctx, c, now)
}

// Total are the counts of all waves together.
func Total(waves []postgres.CampaignWave) (all campaign.Counts) {
	for _, w := range waves {
		all = all.Add(w.Counts)
	}
	return all
}

func told(wave int, counts campaign.Counts) audit.Detail {
	return audit.Detail{audit.Number("wave", wave), audit.Number("done", counts.Done), audit.Number("failing", counts.Failing()),
		audit.Number("under_way", counts.UnderWay()), audit.Number("left_out", counts.LeftOut)}
}

func (e *Enforcer) pause(ctx context.Context, c *postgres.Campaign, why audit.Cause, now time.Time, detail ...audit.Field) error {
	c.State, c.StateCause, c.PausedAt = campaign.Paused, string(why), now
	return e.tell(ctx, *c, e.event(*c, audit.CampaignPaused, now, append(detail, audit.Word("why", why))...))
}

func (e *Enforcer) passWave(ctx context.Context, c *postgres.Campaign, waves []postgres.CampaignWave, now time.Time) (again bool, err error) {
	if err := e.db.PassWave(ctx, c.ID, c.Wave, now); err != nil {
		return false, err
	}
	if err := e.tell(ctx, *c, e.event(*c, audit.WavePassed, now, told(c.Wave, waves[c.Wave-1].Counts)...)); err != nil {
		return false, err
	}
	if c.Wave < len(waves) {
		return true, e.startWave(ctx, c, waves)
	}
	c.State, c.EndedAt = campaign.Finished, now
	return false, e.tell(ctx, *c, e.event(*c, audit.CampaignFinished, now, told(c.Wave, Total(waves))...))
}

// startWave begins the next wave, unless what was approved is not what stands in the database.
func (e *Enforcer) startWave(ctx context.Context, c *postgres.Campaign, waves []postgres.CampaignWave) error {
	now := e.now()
	if hash, err := e.hashNow(ctx, *c); err != nil {
		return err
	} else if hash != c.Hash {
		events, err := e.void(ctx, c, audit.CauseAltered, audit.ByRelay(), now)
		if err != nil {
			return err
		}
		if err := e.db.Append(ctx, events...); err != nil {
			return err
		}
		return e.pause(ctx, c, audit.CauseAltered, now)
	}
	if c.Wave == 0 {
		// A stolen device gets no key from now on, whenever its user's turn comes and whatever becomes of him then.
		if err := e.engine.ExcludeMany(ctx, c.Parameters.Exclude, c.ID); err != nil {
			return err
		}
	}
	c.Wave, c.WaveOpenedAt = c.Wave+1, time.Time{}
	if err := e.db.StartWave(ctx, c.ID, c.Wave, now); err != nil {
		return err
	}
	return e.tell(ctx, *c, e.event(*c, audit.WaveStarted, now, audit.Number("wave", c.Wave), audit.Number("users", waves[c.Wave-1].Users)))
}

// rate is how many users may begin in a minute now.
func (e *Enforcer) rate(ctx context.Context, p campaign.Parameters, now time.Time) (int, error) {
	var homeserver campaign.Homeserver
	var err error
	if homeserver.Measured, _, err = e.db.Latency(ctx, now.Add(-latencyLife)); err != nil {
		return 0, err
	}
	homeserver.Untried, homeserver.Unsent, err = e.db.Unsent(ctx, now)
	return campaign.Slowed(p, homeserver.Latency()), err
}

// begin comes to as many users of the wave as the rate allows, up to a batch.
func (e *Enforcer) begin(ctx context.Context, c *postgres.Campaign, now time.Time) (again bool, err error) {
	if _, frozen, err := e.db.Frozen(ctx, false); err != nil || frozen {
		// Nothing is triggered meanwhile: what began now would only wait.
		c.CreditAt = now
		return false, err
	}
	rate, err := e.rate(ctx, c.Parameters, now)
	if err != nil {
		return false, err
	}
	allowed := campaign.Allowance(rate, c.CreditAt, now)
	if allowed == 0 {
		return false, nil
	}
	next, err := e.db.NextCampaignUsers(ctx, c.ID, c.Wave, beginBatch)
	if err != nil {
		return false, err
	}
	ids := make([]id.UserID, len(next))
	for i, u := range next {
		ids[i] = u.UserID
	}
	// Whether a rotation of theirs is open must not change between the look and what is opened.
	if err := e.db.LockArrivals(ctx, nil, ids); err != nil {
		return false, err
	}
	b := beginning{c: c, now: now, allowed: allowed}
	candidates, err := e.candidates(ctx, c.Parameters, ids, now)
	if err != nil {
		return false, err
	}
	for _, u := range next {
		if !b.take(u, candidates[u.UserID]) {
			break
		}
	}
	if err := e.open(ctx, &b); err != nil {
		return false, err
	}
	c.CreditAt = campaign.Spent(rate, c.CreditAt, now, b.spent())
	if len(b.users) == len(next) && len(next) < beginBatch {
		c.WaveOpenedAt = now
	}
	events := e.event(*c, audit.UsersBegun, now, audit.Number("wave", c.Wave), audit.Number("opened", b.spent()), audit.Number("joined", b.joined), audit.Number("left_out", b.left))
	return true, e.tell(ctx, *c, events)
}

// candidates says of users what decides about their turn.
func (e *Enforcer) candidates(ctx context.Context, p campaign.Parameters, users []id.UserID, now time.Time) (map[id.UserID]postgres.CampaignCandidate, error) {
	candidates, err := e.db.CampaignCandidates(ctx, users, protocol.SecretMegolmBackup, now)
	for user, c := range candidates {
		c.Place = c.Place || p.KMS != ""
		if p.Kind == campaign.Release {
			c.Held = c.Held && c.HeldFor == rotation.HoldStorm
		}
		candidates[user] = c
	}
	return candidates, err
}

// beginning is what one transaction begins.
type beginning struct {
	c       *postgres.Campaign
	now     time.Time
	allowed int
	// users are all whose turn it is; opening are the places in users of those whose rotations are opened.
	users    []postgres.CampaignUser
	opening  []int
	requests []relay.RotateRequest
	held     []uuid.UUID
	joined   int
	left     int
}

// spent is how many of those that the rate allows have begun.
func (b *beginning) spent() int { return len(b.opening) + len(b.held) }

// take comes to a user; it is false where the rate allows nobody more.
func (b *beginning) take(u postgres.CampaignUser, c postgres.CampaignCandidate) bool {
	begin, cause := campaign.Turn(b.c.Parameters.Kind, c.Candidate)
	if opens := begin == campaign.BeginOpen || begin == campaign.BeginRelease; opens && b.spent() == b.allowed {
		return false
	}
	u.BegunAt, u.Standing = b.now, campaign.Standing{State: campaign.Waiting}
	switch begin {
	case campaign.BeginLeave:
		u.Standing = leftOut(cause)
		b.left++
	case campaign.BeginJoin:
		u.Rotation, u.Joined = c.Rotation, true
		b.joined++
	case campaign.BeginRelease:
		u.Rotation = c.Rotation
		b.held = append(b.held, c.Rotation)
	case campaign.BeginOpen:
		p := b.c.Parameters
		request := relay.RotateRequest{UserID: u.UserID, KMS: c.LastAt.KMS, Path: c.LastAt.Path, Reason: p.KeyReason}
		if p.KMS != "" {
			request.KMS, request.Path = p.KMS, p.PathOf(u.UserID)
		}
		b.requests, b.opening = append(b.requests, request), append(b.opening, len(b.users))
	}
	b.users = append(b.users, u)
	return true
}

// open does what was taken.
func (e *Enforcer) open(ctx context.Context, b *beginning) error {
	opened, err := e.engine.RotateMany(ctx, b.requests, b.c.ID)
	if err != nil {
		return err
	}
	for i, place := range b.opening {
		b.users[place].Rotation = opened[i]
	}
	if _, err := e.engine.ReleaseMany(ctx, b.held, b.c.ID); err != nil {
		return err
	}
	return e.db.SetCampaignUsers(ctx, b.c.ID, b.users)
}
