package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/postgres"
)

func grantCommand(r *remote) *cobra.Command {
	var request api.GrantRequest
	var life time.Duration
	create := &cobra.Command{Use: "create", Short: "Let the first managed devices of some users enroll by a proof, without codes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.connect()
			if err != nil {
				return err
			}
			request.TTL = int64(life / time.Second)
			var grant api.CreatedGrant
			if err := c.do(cmd.Context(), http.MethodPost, "/grants", request, &grant); err != nil {
				return err
			}
			for _, warning := range grant.Warnings {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "Warning: %s\n", plain(warning))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nUp to %d users of %s may enroll their first device by %s until %s.\n", grant.ID, grant.Max, grant.Users, grant.Proof, when(grant.ExpiresAt))
			return err
		}}
	create.Flags().StringVar(&request.Users, "users", "", "whose: a pattern of user ids, such as @*:example.org; * is any characters, ? is one")
	create.Flags().StringVar(&request.Proof, "proof", "", "by what: the name of a proof under enrollment.proofs in the configuration")
	create.Flags().IntVar(&request.Max, "max", 0, "how many devices it is for")
	create.Flags().DurationVar(&life, "ttl", 7*24*time.Hour, "how long it may be used")
	for _, flag := range []string{"users", "proof", "max"} {
		_ = create.MarkFlagRequired(flag)
	}
	list := &cobra.Command{Use: "list", Short: "List the grants", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		grants, err := all[api.Grant](cmd.Context(), c, "/grants", nil)
		if err != nil {
			return err
		}
		table := newTable(cmd.OutOrStdout())
		_, _ = fmt.Fprintln(table, "GRANT\tUSERS\tPROOF\tUSED\tSTATE\tENDS\tBY")
		for _, g := range grants {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%d of %d\t%s\t%s\t%s\n", g.ID, g.Users, g.Proof, g.Used, g.Max, g.State, when(g.ExpiresAt), g.CreatedBy)
		}
		return table.Flush()
	}}
	var reason string
	revoke := decide(r, "revoke GRANT", "End a grant at once; whoever enrolled by it stays enrolled", "grant", "Revoked: nobody enrolls by it any more.", func(key uuid.UUID) (string, any) {
		return "/grants/" + key.String() + "/revoke", api.Reason{Reason: reason}
	})
	revoke.Flags().StringVar(&reason, "reason", "", "why")
	cmd := &cobra.Command{Use: "grant", Short: "Enrollment without codes"}
	cmd.AddCommand(create, list, revoke)
	return cmd
}

// decide makes a command that says something about one thing, by its id.
func decide(r *remote, use, short, what, said string, do func(key uuid.UUID) (path string, in any)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := uuid.Parse(args[0])
		if err != nil {
			return fmt.Errorf("%q is no id of a %s: `keyherald %s list` shows them", args[0], what, cmd.Parent().Name())
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		path, in := do(key)
		if err := c.do(cmd.Context(), http.MethodPost, path, in, nil); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
		return err
	}}
}

func reenrollmentsCommand(r *remote) *cobra.Command {
	var decided bool
	list := &cobra.Command{Use: "list", Short: "List the devices that wait to be enrolled again", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		filters := url.Values{}
		if !decided {
			filters.Set("waiting", "true")
		}
		queue, err := all[postgres.Reenrollment](cmd.Context(), c, "/reenrollments", filters)
		if err != nil {
			return err
		}
		table := newTable(cmd.OutOrStdout())
		_, _ = fmt.Fprintln(table, "REQUEST\tUSER\tDEVICE\tASKED\tSTATE\tOLD MASTER KEY\tNEW MASTER KEY")
		for _, r := range queue {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.UserID, r.DeviceID, when(r.AskedAt), r.State, r.OldMasterKey, r.NewMasterKey)
		}
		return table.Flush()
	}}
	list.Flags().BoolVar(&decided, "all", false, "those as well that were decided about")
	var reason string
	release := decide(r, "release REQUEST", "Enroll a device again, with the identity that it asked with: ask its user first (docs/provisioning.md)", "request",
		"Released: the bot looks at the identity once more, and tells the device.", func(key uuid.UUID) (string, any) { return "/reenrollments/" + key.String() + "/release", nil })
	reject := decide(r, "reject REQUEST", "Turn a device away that asked again", "request", "Rejected: the device needs a code now.", func(key uuid.UUID) (string, any) {
		return "/reenrollments/" + key.String() + "/reject", api.Reason{Reason: reason}
	})
	reject.Flags().StringVar(&reason, "reason", "", "why")
	cmd := &cobra.Command{Use: "reenrollments", Short: "Devices that ask to be enrolled again after their user's identity was reset"}
	cmd.AddCommand(list, release, reject)
	return cmd
}
