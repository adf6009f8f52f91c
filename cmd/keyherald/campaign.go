package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/rotation"
)

func campaignCommand(r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "campaign", Short: "Campaigns: rotate a company's keys in waves, at a rate, with a second admin's approval"}
	cmd.AddCommand(campaignStart(r), campaignApprove(r), campaignWatch(r), campaignChange(r), campaignAbort(r), campaignList(r), campaignShow(r),
		campaignAct(r, "pause", "Begin nobody more until it is resumed; who has begun goes on"),
		campaignAct(r, "resume", "Let a paused campaign go on"))
	return cmd
}

// campaignFlags are what a campaign is asked to be.
type campaignFlags struct {
	request       api.CampaignRequest
	bounds        boundFlags
	users         []string
	from          string
	exclude       []string
	release       bool
	compromise    bool
	idempotency   string
	dryRun, wants bool
}

// boundFlags are how a campaign goes.
type boundFlags struct {
	pass, maxWaiting, maxFailures, rate int
	maxWait, maxLatency                 time.Duration
}

func (b *boundFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&b.pass, "pass", 0, "how many percent of a wave must be done for it to pass (default 95)")
	flags.DurationVar(&b.maxWait, "max-wait", 0, "how long a wave is waited for (default 24h)")
	flags.IntVar(&b.maxWaiting, "max-waiting", 0, "how many percent of a wave may still be waited for then, 0 for nobody (default 20)")
	flags.IntVar(&b.maxFailures, "max-failures", 0, "above how many percent of failures it stops, 0 for at the first one (default 10)")
	flags.IntVar(&b.rate, "rate", 0, "how many users begin in a minute at most (default 120)")
	flags.DurationVar(&b.maxLatency, "max-latency", 0, "how long the homeserver may take for a message before fewer begin (default 1s)")
}

// read takes what was said alone.
func (b *boundFlags) read(cmd *cobra.Command) (bounds api.CampaignBounds) {
	wait, latency := int64(b.maxWait/time.Second), b.maxLatency.Milliseconds()
	for name, set := range map[string]func(){"pass": func() { bounds.PassPercent = &b.pass }, "max-waiting": func() { bounds.MaxWaiting = &b.maxWaiting }, "max-failures": func() { bounds.MaxFailures = &b.maxFailures },
		"rate": func() { bounds.Rate = &b.rate }, "max-wait": func() { bounds.MaxWait = &wait }, "max-latency": func() { bounds.MaxLatency = &latency }} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	return bounds
}

func (f *campaignFlags) add(cmd *cobra.Command) {
	p := &f.request
	flags := cmd.Flags()
	flags.BoolVar(&p.Who.All, "all", false, "everybody on the roster; with --release, everybody who is held")
	flags.StringArrayVar(&p.Who.Globs, "users", nil, "a glob over user ids, such as '@*:example.org'; may be repeated")
	flags.StringArrayVar(&f.users, "user", nil, "a user's id; may be repeated")
	flags.StringVar(&f.from, "from", "", "a file with a user id on each line")
	flags.StringArrayVar(&p.Who.Except, "except", nil, "a glob over user ids who are left out; may be repeated")
	flags.BoolVar(&f.release, "release", false, "release the rotations that the storm limit holds, in place of making keys")
	flags.StringVar(&p.KMS, "kms", "", "the KMS where the keys are, as the device's account file names it; empty is where each was rotated last")
	flags.StringVar(&p.Path, "path", "", "the path of the keys there; {user} is the localpart of the user's Matrix id")
	flags.BoolVar(&f.compromise, "compromise", false, "the keys may be known to others: the devices are told, and an unsigned log holds nobody")
	flags.StringArrayVar(&f.exclude, "exclude-device", nil, "a device (@alice:example.org/DEVICE) of one of these users that gets no key from the first wave on, whenever his turn comes; may be repeated")
	flags.IntSliceVar(&p.Waves, "waves", nil, "percents of the users that have begun once each wave has (default 1,10,100)")
	f.bounds.add(cmd)
	flags.StringVar(&p.Reason, "reason", "", "why, for the audit log")
	flags.StringVar(&p.Ticket, "ticket", "", "the ticket, for the audit log")
	flags.StringVar(&f.idempotency, "idempotency-key", "", "makes a repeated start the same campaign")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say for every user what would happen and why not, and touch nothing")
	flags.BoolVar(&f.wants, "json", false, "print JSON")
	_ = cmd.MarkFlagRequired("reason")
}

