package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/postgres"
)

// campaignView is a campaign as `--json` prints it. Times are RFC 3339, missing where there is none yet.
type campaignView struct {
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

func campaignViewOf(c postgres.Campaign) campaignView {
	p := c.Parameters
	return campaignView{ID: c.ID, Kind: p.Kind, State: c.State, StateCause: c.StateCause, Hash: c.Hash, Users: c.Users, Wave: c.Wave, Waves: p.Waves, Rate: p.Rate,
		PassPercent: p.PassPercent, MaxWait: p.MaxWait.String(), MaxWaiting: p.MaxWaiting, MaxFailures: p.MaxFailures, MaxLatency: p.MaxLatency.String(), Reason: p.Reason, Ticket: p.Ticket,
		StartedBy: c.StartedBy, NeedsApproval: c.NeedsApproval, CreatedAt: c.CreatedAt, ApprovedAt: optional(c.ApprovedAt), BegunAt: optional(c.BegunAt), PausedAt: optional(c.PausedAt), EndedAt: optional(c.EndedAt)}
}

type progressView struct {
	campaignView
	Counts   campaign.Counts    `json:"counts"`
	Progress []waveView         `json:"progress"`
	RateNow  int                `json:"rate_now"`
	Earliest *time.Time         `json:"earliest_end,omitempty"`
	Likely   *time.Time         `json:"likely_end,omitempty"`
	Latest   *time.Time         `json:"latest_end,omitempty"`
	People   []campaignUserView `json:"people,omitempty"`
}

type waveView struct {
	Wave      int             `json:"wave"`
	Percent   int             `json:"percent"`
	Users     int             `json:"users"`
	Counts    campaign.Counts `json:"counts"`
	StartedAt *time.Time      `json:"started_at,omitempty"`
	PassedAt  *time.Time      `json:"passed_at,omitempty"`
}

type campaignUserView struct {
	UserID     id.UserID          `json:"user_id"`
	Wave       int                `json:"wave"`
	State      campaign.UserState `json:"state"`
	Rotation   string             `json:"rotation,omitempty"`
	Joined     bool               `json:"joined,omitempty"`
	Cause      campaign.Cause     `json:"cause,omitempty"`
	NextAction string             `json:"next_action,omitempty"`
}

func progressViewOf(p enforce.CampaignProgress, users []postgres.CampaignUser) progressView {
	v := progressView{campaignView: campaignViewOf(p.Campaign), Counts: p.Counts, RateNow: p.RateNow,
		Earliest: optional(p.Estimate.Earliest), Likely: optional(p.Estimate.Likely), Latest: optional(p.Estimate.Latest)}
	for _, w := range p.Waves {
		v.Progress = append(v.Progress, waveView{w.Wave, w.Percent, w.Users, w.Counts, optional(w.StartedAt), optional(w.PassedAt)})
	}
	for _, u := range users {
		view := campaignUserView{UserID: u.UserID, Wave: u.Wave, State: u.State, Joined: u.Joined, Cause: u.Cause, NextAction: u.NextAction}
		if u.Rotation != uuid.Nil {
			view.Rotation = u.Rotation.String()
		}
		v.People = append(v.People, view)
	}
	return v
}

func printCampaign(out io.Writer, c postgres.Campaign) error {
	_, err := fmt.Fprintf(out, "campaign %s is %s: %d users in %d waves\nhash     %s\n", c.ID, c.State, c.Users, len(c.Parameters.Waves), c.Hash)
	if err == nil && c.State == campaign.AwaitingApproval {
		_, err = fmt.Fprintf(out, "Another admin must approve it within %s: keyherald campaign approve %s --hash %s\n", campaign.ApprovalLife, c.ID, c.Hash)
	}
	return err
}

func printProgress(out io.Writer, p enforce.CampaignProgress, users []postgres.CampaignUser) error {
	if err := printCampaign(out, p.Campaign); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintf(table, "reason\t%s\nstarted by\t%s at %s\n", p.Parameters.Reason, p.StartedBy, when(p.CreatedAt))
	if p.StateCause != "" {
		_, _ = fmt.Fprintf(table, "because\t%s\n", p.StateCause)
	}
	for _, a := range p.Approvals {
		stands := "good until " + when(a.ExpiresAt)
		if !a.VoidedAt.IsZero() {
			stands = "void since " + when(a.VoidedAt) + ": " + a.VoidCause
		}
		_, _ = fmt.Fprintf(table, "approved by\t%s at %s, %s\n", a.Approver, when(a.GivenAt), stands)
	}
	for _, w := range p.Waves {
		_, _ = fmt.Fprintf(table, "wave %d\t%s\n", w.Wave, countsText(w.Counts, w.Users))
	}
	_, _ = fmt.Fprintf(table, "together\t%s\n", countsText(p.Counts, p.Users))
	if p.State == campaign.Running {
		_, _ = fmt.Fprintf(table, "end\t%s\n", endText(p.Estimate))
	}
	if err := table.Flush(); err != nil || len(users) == 0 {
		return err
	}
	table = tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\nUSER\tSTATE\tCAUSE\tNEXT ACTION")
	for _, u := range users {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", u.UserID, u.State, u.Cause, u.NextAction)
	}
	return table.Flush()
}

func countsText(c campaign.Counts, users int) string {
	text := fmt.Sprintf("%d of %d done", c.Done, users)
	for _, state := range campaign.UserStates() {
		if n := *c.Of(state); n > 0 && state != campaign.Done {
			text += fmt.Sprintf(", %d %s", n, state)
		}
	}
	return text
}

// endText tells the estimate of the end as honestly as it is known.
func endText(e campaign.Estimate) string {
	between := fmt.Sprintf("not before %s, and by %s it has ended or asks for somebody", when(e.Earliest), when(e.Latest))
	if e.Likely.IsZero() {
		return between + "; too few are done to say more"
	}
	return "about " + when(e.Likely) + "; " + between
}

func printPlan(out io.Writer, plan enforce.CampaignPlan, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		for _, u := range plan.Users {
			line := struct {
				campaignUserView
				Begin   campaign.Begin `json:"would"`
				Offline bool           `json:"offline,omitempty"`
			}{campaignUserView{UserID: u.UserID, Wave: u.Wave, State: u.State, Cause: u.Cause, NextAction: u.NextAction}, u.Begin, u.Offline}
			if u.Rotation != uuid.Nil {
				line.Rotation = u.Rotation.String()
			}
			if err := encoder.Encode(line); err != nil {
				return fmt.Errorf("printing: %w", err)
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "USER\tWAVE\tWOULD\tWHY NOT\tNEXT ACTION")
	would := map[campaign.Begin]int{}
	offline := 0
	for _, u := range plan.Users {
		would[u.Begin]++
		text := string(u.Begin)
		if u.Offline && u.Begin != campaign.BeginLeave {
			offline++
			text += " (offline: waited for)"
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", u.UserID, u.Wave, text, u.Cause, u.NextAction)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "\n%d users: %d get a rotation, %d have one that is followed, %d are released, %d are left out; %d are offline. Nothing was touched.\n",
		len(plan.Users), would[campaign.BeginOpen], would[campaign.BeginJoin], would[campaign.BeginRelease], would[campaign.BeginLeave], offline)
	for _, pattern := range plan.Unmatched {
		_, _ = fmt.Fprintf(out, "Nobody matches %s: the start would be refused.\n", pattern)
	}
	for _, user := range plan.NotThere {
		_, _ = fmt.Fprintf(out, "%s is not there: the start would be refused.\n", user)
	}
	if plan.NeedsApproval {
		_, _ = fmt.Fprintln(out, "A second admin would have to approve it.")
	}
	_, err := fmt.Fprintf(out, "hash %s\n", plan.Hash)
	return err
}
