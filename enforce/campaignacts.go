package enforce

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// change does what somebody asked of a campaign, which it locks. do completes and appends the event.
func (e *Enforcer) change(ctx context.Context, key uuid.UUID, action audit.Action, actor audit.Actor, do func(ctx context.Context, c *postgres.Campaign, event *audit.Event) error) (c postgres.Campaign, err error) {
	event := audit.Event{Actor: actor, Action: action, Subject: audit.OfCampaigns(), Outcome: audit.Accepted}
	err = refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time = e.now()
		var ok bool
		if c, ok, err = e.db.LockCampaign(ctx, key); err != nil {
			return err
		} else if !ok {
			return refusal.New(refusal.NotFound, audit.RefusedUnknownCampaign, "there is no campaign %s: `keyherald campaign list` shows them", key)
		}
		event.Subject = audit.OfCampaign(key)
		if err := do(ctx, &c, &event); err != nil {
			return err
		}
		return e.db.UpdateCampaign(ctx, c)
	})
	if err != nil {
		return postgres.Campaign{}, err
	}
	return c, nil
}

func notIn(c *postgres.Campaign, what string) error {
	return refusal.New(refusal.Conflict, audit.RefusedCampaignState, "campaign %s is %s: it cannot be %s now", c.ID, c.State, what)
}

// ApproveCampaign is a second admin's word for what a hash stands for: a campaign that waits for it runs; of a paused one the
// approval is renewed. It is good for campaign.ApprovalLife, for what begins under it. Refused are (forbidden) whoever
// started the campaign or changed it last, and (conflict) another hash, and a campaign that waited for too long.
func (e *Enforcer) ApproveCampaign(ctx context.Context, key uuid.UUID, hash campaign.Hash, actor audit.Actor) (postgres.Campaign, error) {
	return e.change(ctx, key, audit.CampaignApproved, actor, func(ctx context.Context, c *postgres.Campaign, event *audit.Event) error {
		is, err := e.hashNow(ctx, *c)
		if err != nil {
			return err
		}
		now := event.Time
		switch {
		case c.State != campaign.AwaitingApproval && (c.State != campaign.Paused || !c.NeedsApproval):
			return notIn(c, "approved")
		case asked(c, actor):
			return refusal.New(refusal.Forbidden, audit.RefusedOwnCampaign, "%s asked for campaign %s: somebody else must approve it", actor, c.ID)
		case is != c.Hash:
			return refusal.New(refusal.Conflict, audit.RefusedOtherHash, "campaign %s was altered in the database: its users or parameters are not those that it was started with: abort it, find out who did that, and start another", c.ID)
		case hash != c.Hash:
			return refusal.New(refusal.Conflict, audit.RefusedOtherHash, "the hash of campaign %s is another one: look at it again (keyherald campaign show), since it may have been changed, and approve what you saw", c.ID)
		case c.State == campaign.AwaitingApproval && now.Sub(c.AskedAt) > campaign.ApprovalLife:
			return refusal.New(refusal.Conflict, audit.RefusedApprovalExpired, "campaign %s waited for approval for more than %s: start another", c.ID, campaign.ApprovalLife)
		}
		approvalID, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("making an approval's id: %w", err)
		}
		approval := postgres.CampaignApproval{ID: approvalID, Campaign: c.ID, Hash: hash, Approver: actor.String(), GivenAt: now, ExpiresAt: now.Add(campaign.ApprovalLife)}
		if err := e.db.PutApproval(ctx, approval); err != nil {
			return err
		}
		c.ApprovedAt = now
		if c.State == campaign.AwaitingApproval {
			run(c, now)
		}
		event.Detail = audit.Detail{audit.ID("hash", hash), audit.Time("expires_at", approval.ExpiresAt)}
		return e.tell(ctx, *c, *event)
	})
}

// asked reports whether somebody started a campaign, or changed it last, whatever he is called by now. Who is shown alike
// counts as well: a replica that is older than the keys knows him by that alone.
func asked(c *postgres.Campaign, who audit.Actor) bool {
	return who.Identity() == c.StartedKey || who.Identity() == c.AskedKey || who.String() == c.StartedBy || who.String() == c.AskedBy
}

