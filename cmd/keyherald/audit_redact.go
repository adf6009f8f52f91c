package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/postgres"
)

func auditRedact(load func() (config, error)) *cobra.Command {
	var reason string
	cmd := &cobra.Command{Use: "redact EVENT", Short: "Delete the detail of an event for good, as the database's owner; the event itself stays, and the log says who did it and why", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := load()
			if err != nil {
				return err
			}
			target, err := uuid.Parse(args[0])
			if err != nil {
				return fmt.Errorf("%q is no event's id: `keyherald audit list` shows them", args[0])
			}
			if c.Database.OwnerURLFile == "" {
				return errors.New("database.owner_url_file is missing: nobody but the owner can delete a detail")
			}
			url, err := readFile(c.Database.OwnerURLFile)
			if err != nil {
				return err
			}
			db, err := postgres.Open(cmd.Context(), url)
			if err != nil {
				return fmt.Errorf("connecting as the owner: %w", err)
			}
			defer func() { err = errors.Join(err, db.Close()) }()
			if err := db.CheckSchema(cmd.Context()); err != nil {
				return err
			}
			redaction, err := db.Redact(cmd.Context(), target, reason, localActor(), time.Now())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The detail of %s is deleted; the event %s says so. Backups of the database, exports and a SIEM still have it.\n", target, redaction)
			return err
		}}
	cmd.Flags().StringVar(&reason, "reason", "", "why: it stands in the log for good, so do not repeat there what is to go")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}
