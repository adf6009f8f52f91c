package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// restoredText tells what a restore did.
const restoredText = `Declared: the database holds what was known at %s, and nothing after it.
The bot has a new device, %s, which its replicas use from now on; managed devices follow it by the bot's master key.
Rotations under way are triggered again: %d. Campaigns that were running are paused: %d.
What was done between then and now is not known here. Do again, where it applies:
- %s
`

// doAgain is what only people know to do after a restore.
var doAgain = []string{
	"send the notifications of that time once more (the same id and body is harmless);",
	"revoke the devices that were revoked, and cancel, freeze or release what was cancelled, frozen or released;",
	"enroll the devices that were enrolled: they are refused as not_enrolled;",
	"look whom the paused campaigns came to, and resume them.",
}

// tellRestored has the admin room told, in the transaction of a declared restore, of it and of each campaign that it paused.
func tellRestored(ctx context.Context, db *postgres.DB, notices *notice.Notices, r relay.Restored) error {
	err := notices.TellAdmins(ctx, "restored/"+string(r.NewDevice), audit.NoticeRestored, notice.Restored(notice.Restore{By: r.By.String(), Reason: r.Reason,
		Since: r.Since, At: r.At, Retriggers: r.Retriggers, Campaigns: len(r.Paused), Again: doAgain}))
	if err != nil {
		return err
	}
	for _, c := range r.Paused {
		waves, err := db.CampaignWaves(ctx, c.ID)
		if err != nil {
			return err
		}
		if err := tellCampaign(ctx, notices, c, enforce.Total(waves)); err != nil {
			return err
		}
	}
	return nil
}

// acceptRestored declares the loss to the audit log as well, where checkpoints were published of what is lost.
func acceptRestored(cmd *cobra.Command, load func() (config, error), reason string) error {
	if c, err := load(); err != nil || !c.Audit.on() {
		return err
	}
	lost := false
	err := withSigner(cmd.Context(), load, func(_ config, _ *postgres.DB, s *signer.Signer) (err error) {
		lost, err = s.Lost(cmd.Context())
		return err
	})
	if err == nil && lost {
		err = acceptLoss(cmd, load, reason)
	}
	if err != nil {
		return fmt.Errorf("the restore is declared, and the audit log's loss is not: run `keyherald audit accept-loss` when this is mended: %w", err)
	}
	return nil
}

func restoreCommand(load func() (config, error)) *cobra.Command {
	var reason string
	cmd := &cobra.Command{Use: "restore", Short: "Declare that the database was restored from a backup: a new bot device, sequences above the lost ones, the gap in the audit log",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			fresh, err := appservice.NewDeviceID()
			if err != nil {
				return err
			}
			err = withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
				restored, err := engine.Restore(cmd.Context(), fresh, reason, localActor())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), restoredText, restored.Since.Format(time.RFC3339), restored.NewDevice, restored.Retriggers, len(restored.Paused), strings.Join(doAgain, "\n- "))
				return err
			})
			if err != nil {
				return err
			}
			return acceptRestored(cmd, load, reason)
		}}
	cmd.Flags().StringVar(&reason, "reason", "", "why the database was restored: it stands in the audit log")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}
