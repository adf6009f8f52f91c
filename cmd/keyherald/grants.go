package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

func grantCommand(load func() (config, error)) *cobra.Command {
	var request relay.GrantRequest
	create := &cobra.Command{Use: "create", Short: "Let the first managed devices of some users enroll by a proof, without codes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
				grant, err := engine.NewGrant(cmd.Context(), request, localActor())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nUp to %d users of %s may enroll their first device by %s until %s.\n", grant.ID, grant.Max, grant.Users, grant.Proof, when(grant.ExpiresAt))
				return err
			})
		}}
	create.Flags().StringVar(&request.Users, "users", "", "whose: a pattern of user ids, such as @*:example.org; * is any characters, ? is one")
	create.Flags().StringVar(&request.Proof, "proof", "", "by what: the name of a proof under enrollment.proofs in the configuration")
	create.Flags().IntVar(&request.Max, "max", 0, "how many devices it is for")
	create.Flags().DurationVar(&request.Life, "ttl", 7*24*time.Hour, "how long it may be used")
	for _, flag := range []string{"users", "proof", "max"} {
		_ = create.MarkFlagRequired(flag)
	}
	list := &cobra.Command{Use: "list", Short: "List the grants", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withEngine(cmd.Context(), load, func(db *postgres.DB, _ *relay.Engine) error {
			grants, err := db.Grants(cmd.Context(), postgres.GrantFilter{})
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(table, "GRANT\tUSERS\tPROOF\tUSED\tSTATE\tENDS\tBY")
			for _, g := range grants {
				_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%d of %d\t%s\t%s\t%s\n", g.ID, g.Users, g.Proof, g.Used, g.Max, g.State(time.Now()), when(g.ExpiresAt), g.CreatedBy)
			}
			return table.Flush()
		})
	}}
	var reason string
	revoke := &cobra.Command{Use: "revoke GRANT", Short: "End a grant at once; whoever enrolled by it stays enrolled", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := uuid.Parse(args[0])
			if err != nil {
				return fmt.Errorf("%q is no id of a grant: `keyherald grant list` shows them", args[0])
			}
			return withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
				if err := engine.RevokeGrant(cmd.Context(), key, reason, localActor()); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "Revoked: nobody enrolls by it any more.")
				return err
			})
		}}
	revoke.Flags().StringVar(&reason, "reason", "", "why")
	cmd := &cobra.Command{Use: "grant", Short: "Enrollment without codes"}
	cmd.AddCommand(create, list, revoke)
	return cmd
}

func reenrollmentsCommand(load func() (config, error)) *cobra.Command {
	var all bool
	list := &cobra.Command{Use: "list", Short: "List the devices that wait to be enrolled again", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withEngine(cmd.Context(), load, func(db *postgres.DB, _ *relay.Engine) error {
			queue, err := db.Reenrollments(cmd.Context(), postgres.ReenrollmentFilter{Waiting: !all})
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(table, "REQUEST\tUSER\tDEVICE\tASKED\tSTATE\tOLD MASTER KEY\tNEW MASTER KEY")
			for _, r := range queue {
				_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.UserID, r.DeviceID, when(r.AskedAt), r.State, r.OldMasterKey, r.NewMasterKey)
			}
			return table.Flush()
		})
	}}
	list.Flags().BoolVar(&all, "all", false, "those as well that were decided about")
	decide := func(use, short, said string, do func(engine *relay.Engine, cmd *cobra.Command, key uuid.UUID) error) *cobra.Command {
		return &cobra.Command{Use: use + " REQUEST", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			key, err := uuid.Parse(args[0])
			if err != nil {
				return fmt.Errorf("%q is no id of a request: `keyherald reenrollments list` shows them", args[0])
			}
			return withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
				if err := do(engine, cmd, key); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), said)
				return err
			})
		}}
	}
	var reason string
	release := decide("release", "Enroll a device again, with the identity that it asked with: ask its user first (docs/provisioning.md)",
		"Released: the bot looks at the identity once more, and tells the device.", func(engine *relay.Engine, cmd *cobra.Command, key uuid.UUID) error {
			return engine.ReleaseReenrollment(cmd.Context(), key, localActor())
		})
	reject := decide("reject", "Turn a device away that asked again", "Rejected: the device needs a code now.", func(engine *relay.Engine, cmd *cobra.Command, key uuid.UUID) error {
		return engine.RejectReenrollment(cmd.Context(), key, reason, localActor())
	})
	reject.Flags().StringVar(&reason, "reason", "", "why")
	cmd := &cobra.Command{Use: "reenrollments", Short: "Devices that ask to be enrolled again after their user's identity was reset"}
	cmd.AddCommand(list, release, reject)
	return cmd
}