// approved reports whether what a campaign begins now needs no approval, or has one that is still good.
func approved(c *postgres.Campaign, now time.Time) bool {
	return !c.NeedsApproval || now.Sub(c.ApprovedAt) <= campaign.ApprovalLife
}

// run lets a campaign begin users, from now on: what it was paused for does not count as waiting.
func run(c *postgres.Campaign, now time.Time) {
	c.State, c.StateCause, c.CreditAt = campaign.Running, "", now
	if c.BegunAt.IsZero() {
		c.BegunAt = now
	}
	if !c.PausedAt.IsZero() && !c.WaveOpenedAt.IsZero() {
		c.WaveOpenedAt = c.WaveOpenedAt.Add(now.Sub(c.PausedAt))
	}
	c.PausedAt = time.Time{}
}

// hashNow is the hash of a campaign as the database has it.
func (e *Enforcer) hashNow(ctx context.Context, c postgres.Campaign) (campaign.Hash, error) {
	users, err := e.db.CampaignUserIDs(ctx, c.ID)
	if err != nil {
		return "", err
	}
	return campaign.HashOf(c.Parameters, users)
}

// CampaignChange is what may be changed of a campaign that waits or is paused; nil leaves a thing as it is. Whom it is for
// and what it does is not among it: abort it, and start another.
type CampaignChange struct {
	// Hash is what whoever asks has looked at; where the campaign's is another one by now he is refused. Empty does not ask.
	Hash                                       campaign.Hash
	PassPercent, MaxWaiting, MaxFailures, Rate *int
	MaxWait, MaxLatency                        *time.Duration
}

// Apply puts what is to be changed into parameters, which are then to be checked.
func (change CampaignChange) Apply(p *campaign.Parameters) {
	for _, number := range []struct{ to, from *int }{{&p.PassPercent, change.PassPercent}, {&p.MaxWaiting, change.MaxWaiting}, {&p.MaxFailures, change.MaxFailures}, {&p.Rate, change.Rate}} {
		if number.from != nil {
			*number.to = *number.from
		}
	}
	if change.MaxWait != nil {
		p.MaxWait = *change.MaxWait
	}
	if change.MaxLatency != nil {
		p.MaxLatency = *change.MaxLatency
	}
}

// ChangeCampaign changes how a campaign goes. Whatever was approved of it is void. Refused is (changed) one whose hash is
// another than whoever asks has seen.
func (e *Enforcer) ChangeCampaign(ctx context.Context, key uuid.UUID, change CampaignChange, actor audit.Actor) (postgres.Campaign, error) {
	return e.change(ctx, key, audit.CampaignChanged, actor, func(ctx context.Context, c *postgres.Campaign, event *audit.Event) error {
		if change.Hash != "" && change.Hash != c.Hash {
			return refusal.New(refusal.Changed, audit.RefusedOtherHash, "campaign %s was changed since you looked at it: look again (keyherald campaign show), and change what you see then", c.ID)
		}
		if c.State != campaign.AwaitingApproval && c.State != campaign.Paused {
			return refusal.New(refusal.Conflict, audit.RefusedCampaignState, "campaign %s is %s: it can be changed while it waits for approval or is paused", c.ID, c.State)
		}
		p := &c.Parameters
		change.Apply(p)
		if err := p.Check(); err != nil {
			return refusal.New(refusal.Invalid, audit.RefusedParameters, "%w", err)
		}
		var err error
		if c.Hash, err = e.hashNow(ctx, *c); err != nil {
			return err
		}
		c.NeedsApproval = c.NeedsApproval || e.approval.Needed(c.Users)
		event.Detail = audit.Detail{audit.ID("hash", c.Hash), audit.Number("rate", p.Rate), audit.Flag("needs_approval", c.NeedsApproval)}
		events, err := e.void(ctx, c, audit.CauseChanged, actor, event.Time)
		if err != nil {
			return err
		}
		c.AskedAt, c.AskedBy, c.AskedKey = event.Time, actor.String(), actor.Identity()
		if c.NeedsApproval {
			c.State = campaign.AwaitingApproval
		}
		return e.tell(ctx, *c, append(events, *event)...)
	})
}

