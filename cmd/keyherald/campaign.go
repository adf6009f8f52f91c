package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

func campaignCommand(load func() (config, error)) *cobra.Command {
	cmd := &cobra.Command{Use: "campaign", Short: "Campaigns: rotate a company's keys in waves, at a rate, with a second admin's approval"}
	cmd.AddCommand(campaignStart(load), campaignApprove(load), campaignWatch(load), campaignChange(load), campaignAbort(load), campaignList(load), campaignShow(load),
		campaignAct(load, "pause", "Begin nobody more until it is resumed; who has begun goes on", (*enforce.Enforcer).PauseCampaign),
		campaignAct(load, "resume", "Let a paused campaign go on", (*enforce.Enforcer).ResumeCampaign))
	return cmd
}

// campaignFlags are what a campaign is asked to be.
type campaignFlags struct {
	parameters    campaign.Parameters
	users         []string
	from          string
	exclude       []string
	release       bool
	compromise    bool
	idempotency   string
	dryRun, wants bool
}

func (f *campaignFlags) add(cmd *cobra.Command) {
	p := &f.parameters
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
	flags.StringArrayVar(&f.exclude, "exclude-device", nil, "a device (@alice:example.org/DEVICE) that gets no key from now on; may be repeated")
	flags.IntSliceVar(&p.Waves, "waves", nil, "percents of the users that have begun once each wave has (default 1,10,100)")
	flags.IntVar(&p.PassPercent, "pass", 0, "how many percent of a wave must be done for it to pass (default 95)")
	flags.DurationVar(&p.MaxWait, "max-wait", 0, "how long a wave is waited for (default 24h)")
	flags.IntVar(&p.MaxWaiting, "max-waiting", 0, "how many percent of a wave may still be waited for then (default 20)")
	flags.IntVar(&p.MaxFailures, "max-failures", 0, "above how many percent of failures it stops (default 10)")
	flags.IntVar(&p.Rate, "rate", 0, "how many users begin in a minute at most (default 120)")
	flags.DurationVar(&p.MaxLatency, "max-latency", 0, "how long the homeserver may take for a message before fewer begin (default 1s)")
	flags.StringVar(&p.Reason, "reason", "", "why, for the audit log")
	flags.StringVar(&p.Ticket, "ticket", "", "the ticket, for the audit log")
	flags.StringVar(&f.idempotency, "idempotency-key", "", "makes a repeated start the same campaign")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say for every user what would happen and why not, and touch nothing")
	flags.BoolVar(&f.wants, "json", false, "print JSON")
	_ = cmd.MarkFlagRequired("reason")
}

// read completes the parameters.
func (f *campaignFlags) read() error {
	p := &f.parameters
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

func campaignStart(load func() (config, error)) *cobra.Command {
	var f campaignFlags
	cmd := &cobra.Command{Use: "start", Short: "Start a campaign, or with --dry-run say what it would do", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := f.read(); err != nil {
			return err
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			if f.dryRun {
				plan, err := enforcer.PlanCampaign(cmd.Context(), f.parameters)
				if err != nil {
					return err
				}
				return printPlan(cmd.OutOrStdout(), plan, f.wants)
			}
			c, started, err := enforcer.StartCampaign(cmd.Context(), enforce.CampaignRequest{Parameters: f.parameters, IdempotencyKey: f.idempotency}, localActor())
			if err != nil {
				return err
			}
			if f.wants {
				return printJSON(cmd.OutOrStdout(), campaignViewOf(c))
			}
			if !started {
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), "This campaign was started before, with the same idempotency key:")
			}
			return printCampaign(cmd.OutOrStdout(), c)
		})
	}}
	f.add(cmd)
	return cmd
}

func campaignApprove(load func() (config, error)) *cobra.Command {
	var hash string
	cmd := &cobra.Command{Use: "approve CAMPAIGN", Short: "Approve a campaign of somebody else's, for the users and parameters that its hash stands for", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return onCampaign(cmd, load, args[0], func(enforcer *enforce.Enforcer, key uuid.UUID) (postgres.Campaign, error) {
			return enforcer.ApproveCampaign(cmd.Context(), key, campaign.Hash(hash), localActor())
		})
	}}
	cmd.Flags().StringVar(&hash, "hash", "", "the hash of what you looked at, as `keyherald campaign show` prints it")
	_ = cmd.MarkFlagRequired("hash")
	return cmd
}

func campaignAct(load func() (config, error), name, short string, do func(*enforce.Enforcer, context.Context, uuid.UUID, audit.Actor) (postgres.Campaign, error)) *cobra.Command {
	return &cobra.Command{Use: name + " CAMPAIGN", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return onCampaign(cmd, load, args[0], func(enforcer *enforce.Enforcer, key uuid.UUID) (postgres.Campaign, error) {
			return do(enforcer, cmd.Context(), key, localActor())
		})
	}}
}

func campaignAbort(load func() (config, error)) *cobra.Command {
	var cancelRunning bool
	cmd := &cobra.Command{Use: "abort CAMPAIGN", Short: "End a campaign: who has not begun stays as he is, and the others go on until they are done", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return onCampaign(cmd, load, args[0], func(enforcer *enforce.Enforcer, key uuid.UUID) (postgres.Campaign, error) {
			return enforcer.AbortCampaign(cmd.Context(), key, cancelRunning, localActor())
		})
	}}
	cmd.Flags().BoolVar(&cancelRunning, "cancel-running", false, "cancel the rotations that it opened and that have not ended; what a device has done stays done")
	return cmd
}

