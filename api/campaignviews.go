package api

import (
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// Campaign is a campaign. Times are missing where there is none yet.
type Campaign struct {
	ID            uuid.UUID      `json:"id"`
	Kind          campaign.Kind  `json:"kind"`
	State         campaign.State `json:"state"`
	StateCause    string         `json:"state_cause,omitempty"`
	Hash          campaign.Hash  `json:"hash"`
	Users         int            `json:"users"`
	Wave          int            `json:"wave"`
	Waves         []int          `json:"waves"`
	Rate          int            `json:"rate"`
	PassPercent   int            `json:"pass_percent"`
	MaxWait       string         `json:"max_wait"`
	MaxWaiting    int            `json:"max_waiting"`
	MaxFailures   int            `json:"max_failures"`
	MaxLatency    string         `json:"max_latency"`
	Reason        string         `json:"reason"`
	Ticket        string         `json:"ticket,omitempty"`
	StartedBy     string         `json:"started_by"`
	NeedsApproval bool           `json:"needs_approval"`
	CreatedAt     time.Time      `json:"created_at"`
	ApprovedAt    *time.Time     `json:"approved_at,omitempty"`
	BegunAt       *time.Time     `json:"begun_at,omitempty"`
	PausedAt      *time.Time     `json:"paused_at,omitempty"`
	EndedAt       *time.Time     `json:"ended_at,omitempty"`
}

func campaignOf(c postgres.Campaign) Campaign {
	p := c.Parameters
	return Campaign{ID: c.ID, Kind: p.Kind, State: c.State, StateCause: c.StateCause, Hash: c.Hash, Users: c.Users, Wave: c.Wave, Waves: p.Waves, Rate: p.Rate,
		PassPercent: p.PassPercent, MaxWait: p.MaxWait.String(), MaxWaiting: p.MaxWaiting, MaxFailures: p.MaxFailures, MaxLatency: p.MaxLatency.String(), Reason: p.Reason, Ticket: p.Ticket,
		StartedBy: c.StartedBy, NeedsApproval: c.NeedsApproval, CreatedAt: c.CreatedAt, ApprovedAt: optional(c.ApprovedAt), BegunAt: optional(c.BegunAt), PausedAt: optional(c.PausedAt), EndedAt: optional(c.EndedAt)}
}

// CampaignProgress is how far a campaign has come.
type CampaignProgress struct {
	Campaign
	Counts    campaign.Counts    `json:"counts"`
	Progress  []CampaignWave     `json:"progress"`
	Approvals []CampaignApproval `json:"approvals,omitempty"`
	RateNow   int                `json:"rate_now"`
	// Parameters is what else an approval is for; not in a stream.
	Parameters *CampaignParameters `json:"parameters,omitempty"`
	// Exclusions are what became of the devices that it excludes; not in a stream.
	Exclusions []Exclusion `json:"exclusions,omitempty"`
	// The estimate of the end, of a running campaign alone. Likely is missing while too few are done to say.
	Earliest *time.Time `json:"earliest_end,omitempty"`
	Likely   *time.Time `json:"likely_end,omitempty"`
	Latest   *time.Time `json:"latest_end,omitempty"`
}

// CampaignParameters are whom a campaign is for and what it does. With what Campaign has of them they are all that its hash is of.
type CampaignParameters struct {
	Who       CampaignWho       `json:"who"`
	KMS       string            `json:"kms,omitempty"`
	Path      string            `json:"path,omitempty"`
	KeyReason rotation.Reason   `json:"key_reason,omitempty"`
	Exclude   []campaign.Device `json:"exclude,omitempty"`
}

// CampaignWave is how far a wave has come.
type CampaignWave struct {
	Wave      int             `json:"wave"`
	Percent   int             `json:"percent"`
	Users     int             `json:"users"`
	Counts    campaign.Counts `json:"counts"`
	StartedAt *time.Time      `json:"started_at,omitempty"`
	PassedAt  *time.Time      `json:"passed_at,omitempty"`
}

// CampaignApproval is what a second admin said.
type CampaignApproval struct {
	Approver  string        `json:"approver"`
	Hash      campaign.Hash `json:"hash"`
	GivenAt   time.Time     `json:"given_at"`
	ExpiresAt time.Time     `json:"expires_at"`
	VoidedAt  *time.Time    `json:"voided_at,omitempty"`
	VoidCause string        `json:"void_cause,omitempty"`
}

// CampaignUser is how a user of a campaign stands.
type CampaignUser struct {
	UserID     id.UserID          `json:"user_id"`
	Wave       int                `json:"wave"`
	State      campaign.UserState `json:"state"`
	Rotation   string             `json:"rotation,omitempty"`
	Joined     bool               `json:"joined,omitempty"`
	Cause      campaign.Cause     `json:"cause,omitempty"`
	NextAction string             `json:"next_action,omitempty"`
}

func campaignUserOf(u postgres.CampaignUser) CampaignUser {
	view := CampaignUser{UserID: u.UserID, Wave: u.Wave, State: u.State, Joined: u.Joined, Cause: u.Cause, NextAction: u.NextAction}
	if u.Rotation != uuid.Nil {
		view.Rotation = u.Rotation.String()
	}
	return view
}

func progressOf(p enforce.CampaignProgress) CampaignProgress {
	v := CampaignProgress{Campaign: campaignOf(p.Campaign), Counts: p.Counts, RateNow: p.RateNow, Progress: []CampaignWave{},
		Earliest: optional(p.Estimate.Earliest), Likely: optional(p.Estimate.Likely), Latest: optional(p.Estimate.Latest)}
	for _, w := range p.Waves {
		v.Progress = append(v.Progress, CampaignWave{w.Wave, w.Percent, w.Users, w.Counts, optional(w.StartedAt), optional(w.PassedAt)})
	}
	for _, a := range p.Approvals {
		v.Approvals = append(v.Approvals, CampaignApproval{a.Approver, a.Hash, a.GivenAt, a.ExpiresAt, optional(a.VoidedAt), a.VoidCause})
	}
	return v
}

// Exclusion is a device that is excluded, or by a campaign. ExcludedAt is missing where it is not, or not any more. Reach is
// whether it gets a key all the same, by the rotation that is named: one that was triggered before the exclusion.
type Exclusion struct {
	campaign.Device
	ExcludedAt *time.Time     `json:"excluded_at,omitempty"`
	Reach      campaign.Reach `json:"reach,omitempty"`
	Rotation   *uuid.UUID     `json:"rotation,omitempty"`
	NextAction string         `json:"next_action,omitempty"`
}

func exclusionOf(x postgres.Exclusion) Exclusion {
	view := Exclusion{Device: x.Device, ExcludedAt: optional(x.Since), Reach: x.Reach, NextAction: x.Reach.NextAction(x.UserID)}
	if x.Rotation != uuid.Nil {
		view.Rotation = &x.Rotation
	}
	return view
}

func exclusionsOf(exclusions []postgres.Exclusion) []Exclusion {
	var views []Exclusion
	for _, x := range exclusions {
		views = append(views, exclusionOf(x))
	}
	return views
}