// void ends the approvals of a campaign that stand, and returns what is to be told of that.
func (e *Enforcer) void(ctx context.Context, c *postgres.Campaign, why audit.Cause, actor audit.Actor, now time.Time) ([]audit.Event, error) {
	c.ApprovedAt = time.Time{}
	n, err := e.db.VoidApprovals(ctx, c.ID, string(why), now)
	if err != nil || n == 0 {
		return nil, err
	}
	return []audit.Event{{Time: now, Actor: actor, Action: audit.ApprovalVoided, Subject: audit.OfCampaign(c.ID), Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("why", why)}}}, nil
}

// PauseCampaign has a running campaign begin nobody more, until it is resumed.
func (e *Enforcer) PauseCampaign(ctx context.Context, key uuid.UUID, actor audit.Actor) (postgres.Campaign, error) {
	return e.change(ctx, key, audit.CampaignPaused, actor, func(ctx context.Context, c *postgres.Campaign, event *audit.Event) error {
		if c.State != campaign.Running {
			return notIn(c, "paused")
		}
		c.State, c.PausedAt = campaign.Paused, event.Time
		return e.tell(ctx, *c, *event)
	})
}

// ResumeCampaign lets a paused campaign go on. One whose approval is older than campaign.ApprovalLife needs another first.
func (e *Enforcer) ResumeCampaign(ctx context.Context, key uuid.UUID, actor audit.Actor) (postgres.Campaign, error) {
	return e.change(ctx, key, audit.CampaignResumed, actor, func(ctx context.Context, c *postgres.Campaign, event *audit.Event) error {
		switch {
		case c.State != campaign.Paused:
			return notIn(c, "resumed")
		case !approved(c, event.Time):
			return refusal.New(refusal.Conflict, audit.RefusedApprovalExpired, "the approval of campaign %s is void or older than %s: have it approved anew (keyherald campaign approve), then resume it", c.ID, campaign.ApprovalLife)
		}
		run(c, event.Time)
		return e.tell(ctx, *c, *event)
	})
}

// AbortCampaign ends a campaign. Who had not begun stays as he was; the rotations under way go on until they are done, or,
// with cancelRunning, those that the campaign opened are cancelled as relay.Engine.Cancel does: what a device has done stays
// done, and it is told to stop where it is.
func (e *Enforcer) AbortCampaign(ctx context.Context, key uuid.UUID, cancelRunning bool, actor audit.Actor) (postgres.Campaign, error) {
	return e.change(ctx, key, audit.CampaignAborted, actor, func(ctx context.Context, c *postgres.Campaign, event *audit.Event) error {
		if !campaign.Allowed(c.State, campaign.Aborted) {
			return notIn(c, "aborted")
		}
		notStarted, err := e.db.EndPendingUsers(ctx, c.ID)
		if err != nil {
			return err
		}
		cancelled, err := e.cancelUnderWay(ctx, c.ID, cancelRunning, actor)
		if err != nil {
			return err
		}
		underWay, err := e.db.UnderWay(ctx, c.ID)
		if err != nil {
			return err
		}
		events, err := e.void(ctx, c, audit.CauseAborted, actor, event.Time)
		if err != nil {
			return err
		}
		c.State, c.EndedAt = campaign.Aborted, event.Time
		event.Detail = audit.Detail{audit.Number("not_started", notStarted), audit.Number("cancelled", cancelled), audit.Number("under_way", len(underWay))}
		return e.tell(ctx, *c, append(events, *event)...)
	})
}

func (e *Enforcer) cancelUnderWay(ctx context.Context, key uuid.UUID, really bool, actor audit.Actor) (int, error) {
	if !really {
		return 0, nil
	}
	users, err := e.db.UnderWay(ctx, key)
	if err != nil {
		return 0, err
	}
	keys := make([]uuid.UUID, len(users))
	for i, u := range users {
		keys[i] = u.Rotation
	}
	cancelled, err := e.engine.CancelMany(ctx, keys, key, actor)
	if err != nil {
		return 0, err
	}
	for more := len(cancelled) > 0; more; {
		if more, err = e.readRotations(ctx, key); err != nil {
			return 0, err
		}
	}
	return len(cancelled), nil
}