// read completes the parameters.
func (f *campaignFlags) read(cmd *cobra.Command) error {
	p := &f.request
	p.CampaignBounds = f.bounds.read(cmd)
	if f.release {
		p.Kind = campaign.Release
	}
	if f.compromise {
		p.KeyReason = rotation.ReasonCompromise
	}
	for _, user := range f.users {
		p.Who.Users = append(p.Who.Users, id.UserID(user))
	}
	if f.from != "" {
		raw, err := os.ReadFile(f.from)
		if err != nil {
			return fmt.Errorf("reading --from: %w", err)
		}
		number := 0
		for line := range strings.Lines(string(raw)) {
			number++
			user := id.UserID(strings.TrimSpace(line))
			if user == "" {
				continue
			}
			if _, _, err := user.Parse(); err != nil {
				return fmt.Errorf("%s, line %d: %q is not a Matrix user id (@name:server); nothing was done", f.from, number, user)
			}
			p.Who.Users = append(p.Who.Users, user)
		}
	}
	for _, text := range f.exclude {
		i := strings.LastIndex(text, "/")
		if i < 0 {
			return fmt.Errorf("--exclude-device %q: write @alice:example.org/DEVICE", text)
		}
		p.Exclude = append(p.Exclude, campaign.Device{UserID: id.UserID(text[:i]), DeviceID: id.DeviceID(text[i+1:])})
	}
	return nil
}

func campaignStart(r *remote) *cobra.Command {
	var f campaignFlags
	cmd := &cobra.Command{Use: "start", Short: "Start a campaign, or with --dry-run say what it would do", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := f.read(cmd); err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		if f.dryRun {
			var plan api.CampaignPlan
			if err := c.do(cmd.Context(), http.MethodPost, "/campaigns/plan", f.request, &plan); err != nil {
				return err
			}
			return printPlan(cmd.OutOrStdout(), cmd.ErrOrStderr(), plan, f.wants)
		}
		key := f.idempotency
		if key == "" {
			key = uuid.NewString()
		}
		var started api.Campaign
		if err := c.doOnce(cmd.Context(), key, http.MethodPost, "/campaigns", f.request, &started); err != nil {
			return err
		}
		if f.wants {
			return printJSON(cmd.OutOrStdout(), started)
		}
		if c.replayed && f.idempotency != "" {
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), "This campaign was started before, with the same idempotency key:")
		}
		return printCampaign(cmd.OutOrStdout(), started)
	}}
	f.add(cmd)
	return cmd
}

func campaignApprove(r *remote) *cobra.Command {
	var hash string
	cmd := &cobra.Command{Use: "approve CAMPAIGN", Short: "Approve a campaign of somebody else's, for the users and parameters that its hash stands for", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return onCampaign(cmd, r, args[0], http.MethodPost, "/approve", api.ApproveRequest{Hash: campaign.Hash(hash)})
	}}
	cmd.Flags().StringVar(&hash, "hash", "", "the hash of what you looked at, as `keyherald campaign show` prints it")
	_ = cmd.MarkFlagRequired("hash")
	return cmd
}

func campaignAct(r *remote, name, short string) *cobra.Command {
	return &cobra.Command{Use: name + " CAMPAIGN", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return onCampaign(cmd, r, args[0], http.MethodPost, "/"+name, nil)
	}}
}