func campaignChange(load func() (config, error)) *cobra.Command {
	var pass, maxWaiting, maxFailures, rate int
	var maxWait, maxLatency time.Duration
	cmd := &cobra.Command{Use: "change CAMPAIGN", Short: "Change how a campaign goes that waits for approval or is paused; what was approved is void", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var change enforce.CampaignChange
		for name, set := range map[string]func(){"pass": func() { change.PassPercent = &pass }, "max-waiting": func() { change.MaxWaiting = &maxWaiting }, "max-failures": func() { change.MaxFailures = &maxFailures },
			"rate": func() { change.Rate = &rate }, "max-wait": func() { change.MaxWait = &maxWait }, "max-latency": func() { change.MaxLatency = &maxLatency }} {
			if cmd.Flags().Changed(name) {
				set()
			}
		}
		if change == (enforce.CampaignChange{}) {
			return errors.New("say what to change: --rate, --pass, --max-wait, --max-waiting, --max-failures or --max-latency")
		}
		return onCampaign(cmd, load, args[0], func(enforcer *enforce.Enforcer, key uuid.UUID) (postgres.Campaign, error) {
			return enforcer.ChangeCampaign(cmd.Context(), key, change, localActor())
		})
	}}
	cmd.Flags().IntVar(&rate, "rate", 0, "how many users begin in a minute at most")
	cmd.Flags().IntVar(&pass, "pass", 0, "how many percent of a wave must be done for it to pass")
	cmd.Flags().DurationVar(&maxWait, "max-wait", 0, "how long a wave is waited for")
	cmd.Flags().IntVar(&maxWaiting, "max-waiting", 0, "how many percent of a wave may still be waited for then")
	cmd.Flags().IntVar(&maxFailures, "max-failures", 0, "above how many percent of failures it stops")
	cmd.Flags().DurationVar(&maxLatency, "max-latency", 0, "how long the homeserver may take for a message before fewer begin")
	return cmd
}

func onCampaign(cmd *cobra.Command, load func() (config, error), name string, do func(*enforce.Enforcer, uuid.UUID) (postgres.Campaign, error)) error {
	key, err := campaignID(name)
	if err != nil {
		return err
	}
	return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
		c, err := do(enforcer, key)
		if err != nil {
			return err
		}
		return printCampaign(cmd.OutOrStdout(), c)
	})
}

func campaignList(load func() (config, error)) *cobra.Command {
	var state string
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List campaigns, newest first", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withEnforcer(cmd.Context(), load, func(_ config, db *postgres.DB, _ *enforce.Enforcer) error {
			campaigns, err := db.Campaigns(cmd.Context(), postgres.CampaignFilter{State: campaign.State(state), Limit: 1000})
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				for _, c := range campaigns {
					if err := encoder.Encode(campaignViewOf(c)); err != nil {
						return fmt.Errorf("printing: %w", err)
					}
				}
				return nil
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(table, "CAMPAIGN\tKIND\tUSERS\tSTATE\tWAVE\tSTARTED BY\tAT\tREASON")
			for _, c := range campaigns {
				_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d of %d\t%s\t%s\t%s\n", c.ID, c.Parameters.Kind, c.Users, c.State, c.Wave, len(c.Parameters.Waves), c.StartedBy, when(c.CreatedAt), c.Parameters.Reason)
			}
			return table.Flush()
		})
	}}
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

func campaignShow(load func() (config, error)) *cobra.Command {
	var asJSON bool
	var state string
	cmd := &cobra.Command{Use: "show CAMPAIGN", Short: "Show a campaign: who is done, who is stuck, and what to do about it", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := campaignID(args[0])
		if err != nil {
			return err
		}
		return withEnforcer(cmd.Context(), load, func(_ config, db *postgres.DB, enforcer *enforce.Enforcer) error {
			progress, err := enforcer.CampaignProgress(cmd.Context(), key)
			if err != nil {
				return err
			}
			states := []campaign.UserState{campaign.NeedsAttention, campaign.Failed}
			if state != "" {
				states = []campaign.UserState{campaign.UserState(state)}
			}
			users, err := campaignUsers(cmd.Context(), db, key, states)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), progressViewOf(progress, users))
			}
			return printProgress(cmd.OutOrStdout(), progress, users)
		})
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&state, "users", "", "the users in this state, in place of those who need somebody")
	return cmd
}

// campaignUsers are all users in these states.
func campaignUsers(ctx context.Context, db *postgres.DB, key uuid.UUID, states []campaign.UserState) ([]postgres.CampaignUser, error) {
	const page = 1000
	var all []postgres.CampaignUser
	for _, state := range states {
		for after := id.UserID(""); ; {
			users, err := db.CampaignUsers(ctx, postgres.CampaignUserFilter{Campaign: key, State: state, After: after, Limit: page})
			if err != nil {
				return nil, err
			}
			all = append(all, users...)
			if len(users) < page {
				break
			}
			after = users[len(users)-1].UserID
		}
	}
	return all, nil
}

func campaignID(text string) (uuid.UUID, error) {
	key, err := uuid.Parse(text)
	if err != nil {
		return key, fmt.Errorf("%q is no campaign's id: `keyherald campaign list` shows them", text)
	}
	return key, nil
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
