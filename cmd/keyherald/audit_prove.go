package main

import (
	"github.com/spf13/cobra"
)

func auditProve(load func() (config, error), r *remote) *cobra.Command {
	var to output
	cmd := tool(load, "prove EVENT", "Write a proof that an event is in the log (C2SP tlog-proof), which verifies without the log", cobra.ExactArgs(1), func(cmd *cobra.Command, t *auditTools, args []string) error {
		ctx := cmd.Context()
		if err := to.check(); err != nil {
			return err
		}
		record, err := t.eventKey(ctx, args[0])
		if err != nil {
			return err
		}
		encoded, err := t.Prove(ctx, localActor(), record)
		if err != nil {
			return err
		}
		return to.write(cmd.OutOrStdout(), encoded)
	})
	to.flags(cmd, "-")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, args []string) error {
		if err := to.check(); err != nil {
			return err
		}
		encoded, err := c.proof(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return to.write(cmd.OutOrStdout(), encoded)
	})
}
