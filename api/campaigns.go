package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// CampaignRequest asks for a campaign; what is left out has the defaults of docs/enforcement.md.
type CampaignRequest struct {
	Kind      campaign.Kind     `json:"kind,omitempty"`
	Who       CampaignWho       `json:"who"`
	KMS       string            `json:"kms,omitempty"`
	Path      string            `json:"path,omitempty"`
	KeyReason rotation.Reason   `json:"key_reason,omitempty"`
	Exclude   []campaign.Device `json:"exclude,omitempty"`
	Waves     []int             `json:"waves,omitempty"`
	CampaignBounds
	Reason string `json:"reason"`
	Ticket string `json:"ticket,omitempty"`
}

// CampaignWho is whom a campaign is for.
type CampaignWho struct {
	All    bool        `json:"all,omitempty"`
	Globs  []string    `json:"globs,omitempty"`
	Users  []id.UserID `json:"users,omitempty"`
	Except []string    `json:"except,omitempty"`
}

// CampaignBounds are how a campaign goes, and what may be changed of it.
type CampaignBounds struct {
	PassPercent *int   `json:"pass_percent,omitempty"`
	MaxWait     *int64 `json:"max_wait_seconds,omitempty"`
	MaxWaiting  *int   `json:"max_waiting,omitempty"`
	MaxFailures *int   `json:"max_failures,omitempty"`
	Rate        *int   `json:"rate,omitempty"`
	MaxLatency  *int64 `json:"max_latency_ms,omitempty"`
}

func (b CampaignBounds) change() enforce.CampaignChange {
	change := enforce.CampaignChange{PassPercent: b.PassPercent, MaxWaiting: b.MaxWaiting, MaxFailures: b.MaxFailures, Rate: b.Rate}
	change.MaxWait, change.MaxLatency = span(b.MaxWait, time.Second), span(b.MaxLatency, time.Millisecond)
	return change
}

// span is a duration as somebody wrote it, if he did; campaign.Parameters.Check has the bounds, and this keeps it from overflowing.
func span(n *int64, unit time.Duration) *time.Duration {
	if n == nil {
		return nil
	}
	d := time.Duration(min(max(*n, -maxGrace), maxGrace)) * unit
	return &d
}

func (r CampaignRequest) parameters() campaign.Parameters {
	p := campaign.Defaults()
	p.Who = campaign.Who{All: r.Who.All, Globs: r.Who.Globs, Users: r.Who.Users, Except: r.Who.Except}
	p.KMS, p.Path, p.KeyReason, p.Exclude, p.Reason, p.Ticket = r.KMS, r.Path, r.KeyReason, r.Exclude, r.Reason, r.Ticket
	if len(r.Kind) > 0 {
		p.Kind = r.Kind
	}
	if r.Waves != nil {
		p.Waves = r.Waves
	}
	r.change().Apply(&p)
	return p
}

func listCampaigns(c *call) (answer, error) {
	q := c.query()
	f := postgres.CampaignFilter{State: word(q, "state", campaign.AwaitingApproval, campaign.Running, campaign.Paused, campaign.Finished, campaign.Stopped, campaign.Aborted)}
	limit, filters := q.page(&f.After)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.Campaigns(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, campaignOf, func(r postgres.Campaign) any { return r.ID })
	return ok(page), err
}

// startCampaign starts a campaign. A caller's idempotency key is good for one campaign as long as that is remembered, and
// not for a day alone.
func startCampaign(c *call) (answer, error) {
	var asked CampaignRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	request := enforce.CampaignRequest{Parameters: asked.parameters()}
	if key := c.echo.Request().Header.Get(keyHeader); key != "" {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(c.caller.key), c.caller.key, key))
		request.IdempotencyKey = hex.EncodeToString(sum[:])
	}
	started, fresh, err := c.deps.Enforcer.StartCampaign(c.ctx, request, c.caller.actor)
	if err != nil {
		return answer{}, err
	}
	a := created(campaignOf(started))
	if !fresh {
		a = ok(campaignOf(started))
	}
	a.header = map[string]string{"Location": Prefix + "/campaigns/" + started.ID.String()}
	return a, nil
}

// CampaignPlan is what a campaign would do if it were started now. Users are in the order of their turns. Unmatched globs
// and users who are not there would have the start refused.
type CampaignPlan struct {
	Hash          campaign.Hash `json:"hash"`
	NeedsApproval bool          `json:"needs_approval"`
	// Frozen says that all triggers are stopped: nobody would begin until that is lifted.
	Frozen    bool          `json:"frozen"`
	Users     []PlannedUser `json:"users"`
	Unmatched []string      `json:"unmatched,omitempty"`
	NotThere  []id.UserID   `json:"not_there,omitempty"`
}

// PlannedUser is what would happen to a user. Wave is 0 for one whom the campaign leaves out as it was asked to.
type PlannedUser struct {
	CampaignUser
	Would   campaign.Begin `json:"would"`
	Offline bool           `json:"offline,omitempty"`
	// Exclude are the devices of his that would get no key from the first wave on.
	Exclude []Exclusion `json:"exclude,omitempty"`
}

func planCampaign(c *call) (answer, error) {
	var asked CampaignRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	plan, err := c.deps.Enforcer.PlanCampaign(c.ctx, asked.parameters())
	if err != nil {
		return answer{}, err
	}
	view := CampaignPlan{Hash: plan.Hash, NeedsApproval: plan.NeedsApproval, Frozen: plan.Frozen, Users: make([]PlannedUser, len(plan.Users)), Unmatched: plan.Unmatched, NotThere: plan.NotThere}
	for i, u := range plan.Users {
		view.Users[i] = PlannedUser{campaignUserOf(postgres.CampaignUser{UserID: u.UserID, Wave: u.Wave, Standing: u.Standing, Rotation: u.Rotation}), u.Begin, u.Offline, exclusionsOf(u.Exclude)}
	}
	return ok(view), nil
}

