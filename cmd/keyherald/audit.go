package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/postgres"
)

func auditCommand(load func() (config, error), r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "The audit log"}
	cmd.AddCommand(auditList(load, r), auditShow(load, r), auditFollow(load, r), auditExport(load, r), auditReport(load, r), auditCheckpoint(load, r), auditProve(load, r),
		auditVerify(load), auditCompleteness(load), auditRedact(load), auditKeygen(), auditAcceptLoss(load))
	return cmd
}

func auditKeygen() *cobra.Command {
	var name, out string
	cmd := &cobra.Command{Use: "keygen", Short: "Make a key that signs the log's checkpoints; the verifier key goes to the auditor", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		public, err := checkpoint.WriteKeys(out, name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "The verifier key, also in %s.pub. Give it to the auditor now, by a way of your own: whoever verifies must have it from you and not from the database.\n%s\n", out, public)
		return err
	}}
	cmd.Flags().StringVar(&name, "name", "", "the log's name, for good: your domain and a word, such as example.org/keyherald")
	cmd.Flags().StringVar(&out, "out", "audit.key", "the file for the key; the verifier key goes beside it, with .pub")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

// withSigner opens the signer as `serve` does, without running it.
func withSigner(ctx context.Context, load func() (config, error), do func(config, *postgres.DB, *signer.Signer) error) error {
	c, err := load()
	if err != nil {
		return err
	}
	if !c.Audit.on() {
		return reader.ErrUnsigned
	}
	s, db, err := c.openSigner(ctx, zerolog.Nop())
	if err != nil {
		return err
	}
	return errors.Join(do(c, db, s), db.Close())
}

func auditAcceptLoss(load func() (config, error)) *cobra.Command {
	var reason string
	cmd := &cobra.Command{Use: "accept-loss", Short: "Declare that a part of the log is lost, after the database was restored: it is signed again, in a new epoch whose first event names the gap", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return acceptLoss(cmd, load, reason)
		}}
	cmd.Flags().StringVar(&reason, "reason", "", "what happened: it stands in the audit log")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

func acceptLoss(cmd *cobra.Command, load func() (config, error), reason string) error {
	return withSigner(cmd.Context(), load, func(_ config, _ *postgres.DB, s *signer.Signer) error {
		loss, err := s.AcceptLoss(cmd.Context(), reason, localActor())
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "Declared in the audit log: %d events survive, and the newest published checkpoint was of %d. The log goes on in epoch %d.\nTell the auditor: his checkpoints of more than %d events are of the part that is lost.\n",
			loss.Surviving, loss.Published.Size, loss.Epoch, loss.Surviving)
		return err
	})
}
