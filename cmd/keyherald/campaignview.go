package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/campaign"
)

// progressView is a campaign as `show --json` prints it, with the users who were asked for.
type progressView struct {
	api.CampaignProgress
	People []api.CampaignUser `json:"people,omitempty"`
}

func printCampaign(out io.Writer, c api.Campaign) error {
	_, err := fmt.Fprintf(out, "campaign %s is %s: %d users in %d waves\nhash     %s\n", c.ID, c.State, c.Users, len(c.Waves), c.Hash)
	if err == nil && c.State == campaign.AwaitingApproval {
		_, err = fmt.Fprintf(out, "Another admin must approve it within %s: keyherald campaign approve %s --hash %s\n", campaign.ApprovalLife, c.ID, c.Hash)
	}
	return err
}

func printProgress(out io.Writer, p api.CampaignProgress, users []api.CampaignUser) error {
	if err := printCampaign(out, p.Campaign); err != nil {
		return err
	}
	table := newTable(out)
	_, _ = fmt.Fprintf(table, "reason\t%s\nstarted by\t%s at %s\n", p.Reason, p.StartedBy, when(p.CreatedAt))
	if p.StateCause != "" {
		_, _ = fmt.Fprintf(table, "because\t%s\n", p.StateCause)
	}
	for _, line := range parameterLines(p) {
		_, _ = fmt.Fprintf(table, "%s\t%s\n", line[0], plain(line[1]))
	}
	for _, a := range p.Approvals {
		stands := "good until " + when(a.ExpiresAt)
		if a.VoidedAt != nil {
			stands = "void since " + when(*a.VoidedAt) + ": " + a.VoidCause
		}
		_, _ = fmt.Fprintf(table, "approved by\t%s at %s, %s\n", a.Approver, when(a.GivenAt), stands)
	}
	for _, w := range p.Progress {
		_, _ = fmt.Fprintf(table, "wave %d\t%s\n", w.Wave, countsText(w.Counts, w.Users))
	}
	_, _ = fmt.Fprintf(table, "together\t%s\n", countsText(p.Counts, p.Users))
	if p.State == campaign.Running {
		_, _ = fmt.Fprintf(table, "end\t%s\n", endText(p))
	}
	if err := table.Flush(); err != nil || len(users) == 0 {
		return err
	}
	table = newTable(out)
	_, _ = fmt.Fprintln(table, "\nUSER\tSTATE\tCAUSE\tNEXT ACTION")
	for _, u := range users {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", u.UserID, u.State, u.Cause, u.NextAction)
	}
	return table.Flush()
}

// parameterLines are all that an approval is for, as people read it.
func parameterLines(p api.CampaignProgress) (lines [][2]string) {
	add := func(name, text string) {
		if text != "" {
			lines = append(lines, [2]string{name, text})
		}
	}
	add("ticket", p.Ticket)
	add("kind", string(p.Kind))
	if of := p.Parameters; of != nil {
		add("for", whoText(of.Who))
		if of.KMS != "" {
			add("keys", of.KMS+": "+of.Path)
		} else if p.Kind == campaign.Rotate {
			add("keys", "where each was rotated last")
		}
		add("devices hear", string(of.KeyReason))
	}
	for _, x := range p.Exclusions {
		since := "from the first wave on"
		if x.ExcludedAt != nil {
			since = "since " + when(*x.ExcludedAt)
		} else if p.Wave > 0 {
			since = "until that was lifted"
		}
		add("no key for", exclusionText(x, since))
	}
	add("waves", fmt.Sprintf("%v percent", p.Waves))
	add("passes", fmt.Sprintf("at %d %% done, or after %s with at most %d %% waited for", p.PassPercent, p.MaxWait, p.MaxWaiting))
	add("stops", fmt.Sprintf("above %d %% failed", p.MaxFailures))
	add("rate", fmt.Sprintf("%d users a minute, fewer where the homeserver takes more than %s", p.Rate, p.MaxLatency))
	return lines
}

// exclusionText names a device that is excluded, and says where it gets a key all the same.
func exclusionText(x api.Exclusion, since string) string {
	text := fmt.Sprintf("%s %s, %s", x.UserID, x.DeviceID, since)
	switch x.Reach {
	case campaign.MayGetKey:
		text += fmt.Sprintf("; but it may get that of rotation %s, which was triggered before. %s", x.Rotation, x.NextAction)
	case campaign.GotKey:
		text += fmt.Sprintf("; but it got that of rotation %s, which was triggered before. %s", x.Rotation, x.NextAction)
	}
	return text
}

func whoText(who api.CampaignWho) string {
	var parts []string
	if who.All {
		parts = append(parts, "everybody")
	}
	parts = append(parts, who.Globs...)
	for i, user := range who.Users {
		if i == 10 {
			parts = append(parts, fmt.Sprintf("and %d more", len(who.Users)-i))
			break
		}
		parts = append(parts, user.String())
	}
	text := strings.Join(parts, ", ")
	if len(who.Except) > 0 {
		text += "; but not " + strings.Join(who.Except, ", ")
	}
	return text
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
func endText(p api.CampaignProgress) string {
	between := fmt.Sprintf("not before %s, and by %s it has ended or asks for somebody", at(p.Earliest), at(p.Latest))
	if p.Likely == nil {
		return between + "; too few are done to say more"
	}
	return "about " + at(p.Likely) + "; " + between
}

// printPlan prints a plan; where a program reads it, what is to be said of the whole goes to people beside it.
func printPlan(out, beside io.Writer, plan api.CampaignPlan, asJSON bool) error {
	if asJSON {
		if err := printLines(out, plan.Users); err != nil {
			return err
		}
		return printPlanNotes(beside, plan)
	}
	table := newTable(out)
	_, _ = fmt.Fprintln(table, "USER\tWAVE\tWOULD\tWHY NOT\tNEXT ACTION")
	would := map[campaign.Begin]int{}
	offline := 0
	for _, u := range plan.Users {
		would[u.Would]++
		text := string(u.Would)
		if u.Offline && u.Would != campaign.BeginLeave {
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
	for _, u := range plan.Users {
		for _, x := range u.Exclude {
			_, _ = fmt.Fprintf(out, "No key for %s.\n", plain(exclusionText(x, "from the first wave on")))
		}
	}
	if err := printPlanNotes(out, plan); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "hash %s\n", plan.Hash)
	return err
}

func printPlanNotes(out io.Writer, plan api.CampaignPlan) (err error) {
	for _, pattern := range plan.Unmatched {
		_, err = fmt.Fprintf(out, "Nobody matches %s: the start would be refused.\n", pattern)
	}
	for _, user := range plan.NotThere {
		_, err = fmt.Fprintf(out, "%s is not there: the start would be refused.\n", user)
	}
	if plan.Frozen {
		_, err = fmt.Fprintln(out, "Triggers are frozen: nobody would begin until `keyherald thaw`.")
	}
	if plan.NeedsApproval {
		_, err = fmt.Fprintln(out, "A second admin would have to approve it.")
	}
	return err
}