// campaignTag is the ETag of a campaign: of what may be changed and is approved, and not of how far it has come.
func campaignTag(hash campaign.Hash) string { return `"` + string(hash) + `"` }

func getCampaign(c *call) (answer, error) {
	key, err := c.key("campaign_id", "campaign")
	if err != nil {
		return answer{}, err
	}
	progress, err := c.deps.Enforcer.CampaignProgress(c.ctx, key)
	if err != nil {
		return answer{}, err
	}
	exclusions, err := c.deps.Enforcer.CampaignExclusions(c.ctx, progress.Campaign)
	view, p := progressOf(progress), progress.Parameters
	view.Parameters = &CampaignParameters{CampaignWho{p.Who.All, p.Who.Globs, p.Who.Users, p.Who.Except}, p.KMS, p.Path, p.KeyReason, p.Exclude}
	view.Exclusions = exclusionsOf(exclusions)
	a := ok(view)
	a.header = map[string]string{"ETag": campaignTag(progress.Hash)}
	return a, err
}

func listCampaignUsers(c *call) (answer, error) {
	key, err := c.key("campaign_id", "campaign")
	if err != nil {
		return answer{}, err
	}
	q := c.query()
	f := postgres.CampaignUserFilter{Campaign: key, State: word(q, "state", campaign.UserStates()...)}
	limit, filters := q.page(&f.After)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	if _, err := c.deps.Enforcer.CampaignProgress(c.ctx, key); err != nil {
		return answer{}, err // none is not an empty one
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.CampaignUsers(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, campaignUserOf, func(u postgres.CampaignUser) any { return u.UserID })
	return ok(page), err
}

// ApproveRequest names what an admin looked at and approves.
type ApproveRequest struct {
	Hash campaign.Hash `json:"hash"`
}

func approveCampaign(c *call) (answer, error) {
	var asked ApproveRequest
	return c.campaign(&asked, func(key uuid.UUID) (postgres.Campaign, error) {
		return c.deps.Enforcer.ApproveCampaign(c.ctx, key, asked.Hash, c.caller.actor)
	})
}

// changeCampaign changes a campaign. With If-Match it is refused where the campaign is another one by now.
func changeCampaign(c *call) (answer, error) {
	var asked CampaignBounds
	return c.campaign(&asked, func(key uuid.UUID) (postgres.Campaign, error) {
		if asked == (CampaignBounds{}) {
			return postgres.Campaign{}, invalid("say what to change: pass_percent, max_wait_seconds, max_waiting, max_failures, rate or max_latency_ms")
		}
		change := asked.change()
		if match := c.echo.Request().Header.Get("If-Match"); match != "*" {
			change.Hash = campaign.Hash(strings.Trim(match, `"`))
		}
		return c.deps.Enforcer.ChangeCampaign(c.ctx, key, change, c.caller.actor)
	})
}

func pauseCampaign(c *call) (answer, error)  { return c.campaignAct(c.deps.Enforcer.PauseCampaign) }
func resumeCampaign(c *call) (answer, error) { return c.campaignAct(c.deps.Enforcer.ResumeCampaign) }

func (c *call) campaignAct(do func(ctx context.Context, key uuid.UUID, actor audit.Actor) (postgres.Campaign, error)) (answer, error) {
	var none struct{}
	return c.campaign(&none, func(key uuid.UUID) (postgres.Campaign, error) { return do(c.ctx, key, c.caller.actor) })
}

// AbortRequest says whether the rotations are cancelled that the campaign opened.
type AbortRequest struct {
	CancelRunning bool `json:"cancel_running,omitempty"`
}

func abortCampaign(c *call) (answer, error) {
	var asked AbortRequest
	return c.campaign(&asked, func(key uuid.UUID) (postgres.Campaign, error) {
		return c.deps.Enforcer.AbortCampaign(c.ctx, key, asked.CancelRunning, c.caller.actor)
	})
}

// campaign does something to the campaign in the path, with what the body asks.
func (c *call) campaign(asked any, do func(key uuid.UUID) (postgres.Campaign, error)) (answer, error) {
	key, err := c.key("campaign_id", "campaign")
	if err != nil {
		return answer{}, err
	}
	if err := c.into(asked); err != nil {
		return answer{}, err
	}
	after, err := do(key)
	a := ok(campaignOf(after))
	a.header = map[string]string{"ETag": campaignTag(after.Hash)}
	return a, err
}

// watchCampaign streams how far a campaign has come (event `progress`) whenever something moved, until it has ended.
func watchCampaign(c *call) *Problem {
	key, err := c.key("campaign_id", "campaign")
	if err != nil {
		return c.problemOf(err)
	}
	if _, err := c.deps.Enforcer.CampaignProgress(c.ctx, key); err != nil {
		return c.problemOf(err)
	}
	seen := ""
	return c.follow(func(to streamed) (bool, error) {
		progress, err := c.deps.Enforcer.CampaignProgress(c.ctx, key)
		if err != nil {
			return false, err
		}
		view := progressOf(progress)
		moved, err := json.Marshal([]any{view.Campaign, view.Counts, view.Progress, view.Approvals})
		if err != nil {
			return false, fmt.Errorf("streaming: %w", err)
		}
		// The estimate goes on by itself: it is no news.
		if string(moved) == seen {
			return view.State.Ended(), nil
		}
		seen = string(moved)
		return view.State.Ended(), to.event("progress", "", view)
	})
}
