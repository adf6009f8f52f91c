package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/roster"
)

func newEnforcer(c config, db *postgres.DB, engine *relay.Engine, notices *notice.Notices, log zerolog.Logger) (*enforce.Enforcer, error) {
	approval, err := campaign.ParseApproval(c.Campaigns.Approval)
	if err != nil {
		return nil, fmt.Errorf("campaigns.approval: %w", err)
	}
	return enforce.New(enforce.Config{DB: db, Engine: engine, StatusInterval: c.StatusInterval, Approval: approval, Log: log,
		Moved: func(ctx context.Context, c postgres.Campaign, all campaign.Counts) error {
			return tellCampaign(ctx, notices, c, all)
		}})
}

// withEnforcer is withEngine for what the company wants of everybody.
func withEnforcer(ctx context.Context, load func() (config, error), do func(config, *postgres.DB, *enforce.Enforcer) error) error {
	c, err := load()
	if err != nil {
		return err
	}
	return withEngine(ctx, func() (config, error) { return c, nil }, func(db *postgres.DB, engine *relay.Engine) error {
		notices, err := newNotices(c, db, zerolog.Nop())
		if err != nil {
			return err
		}
		enforcer, err := newEnforcer(c, db, engine, notices, zerolog.Nop())
		if err != nil {
			return err
		}
		return do(c, db, enforcer)
	})
}

// rosterView is a user of the roster as `--json` prints him.
type rosterView struct {
	UserID       id.UserID  `json:"user_id"`
	AddedAt      time.Time  `json:"added_at"`
	AddedBy      string     `json:"added_by"`
	ExemptReason string     `json:"exempt_reason,omitempty"`
	ExemptUntil  *time.Time `json:"exempt_until,omitempty"`
}

func rosterCommand(load func() (config, error)) *cobra.Command {
	cmd := &cobra.Command{Use: "roster", Short: "Who must be covered"}
	cmd.AddCommand(rosterApply(load), rosterList(load), rosterAdd(load), rosterRemove(load), rosterExempt(load), rosterInclude(load))
	return cmd
}

func rosterApply(load func() (config, error)) *cobra.Command {
	var removals int
	var asJSON bool
	cmd := &cobra.Command{Use: "apply FILE.csv", Short: "Make the roster what a file says; who is not in it leaves: his rotations end and his devices are revoked", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		entries, err := readRoster(args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			change, err := enforcer.ApplyRoster(cmd.Context(), enforce.Roster{Entries: entries, AllowRemovals: removals}, localActor())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(change)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The roster has %d users: %d came, %d left, %d were exempted, %d exemptions were taken back.\n", change.Users, change.Added, change.Left, change.Exempted, change.ExemptionsEnded)
			return printLeft(cmd.OutOrStdout(), change, err)
		})
	}}
	cmd.Flags().IntVar(&removals, "allow-removals", 0, "how many users may leave, where they are more than 20 and 10 %, or all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printLeft(out io.Writer, change enforce.RosterChange, err error) error {
	if err == nil && change.Left > 0 {
		_, err = fmt.Fprintf(out, "For those who left %d rotations were cancelled, %d devices revoked, and %d enrollment codes are void. Now log their devices out and cut their access to the KMS.\n", change.Rotations, change.Devices, change.Codes)
	}
	return err
}

// readRoster reads the file, or standard input for -.
func readRoster(path string, stdin io.Reader) ([]roster.Entry, error) {
	in := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("opening the roster: %w", err)
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	entries, err := roster.ParseCSV(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; nothing was applied", path, err)
	}
	return entries, nil
}

func rosterList(load func() (config, error)) *cobra.Command {
	var asJSON, asCSV bool
	cmd := &cobra.Command{Use: "list", Short: "List who is on the roster", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withEnforcer(cmd.Context(), load, func(_ config, db *postgres.DB, _ *enforce.Enforcer) error {
			rows, err := db.Roster(cmd.Context(), postgres.RosterFilter{})
			if err != nil {
				return err
			}
			if asCSV {
				entries := make([]roster.Entry, len(rows))
				for i, r := range rows {
					entries[i] = r.Entry
				}
				return roster.WriteCSV(cmd.OutOrStdout(), entries)
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				for _, r := range rows {
					if err := encoder.Encode(rosterView{r.UserID, r.AddedAt, r.AddedBy, r.Exemption.Reason, optional(r.Exemption.Until)}); err != nil {
						return fmt.Errorf("printing the roster: %w", err)
					}
				}
				return nil
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(table, "USER\tADDED\tBY\tEXEMPT UNTIL\tREASON")
			for _, r := range rows {
				until := ""
				if !r.Exemption.None() {
					until = when(r.Exemption.Until)
				}
				_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.UserID, when(r.AddedAt), r.AddedBy, until, r.Exemption.Reason)
			}
			return table.Flush()
		})
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print CSV, as apply reads it")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	return cmd
}

func rosterAdd(load func() (config, error)) *cobra.Command {
	return &cobra.Command{Use: "add USER", Short: "Put one user on the roster", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			return enforcer.AddToRoster(cmd.Context(), roster.Entry{UserID: id.UserID(args[0])}, localActor())
		})
	}}
}

func rosterRemove(load func() (config, error)) *cobra.Command {
	return &cobra.Command{Use: "remove USER", Short: "Take one user off the roster: his rotations end and his devices are revoked", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			change, err := enforcer.RemoveFromRoster(cmd.Context(), id.UserID(args[0]), localActor())
			return printLeft(cmd.OutOrStdout(), change, err)
		})
	}}
}

func rosterExempt(load func() (config, error)) *cobra.Command {
	var reason, until string
	cmd := &cobra.Command{Use: "exempt USER", Short: "Exempt a user of the roster until a day, which is in it, or a time", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		end, err := roster.Until(until)
		if err != nil {
			return fmt.Errorf("--until: %w", err)
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			if err := enforcer.Exempt(cmd.Context(), id.UserID(args[0]), reason, end, localActor()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is exempt until %s.\n", args[0], when(end))
			return err
		})
	}}
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	cmd.Flags().StringVar(&until, "until", "", "when it ends, such as 2026-11-30")
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagRequired("until")
	return cmd
}

func rosterInclude(load func() (config, error)) *cobra.Command {
	return &cobra.Command{Use: "include USER", Short: "Take a user's exemption back", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			return enforcer.Include(cmd.Context(), id.UserID(args[0]), localActor())
		})
	}}
}
