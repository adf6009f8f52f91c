package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/roster"
)

func rosterCommand(r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "roster", Short: "Who must be covered"}
	cmd.AddCommand(rosterApply(r), rosterList(r), rosterAdd(r), rosterRemove(r), rosterExempt(r), rosterInclude(r))
	return cmd
}

func rosterApply(r *remote) *cobra.Command {
	var removals int
	var asJSON bool
	cmd := &cobra.Command{Use: "apply FILE.csv", Short: "Make the roster what a file says; who is not in it leaves: his rotations end and his devices are revoked", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		entries, err := readRoster(args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		if entries == nil {
			entries = []roster.Entry{}
		}
		var change enforce.RosterChange
		if err := c.do(cmd.Context(), http.MethodPut, "/roster", api.RosterRequest{Entries: entries, AllowRemovals: removals}, &change); err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(change)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "The roster has %d users: %d came, %d left, %d were exempted, %d exemptions were taken back.\n", change.Users, change.Added, change.Left, change.Exempted, change.ExemptionsEnded)
		return printLeft(cmd.OutOrStdout(), change, err)
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

func rosterList(r *remote) *cobra.Command {
	var asJSON, asCSV bool
	cmd := &cobra.Command{Use: "list", Short: "List who is on the roster", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		rows, err := all[api.RosterUser](cmd.Context(), c, "/roster", nil)
		if err != nil {
			return err
		}
		if asCSV {
			entries := make([]roster.Entry, len(rows))
			for i, row := range rows {
				entries[i].UserID, entries[i].Exemption.Reason = row.UserID, row.ExemptReason
				if row.ExemptUntil != nil {
					entries[i].Exemption.Until = *row.ExemptUntil
				}
			}
			return roster.WriteCSV(cmd.OutOrStdout(), entries)
		}
		if asJSON {
			return printLines(cmd.OutOrStdout(), rows)
		}
		table := newTable(cmd.OutOrStdout())
		_, _ = fmt.Fprintln(table, "USER\tADDED\tBY\tEXEMPT UNTIL\tREASON")
		for _, row := range rows {
			until := ""
			if row.ExemptUntil != nil {
				until = when(*row.ExemptUntil)
			}
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", row.UserID, when(row.AddedAt), row.AddedBy, until, row.ExemptReason)
		}
		return table.Flush()
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print CSV, as apply reads it")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	return cmd
}

// rosterUser makes a command about one user of the roster.
func rosterUser(r *remote, use, short string, do func(cmd *cobra.Command, c *client, user string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		return do(cmd, c, args[0])
	}}
}

func rosterAdd(r *remote) *cobra.Command {
	return rosterUser(r, "add USER", "Put one user on the roster", func(cmd *cobra.Command, c *client, user string) error {
		return c.do(cmd.Context(), http.MethodPut, userPath("/roster", user), nil, nil)
	})
}

func rosterRemove(r *remote) *cobra.Command {
	return rosterUser(r, "remove USER", "Take one user off the roster: his rotations end and his devices are revoked", func(cmd *cobra.Command, c *client, user string) error {
		var change enforce.RosterChange
		err := c.do(cmd.Context(), http.MethodDelete, userPath("/roster", user), nil, &change)
		return printLeft(cmd.OutOrStdout(), change, err)
	})
}

func rosterExempt(r *remote) *cobra.Command {
	var reason, until string
	cmd := rosterUser(r, "exempt USER", "Exempt a user of the roster until a day, which is in it, or a time", func(cmd *cobra.Command, c *client, user string) error {
		if _, err := roster.Until(until); err != nil {
			return fmt.Errorf("--until: %w", err)
		}
		var exemption api.RosterExemption
		if err := c.do(cmd.Context(), http.MethodPut, userPath("/roster", user, "exemption"), api.Exemption{Reason: reason, Until: until}, &exemption); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is exempt until %s.\n", user, when(exemption.Until))
		return err
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	cmd.Flags().StringVar(&until, "until", "", "when it ends, such as 2026-11-30")
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagRequired("until")
	return cmd
}

func rosterInclude(r *remote) *cobra.Command {
	return rosterUser(r, "include USER", "Take a user's exemption back", func(cmd *cobra.Command, c *client, user string) error {
		return c.do(cmd.Context(), http.MethodDelete, userPath("/roster", user, "exemption"), nil, nil)
	})
}
