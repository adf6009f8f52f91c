package enforce

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// CampaignChannel is the NOTIFY channel that says a campaign, which the payload names, moved.
const CampaignChannel = "keyherald_campaign"

// CampaignRequest asks for a campaign.
type CampaignRequest struct {
	// Parameters are whole: campaign.Defaults, and over them what was said.
	Parameters campaign.Parameters
	// IdempotencyKey, up to 255 bytes, makes a repeated start the same campaign; empty starts a new one each time.
	IdempotencyKey string
}

// maxIdempotencyKey bounds an idempotency key, in bytes.
const maxIdempotencyKey = 255

// StartCampaign starts a campaign: its users and their waves are fixed, and it runs, or waits for a second admin's approval
// where the configuration asks for that. started is false where one with this idempotency key was started before. Refused
// are (invalid) unusable parameters, globs that match nobody, users that are not on the roster and devices of others, and
// (conflict) the key of another request.
func (e *Enforcer) StartCampaign(ctx context.Context, request CampaignRequest, actor audit.Actor) (c postgres.Campaign, started bool, err error) {
	event := audit.Event{Actor: actor, Action: audit.CampaignStarted, Subject: audit.OfCampaigns(), Outcome: audit.Accepted}
	err = refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time = e.now()
		p := request.Parameters
		asked, err := campaign.HashOf(p, nil)
		if err != nil {
			return err
		}
		if len(request.IdempotencyKey) > maxIdempotencyKey {
			return refusal.New(refusal.Invalid, audit.RefusedParameters, "the idempotency key is longer than %d bytes", maxIdempotencyKey)
		}
		if err := e.db.LockCampaignStarts(ctx); err != nil {
			return err
		}
		if request.IdempotencyKey != "" {
			before, known, err := e.db.CampaignByKey(ctx, request.IdempotencyKey)
			switch {
			case err != nil:
				return err
			case known && before.RequestHash != string(asked):
				return refusal.New(refusal.Conflict, audit.RefusedOtherRequest, "campaign %s was started with this idempotency key and other parameters: give another campaign another key", before.ID)
			case known:
				c = before
				return nil
			}
		}
		meant, hash, err := e.meant(ctx, p)
		if err != nil {
			return err
		}
		texts, err := texts(p)
		if err != nil {
			return err
		}
		key, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("making a campaign's id: %w", err)
		}
		c = postgres.Campaign{ID: key, IdempotencyKey: request.IdempotencyKey, RequestHash: string(asked), Hash: hash, Parameters: p, State: campaign.Running, Users: len(meant.Users),
			StartedBy: actor.String(), StartedKey: actor.Identity(), CreatedAt: event.Time, AskedAt: event.Time, BegunAt: event.Time}
		c.AskedBy, c.AskedKey = c.StartedBy, c.StartedKey
		if c.NeedsApproval, err = e.needsApproval(ctx, c.Users); err != nil {
			return err
		}
		if c.NeedsApproval {
			c.State, c.BegunAt = campaign.AwaitingApproval, c.ApprovedAt
		}
		if err := e.db.InsertCampaign(ctx, c, campaign.Assign(hash, meant.Users, p.Waves)); err != nil {
			return err
		}
		started, event.Subject = true, audit.OfCampaign(key)
		event.Detail = append(audit.Detail{audit.Word("kind", p.Kind), audit.ID("hash", hash), audit.Number("users", c.Users), audit.Number("waves", len(p.Waves)),
			audit.Number("rate", p.Rate), audit.Number("exclude", len(p.Exclude)), audit.Flag("needs_approval", c.NeedsApproval)}, texts...)
		return e.tell(ctx, c, event)
	})
	if err != nil {
		return postgres.Campaign{}, false, err
	}
	return c, started, nil
}

// needsApproval reports whether a campaign of so many users needs approval if it starts now. Those that were started without
// one in the last day count with it, so that a company is not moved in parts that are small enough.
func (e *Enforcer) needsApproval(ctx context.Context, users int) (bool, error) {
	before, err := e.db.StartedUnapproved(ctx, e.now().Add(-campaign.ApprovalLife))
	return e.approval.Needed(before + users), err
}

// rests are the events after which a campaign goes on no more by itself: people are told.
var rests = []audit.Action{audit.CampaignFinished, audit.CampaignStopped, audit.CampaignPaused, audit.CampaignAborted}

// tell appends the event of what became of a campaign, and wakes whoever watches it.
func (e *Enforcer) tell(ctx context.Context, c postgres.Campaign, events ...audit.Event) error {
	if err := e.db.Append(ctx, events...); err != nil {
		return err
	}
	if e.moved != nil && slices.ContainsFunc(events, func(event audit.Event) bool { return slices.Contains(rests, event.Action) }) {
		waves, err := e.db.CampaignWaves(ctx, c.ID)
		if err != nil {
			return err
		}
		if err := e.moved(ctx, c, Total(waves)); err != nil {
			return err
		}
	}
	return e.db.Notify(ctx, CampaignChannel, c.ID.String())
}

// texts are what the admin wrote, as the log takes it.
func texts(p campaign.Parameters) (audit.Detail, error) {
	reason, err := refusal.Reason(p.Reason)
	if err != nil {
		return nil, err
	}
	detail := audit.Detail{audit.Text("reason", reason)}
	if p.Ticket != "" {
		ticket, err := refusal.Reason(p.Ticket)
		if err != nil {
			return nil, fmt.Errorf("the ticket: %w", err)
		}
		detail = append(detail, audit.Text("ticket", ticket))
	}
	return detail, nil
}

