package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
)

func policyCommand(load func() (config, error)) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "The company's policy: whose keys are rotated when, by themselves"}
	cmd.AddCommand(policyLint(load), policyApply(load), policyShow(load), policyCheck(load))
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

func policyLint(load func() (config, error)) *cobra.Command {
	var offline bool
	cmd := &cobra.Command{Use: "lint FILE", Short: "Check a policy's file, and change nothing", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		document, err := readPolicy(args[0])
		if err != nil {
			return err
		}
		findings := policy.Check(document, nil, time.Now())
		if !offline {
			err = withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) (err error) {
				findings, err = enforcer.CheckPolicy(cmd.Context(), document)
				return err
			})
			if err != nil {
				return err
			}
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

func policyApply(load func() (config, error)) *cobra.Command {
	var request enforce.PolicyRequest
	cmd := &cobra.Command{Use: "apply FILE", Short: "Make a file the company's policy from now on", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var err error
		if request.Document, err = readPolicy(args[0]); err != nil {
			return err
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			version, warnings, err := enforcer.ApplyPolicy(cmd.Context(), request, localActor())
			if err != nil {
				return err
			}
			printFindings(cmd.OutOrStdout(), warnings)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Version %d of the policy is in force.\n", version.Version)
			return err
		})
	}}
	cmd.Flags().StringVar(&request.Reason, "reason", "", "why, for the audit log")
	cmd.Flags().Int64Var(&request.Replaces, "replaces", 0, "the version that this one is made from: it is refused where that is not the newest any more")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

// policyView is a version of the policy as `--json` prints it.
type policyView struct {
	Version   int64           `json:"version"`
	SHA256    string          `json:"sha256"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy string          `json:"created_by"`
	Reason    string          `json:"reason"`
	Document  json.RawMessage `json:"document"`
}

func policyShow(load func() (config, error)) *cobra.Command {
	var at string
	var asJSON bool
	cmd := &cobra.Command{Use: "show", Short: "Print the policy, of now or of a time", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		moment, err := policyTime(at)
		if err != nil {
			return err
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			version, ok, err := enforcer.PolicyAt(cmd.Context(), moment)
			switch {
			case err != nil:
				return err
			case !ok && moment.IsZero():
				return errors.New("there is no policy: `keyherald policy apply FILE --reason …` makes one")
			case !ok:
				return fmt.Errorf("there was no policy at %s", when(moment))
			}
			return printPolicy(cmd.OutOrStdout(), version, asJSON)
		})
	}}
	cmd.Flags().StringVar(&at, "at", "", "the policy of this time, such as 2026-11-01 (when that day ended, in UTC), 2026-11-01T12:00:00Z, or 7d ago")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func policyTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	return period.Instant(text, time.Now(), true)
}

func printPolicy(out io.Writer, version postgres.PolicyVersion, asJSON bool) error {
	sum := hex.EncodeToString(version.SHA256[:])
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(policyView{version.Version, sum, version.CreatedAt.UTC(), version.CreatedBy, version.Reason, version.Document})
	}
	document, err := version.Parse()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "# Version %d, since %s, by %s: %s\n# SHA-256 %s\n", version.Version, when(version.CreatedAt), version.CreatedBy, version.Reason, sum)
	encoder := yaml.NewEncoder(out)
	encoder.SetIndent(2)
	return errors.Join(encoder.Encode(document), encoder.Close())
}

func policyCheck(load func() (config, error)) *cobra.Command {
	return &cobra.Command{Use: "check USER", Short: "Explain which rule applies to a user, and when", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		if !strings.HasPrefix(args[0], "@") {
			return fmt.Errorf("%q is not a Matrix user id (@name:server); `keyherald policy lint` checks a file", args[0])
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			x, err := enforcer.ExplainPolicy(cmd.Context(), id.UserID(args[0]))
			if err != nil {
				return err
			}
			return printExplanation(cmd.OutOrStdout(), x)
		})
	}}
}

// printExplanation shows every time in UTC and on the clock of each zone that the rule's windows have.
func printExplanation(out io.Writer, x enforce.Explanation) error {
	_, _ = fmt.Fprintf(out, "%s\n", x.UserID)
	if x.Version > 0 {
		_, _ = fmt.Fprintf(out, "  policy            version %d\n", x.Version)
	}
	if r := x.Rule; r != nil {
		_, _ = fmt.Fprintf(out, "  rule              %s: %s, max_age %s, grace %s, jitter %s, rotate_after %s, on_drift %s\n", r.Name, r.Action, policy.Span(r.MaxAge), policy.Span(r.Grace),
			policy.Span(r.Jitter), r.RotateAfter, r.OnDrift)
		_, _ = fmt.Fprintf(out, "  windows           %s\n", r.Windows)
	}
	if x.Verdict.State != "" {
		clocks := func(t time.Time) string {
			text := when(t)
			for _, zone := range x.Rule.Windows.Zones() {
				text += ", " + t.In(zone).Format("Mon 2006-01-02 15:04:05 MST") + " in " + zone.String()
			}
			return text
		}
		seen := "created"
		if x.Ruled.OnlySeen {
			seen = "first seen"
		}
		_, _ = fmt.Fprintf(out, "  key               version %s, %s %s\n", x.Ruled.Version, seen, clocks(x.Ruled.Since))
		_, _ = fmt.Fprintf(out, "  too old           %s\n", clocks(x.Verdict.DueAt))
		if !x.Verdict.OpensAt.IsZero() {
			_, _ = fmt.Fprintf(out, "  his turn          %s\n", clocks(x.Verdict.OpensAt))
		}
		_, _ = fmt.Fprintf(out, "  overdue           %s\n", clocks(x.Verdict.OverdueAt))
		state := string(x.Verdict.State)
		if x.Verdict.Overdue {
			state += ", overdue"
		}
		_, _ = fmt.Fprintf(out, "  now               %s\n", state)
	}
	_, err := fmt.Fprintf(out, "  what happens      %s\n", x.Then)
	return err
}
