package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/policy"
)

func policyCommand(r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "The company's policy: whose keys are rotated when, by themselves"}
	cmd.AddCommand(policyLint(r), policyApply(r), policyShow(r), policyCheck(r))
	return cmd
}

// readPolicy reads a policy's file; lists that it names are read as well.
func readPolicy(path string) (policy.Document, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return policy.Document{}, fmt.Errorf("reading the policy: %w", err)
	}
	return policy.Parse(path, raw, os.ReadFile)
}

func printFindings(out io.Writer, findings []policy.Finding) {
	for _, f := range findings {
		kind := "warning"
		if f.Refused {
			kind = "refused"
		}
		_, _ = fmt.Fprintf(out, "%s: %s\n", kind, f.Error())
	}
}

func policyLint(r *remote) *cobra.Command {
	var offline bool
	cmd := &cobra.Command{Use: "lint FILE", Short: "Check a policy's file, and change nothing", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		document, err := readPolicy(args[0])
		if err != nil {
			return err
		}
		findings := policy.Check(document, nil, time.Now())
		if !offline {
			c, err := r.connect()
			if err != nil {
				return err
			}
			raw, err := document.JSON()
			if err != nil {
				return err
			}
			var told api.Page[api.Finding]
			if err := c.do(cmd.Context(), http.MethodPost, "/policies/check", api.CheckRequest{Document: raw}, &told); err != nil {
				return err
			}
			findings = append(findings, news(told.Items, findings)...)
		}
		printFindings(cmd.OutOrStdout(), findings)
		if n := len(policy.Refusing(findings)); n > 0 {
			return fmt.Errorf("%s contradicts itself in %d places: it would be refused", args[0], n)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is a policy of %d rules.\n", args[0], len(document.Rules))
		return err
	}}
	cmd.Flags().BoolVar(&offline, "offline", false, "do not ask the database who is on the roster: whom the rules do not reach is not told then")
	return cmd
}

// news are the server's findings that a look at the file alone did not bring: those that are about the roster.
func news(told []api.Finding, known []policy.Finding) (fresh []policy.Finding) {
	for _, f := range told {
		if !slices.ContainsFunc(known, func(k policy.Finding) bool { return k.Key == f.Key && k.Text == f.Text }) {
			fresh = append(fresh, policy.Finding{Refused: f.Refused, Key: f.Key, Text: f.Text})
		}
	}
	return fresh
}

func policyApply(r *remote) *cobra.Command {
	var request api.PolicyRequest
	var replaces int64
	cmd := &cobra.Command{Use: "apply FILE", Short: "Make a file the company's policy from now on", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		document, err := readPolicy(args[0])
		if err != nil {
			return err
		}
		// The server would refuse it as well, and could not name the lines.
		if refused := policy.Refusing(policy.Check(document, nil, time.Now())); len(refused) > 0 {
			printFindings(cmd.OutOrStdout(), refused)
			return fmt.Errorf("%s contradicts itself in %d places: it was not applied", args[0], len(refused))
		}
		if request.Document, err = document.JSON(); err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		if replaces > 0 {
			c.match = fmt.Sprintf("%q", fmt.Sprint(replaces))
		}
		var applied api.PolicyApplied
		if err := c.do(cmd.Context(), http.MethodPut, "/policies/current", request, &applied); err != nil {
			return err
		}
		printFindings(cmd.OutOrStdout(), news(applied.Warnings, nil))
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "Version %d of the policy is in force.\n", applied.Version)
		return err
	}}
	cmd.Flags().StringVar(&request.Reason, "reason", "", "why, for the audit log")
	cmd.Flags().Int64Var(&replaces, "replaces", 0, "the version that this one is made from: it is refused where that is not the newest any more")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

func policyShow(r *remote) *cobra.Command {
	var at string
	var asJSON bool
	cmd := &cobra.Command{Use: "show", Short: "Print the policy, of now or of a time", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		path := "/policies/current"
		if at != "" {
			if _, err := period.Instant(at, time.Now(), true); err != nil {
				return fmt.Errorf("--at: %w", err)
			}
			path += "?" + url.Values{"at": {at}}.Encode()
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var version api.Policy
		if err := c.do(cmd.Context(), http.MethodGet, path, nil, &version); err != nil {
			return err
		}
		return printPolicy(cmd.OutOrStdout(), version, asJSON)
	}}
	cmd.Flags().StringVar(&at, "at", "", "the policy of this time, such as 2026-11-01 (when that day ended, in UTC), 2026-11-01T12:00:00Z, or 7d ago")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printPolicy(out io.Writer, version api.Policy, asJSON bool) error {
	if asJSON {
		return printJSON(out, version)
	}
	document, err := policy.ParseJSON(version.Document)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "# Version %d, since %s, by %s: %s\n# SHA-256 %s\n", version.Version, when(version.CreatedAt), version.CreatedBy, version.Reason, version.SHA256)
	encoder := yaml.NewEncoder(out)
	encoder.SetIndent(2)
	return errors.Join(encoder.Encode(document), encoder.Close())
}

func policyCheck(r *remote) *cobra.Command {
	return &cobra.Command{Use: "check USER", Short: "Explain which rule applies to a user, and when", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		if !strings.HasPrefix(args[0], "@") {
			return fmt.Errorf("%q is not a Matrix user id (@name:server); `keyherald policy lint` checks a file", args[0])
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var x api.Explanation
		if err := c.do(cmd.Context(), http.MethodGet, userPath("/users", args[0], "policy"), nil, &x); err != nil {
			return err
		}
		return printExplanation(cmd.OutOrStdout(), x)
	}}
}

// printExplanation shows every time in UTC and on the clock of each zone that the rule's windows have.
func printExplanation(out io.Writer, x api.Explanation) error {
	_, _ = fmt.Fprintf(out, "%s\n", x.UserID)
	if x.Version > 0 {
		_, _ = fmt.Fprintf(out, "  policy            version %d\n", x.Version)
	}
	if r := x.Rule; r != nil {
		_, _ = fmt.Fprintf(out, "  rule              %s: %s, max_age %s, grace %s, jitter %s, rotate_after %s, on_drift %s\n", r.Name, r.Action, r.MaxAge, r.Grace, r.Jitter, r.RotateAfter, r.OnDrift)
		_, _ = fmt.Fprintf(out, "  windows           %s\n", r.Windows)
	}
	if k := x.Key; k != nil {
		clocks := func(t time.Time) string {
			text := when(t)
			for _, name := range x.Rule.TimeZones {
				if zone, err := time.LoadLocation(name); err == nil {
					text += ", " + t.In(zone).Format("Mon 2006-01-02 15:04:05 MST") + " in " + name
				}
			}
			return text
		}
		seen := "created"
		if k.OnlySeen {
			seen = "first seen"
		}
		_, _ = fmt.Fprintf(out, "  key               version %s, %s %s\n", k.Version, seen, clocks(k.Since))
		_, _ = fmt.Fprintf(out, "  too old           %s\n", clocks(k.DueAt))
		if k.OpensAt != nil {
			_, _ = fmt.Fprintf(out, "  his turn          %s\n", clocks(*k.OpensAt))
		}
		_, _ = fmt.Fprintf(out, "  overdue           %s\n", clocks(k.OverdueAt))
		state := string(k.State)
		if k.Overdue {
			state += ", overdue"
		}
		_, _ = fmt.Fprintf(out, "  now               %s\n", state)
	}
	_, err := fmt.Fprintf(out, "  what happens      %s\n", x.Then)
	return err
}