// meant are the users of a campaign as it would be started now, with its hash.
func (e *Enforcer) meant(ctx context.Context, p campaign.Parameters) (campaign.Meant, campaign.Hash, error) {
	meant, err := e.choose(ctx, p)
	if err != nil {
		return meant, "", err
	}
	switch {
	case len(meant.Unmatched) > 0:
		return meant, "", refusal.New(refusal.Invalid, audit.RefusedNobody, "nobody matches %s: see who is there (keyherald roster)", strings.Join(meant.Unmatched, ", "))
	case len(meant.NotThere) > 0:
		return meant, "", refusal.New(refusal.Invalid, audit.RefusedNotThere, "not among those whom such a campaign can be for: %s", some(meant.NotThere))
	case len(meant.Users) == 0 && p.Kind == campaign.Release:
		return meant, "", refusal.New(refusal.Invalid, audit.RefusedNobody, "the storm limit holds nobody's rotation of those that are meant")
	case len(meant.Users) == 0:
		return meant, "", refusal.New(refusal.Invalid, audit.RefusedNobody, "nobody is meant: the roster is empty, or --except leaves nobody")
	}
	hash, err := campaign.HashOf(p, meant.Users)
	return meant, hash, err
}

func (e *Enforcer) choose(ctx context.Context, p campaign.Parameters) (meant campaign.Meant, err error) {
	if err := p.Check(); err != nil {
		return meant, refusal.New(refusal.Invalid, audit.RefusedParameters, "%w", err)
	}
	list := e.db.RosterUserIDs
	if p.Kind == campaign.Release {
		list = e.db.StormHeldUsers
	}
	from, err := list(ctx)
	if err != nil {
		return meant, err
	}
	meant = p.Who.Choose(from)
	return meant, checkExclusions(p, meant)
}

// some names the first of many.
func some(users []id.UserID) string {
	const most = 5
	names := make([]string, 0, most)
	for _, user := range users[:min(most, len(users))] {
		names = append(names, string(user))
	}
	text := strings.Join(names, ", ")
	if more := len(users) - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// PlannedUser is what would become of a user.
type PlannedUser struct {
	UserID id.UserID
	// Wave is 0 for one whom the campaign leaves out as it was asked to.
	Wave int
	campaign.Standing
	Begin campaign.Begin
	// Offline says that none of his devices was heard of for three hours: he would be waited for.
	Offline bool
	// Rotation is the one that would be followed or released.
	Rotation uuid.UUID
	// Exclude are the devices of his that would get no key from the first wave on, also where he is left out.
	Exclude []postgres.Exclusion
}

// CampaignPlan is what a campaign would do if it were started now.
type CampaignPlan struct {
	Parameters    campaign.Parameters
	Hash          campaign.Hash
	NeedsApproval bool
	// Frozen says that all triggers are stopped: nobody would begin until that is lifted.
	Frozen bool
	// Users are in the order of their turns, and those who are excluded after them.
	Users []PlannedUser
	// Unmatched globs and NotThere users would have the start refused.
	Unmatched []string
	NotThere  []id.UserID
}

// PlanCampaign says for every user what would happen and why not, and touches nothing. The parameters are whole, as those
// of a CampaignRequest.
func (e *Enforcer) PlanCampaign(ctx context.Context, p campaign.Parameters) (plan CampaignPlan, err error) {
	plan.Parameters = p
	meant, err := e.choose(ctx, p)
	if err != nil {
		return plan, err
	}
	plan.Unmatched, plan.NotThere = meant.Unmatched, meant.NotThere
	if plan.NeedsApproval, err = e.needsApproval(ctx, len(meant.Users)); err != nil {
		return plan, err
	}
	if plan.Hash, err = campaign.HashOf(p, meant.Users); err != nil {
		return plan, err
	}
	if _, plan.Frozen, err = e.db.Frozen(ctx, false); err != nil {
		return plan, err
	}
	for places := range slices.Chunk(campaign.Assign(plan.Hash, meant.Users, p.Waves), planBatch) {
		if err := e.plan(ctx, &plan, places); err != nil {
			return plan, err
		}
	}
	if err := e.planExclusions(ctx, &plan); err != nil {
		return plan, err
	}
	for _, user := range meant.Excluded {
		plan.Users = append(plan.Users, PlannedUser{UserID: user, Begin: campaign.BeginLeave, Standing: leftOut(campaign.CauseExcluded)})
	}
	return plan, nil
}

// planBatch is how many users are looked at in one query.
const planBatch = 1000

func (e *Enforcer) plan(ctx context.Context, plan *CampaignPlan, places []campaign.Place) error {
	users := make([]id.UserID, len(places))
	for i, place := range places {
		users[i] = place.UserID
	}
	now := e.now()
	candidates, err := e.candidates(ctx, plan.Parameters, users, now)
	if err != nil {
		return err
	}
	for _, place := range places {
		c := candidates[place.UserID]
		planned := PlannedUser{UserID: place.UserID, Wave: place.Wave, Standing: campaign.Standing{State: campaign.Waiting}, Rotation: c.Rotation,
			Offline: c.Enrolled && now.Sub(c.LastSeen) > silent}
		var cause campaign.Cause
		if planned.Begin, cause = campaign.Turn(plan.Parameters.Kind, c.Candidate); planned.Begin == campaign.BeginLeave {
			planned.Standing = leftOut(cause)
		}
		plan.Users = append(plan.Users, planned)
	}
	return nil
}

func leftOut(cause campaign.Cause) campaign.Standing {
	return campaign.Standing{State: campaign.LeftOut, Cause: cause, NextAction: cause.NextAction()}
}