func campaignAbort(r *remote) *cobra.Command {
	var cancelRunning bool
	cmd := &cobra.Command{Use: "abort CAMPAIGN", Short: "End a campaign: who has not begun stays as he is, and the others go on until they are done", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return onCampaign(cmd, r, args[0], http.MethodPost, "/abort", api.AbortRequest{CancelRunning: cancelRunning})
	}}
	cmd.Flags().BoolVar(&cancelRunning, "cancel-running", false, "cancel the rotations that it opened and that have not ended; what a device has done stays done")
	return cmd
}

func campaignChange(r *remote) *cobra.Command {
	var flags boundFlags
	cmd := &cobra.Command{Use: "change CAMPAIGN", Short: "Change how a campaign goes that waits for approval or is paused; what was approved is void", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		change := flags.read(cmd)
		if change == (api.CampaignBounds{}) {
			return errors.New("say what to change: --rate, --pass, --max-wait, --max-waiting, --max-failures or --max-latency")
		}
		return onCampaign(cmd, r, args[0], http.MethodPatch, "", change)
	}}
	flags.add(cmd)
	return cmd
}

// onCampaign does something to a campaign and prints what it is then.
func onCampaign(cmd *cobra.Command, r *remote, name, method, what string, in any) error {
	key, err := campaignID(name)
	if err != nil {
		return err
	}
	c, err := r.connect()
	if err != nil {
		return err
	}
	var after api.Campaign
	if err := c.do(cmd.Context(), method, "/campaigns/"+key.String()+what, in, &after); err != nil {
		return err
	}
	return printCampaign(cmd.OutOrStdout(), after)
}

func campaignList(r *remote) *cobra.Command {
	var state string
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List campaigns, newest first", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		filters := url.Values{}
		if state != "" {
			filters.Set("state", state)
		}
		campaigns, err := all[api.Campaign](cmd.Context(), c, "/campaigns", filters)
		if err != nil {
			return err
		}
		if asJSON {
			return printLines(cmd.OutOrStdout(), campaigns)
		}
		table := newTable(cmd.OutOrStdout())
		_, _ = fmt.Fprintln(table, "CAMPAIGN\tKIND\tUSERS\tSTATE\tWAVE\tSTARTED BY\tAT\tREASON")
		for _, c := range campaigns {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d of %d\t%s\t%s\t%s\n", c.ID, c.Kind, c.Users, c.State, c.Wave, len(c.Waves), c.StartedBy, when(c.CreatedAt), c.Reason)
		}
		return table.Flush()
	}}
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

func campaignShow(r *remote) *cobra.Command {
	var asJSON bool
	var state string
	cmd := &cobra.Command{Use: "show CAMPAIGN", Short: "Show a campaign: who is done, who is stuck, and what to do about it", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := campaignID(args[0])
		if err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var progress api.CampaignProgress
		if err := c.do(cmd.Context(), http.MethodGet, "/campaigns/"+key.String(), nil, &progress); err != nil {
			return err
		}
		states := []campaign.UserState{campaign.NeedsAttention, campaign.Failed}
		if state != "" {
			states = []campaign.UserState{campaign.UserState(state)}
		}
		var users []api.CampaignUser
		for _, state := range states {
			those, err := all[api.CampaignUser](cmd.Context(), c, "/campaigns/"+key.String()+"/users", url.Values{"state": {string(state)}})
			if err != nil {
				return err
			}
			users = append(users, those...)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), progressView{progress, users})
		}
		return printProgress(cmd.OutOrStdout(), progress, users)
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&state, "users", "", "the users in this state, in place of those who need somebody")
	return cmd
}

func campaignID(text string) (uuid.UUID, error) {
	key, err := uuid.Parse(text)
	if err != nil {
		return key, fmt.Errorf("%q is no campaign's id: `keyherald campaign list` shows them", text)
	}
	return key, nil
}
