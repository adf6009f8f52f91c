package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/roster"
)

func complianceCommand(r *remote) *cobra.Command {
	var at string
	var asJSON, asCSV bool
	cmd := &cobra.Command{Use: "compliance", Short: "How many of the roster are current, who is not, why, and what to do about it", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		filters := url.Values{"users": {"true"}}
		if at != "" {
			if _, err := period.Instant(at, time.Now(), true); err != nil {
				return fmt.Errorf("--at: %w", err)
			}
			filters.Set("at", at)
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var view api.Compliance
		if err := c.do(cmd.Context(), http.MethodGet, "/compliance?"+filters.Encode(), nil, &view); err != nil {
			return err
		}
		switch {
		case asJSON:
			return json.NewEncoder(cmd.OutOrStdout()).Encode(view)
		case asCSV:
			return complianceCSV(cmd.OutOrStdout(), view.Users, view.At)
		}
		return printCompliance(cmd.OutOrStdout(), roster.Compliance{Roster: view.Roster, States: view.States, PastMaxAge: view.PastMaxAge}, view.Users, view.At)
	}}
	cmd.Flags().StringVar(&at, "at", "", "as it was at a time that is over, from the audit log: a day such as 2026-11-30, at its end; a time; or how long ago")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with everybody")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print CSV, a user a line, with everybody")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	return cmd
}

// keyAge is how old a key is, in whole days; "seen" where it may be older.
func keyAge(s roster.Standing, at time.Time) string {
	if s.KeySince.IsZero() {
		return "not known"
	}
	age := fmt.Sprintf("%dd", int(at.Sub(s.KeySince).Hours()/24))
	if s.OnlySeen {
		return "at least " + age
	}
	return age
}

func printCompliance(out io.Writer, counts roster.Compliance, standings []roster.Standing, at time.Time) error {
	_, _ = fmt.Fprintf(out, "At %s %s of the roster's users are current; %d of %d are exempt.\n\n", when(at), counts, counts.States[roster.Exempt], counts.Roster)
	table := newTable(out)
	for _, state := range roster.States() {
		_, _ = fmt.Fprintf(table, "%s\t%d\t\n", state, counts.States[state])
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "\nOlder than the policy allows, in whatever state: the keys of %d users who are not exempt.\n", counts.PastMaxAge)
	if current, of := counts.Current(); current == of {
		return nil
	}
	_, _ = fmt.Fprintln(out)
	_, _ = fmt.Fprintln(table, "USER\tSTATE\tCAUSE\tKEY AGE\tNEXT ACTION")
	for _, s := range standings {
		if s.State != roster.Current && s.State != roster.Exempt {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", s.UserID, s.State, s.Cause, keyAge(s, at), s.NextAction)
		}
	}
	return table.Flush()
}

func complianceCSV(out io.Writer, standings []roster.Standing, at time.Time) error {
	writer := csv.NewWriter(out)
	err := writer.Write([]string{"at", "user_id", "state", "cause", "next_action", "rotation", "key_since", "key_only_seen", "past_max_age", "last_status", "exempt_reason", "exempt_until"})
	timeOf := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	for _, s := range standings {
		rotation := ""
		if s.Rotation != uuid.Nil {
			rotation = s.Rotation.String()
		}
		err = errors.Join(err, writer.Write([]string{timeOf(at), export.Cell(string(s.UserID)), string(s.State), string(s.Cause), export.Cell(s.NextAction), rotation, timeOf(s.KeySince),
			fmt.Sprint(s.OnlySeen), fmt.Sprint(s.PastMaxAge), timeOf(s.LastStatus), export.Cell(s.Exemption.Reason), timeOf(s.Exemption.Until)}))
	}
	writer.Flush()
	if err = errors.Join(err, writer.Error()); err != nil {
		return fmt.Errorf("printing the compliance: %w", err)
	}
	return nil
}
