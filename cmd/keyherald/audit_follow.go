package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/follow"
	"github.com/keyherald/keyherald/audit/integrity"
)

func auditFollow(load func() (config, error)) *cobra.Command {
	var f follow.Follower
	var from int64
	var format string
	cmd := tool(load, "follow", "Print sealed events as they come, in the order of their leaves, for a SIEM", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		ctx := cmd.Context()
		if f.Interval < 10*time.Millisecond {
			return fmt.Errorf("--interval is %s: write 1s", f.Interval)
		}
		var err error
		if f.Encode, err = lineEncoder(format, t.logName()); err != nil {
			return err
		}
		if f.State, err = t.followFrom(ctx, cmd.Flags().Changed("from"), from, f.Path); err != nil {
			return err
		}
		if err := t.record(ctx, audit.LogRead, audit.CommandFollow, audit.Word("format", audit.Format(format)), audit.Number("from", f.State.Next)); err != nil {
			return err
		}
		f.Leaves, f.Out = t.read.LeavesBetween, cmd.OutOrStdout()
		f.Failed = func(err error) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), "keyherald:", err) }
		err = f.Run(ctx)
		switch {
		case errors.Is(err, follow.ErrWentBack):
			err = exitError{integrity.RolledBack.ExitCode(), err.Error()}
		case errors.Is(err, follow.ErrAltered):
			err = exitError{integrity.Altered.ExitCode(), err.Error()}
		}
		return err
	})
	cmd.Flags().Int64Var(&from, "from", 0, "the leaf index to begin with, whatever the state says")
	cmd.Flags().StringVar(&f.Path, "state", "", "a file that remembers how far it came: after an end, however it came, it goes on from there")
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl, or ocsf for OCSF "+export.OCSFVersion+", one JSON object a line")
	cmd.Flags().BoolVar(&f.Once, "once", false, "end when all that is sealed was printed")
	cmd.Flags().DurationVar(&f.Interval, "interval", time.Second, "how often to look")
	return cmd
}

// lineEncoder is the encoder of a format that has a line for each event.
func lineEncoder(format, log string) (export.Encoder, error) {
	switch format {
	case "jsonl":
		return export.JSONLine, nil
	case "ocsf":
		return export.OCSF(log), nil
	}
	return nil, fmt.Errorf("--format is %q: write jsonl or ocsf", format)
}

// followFrom finds where to begin: where somebody says, or where the state is.
func (t *auditTools) followFrom(ctx context.Context, given bool, from int64, path string) (follow.State, error) {
	switch {
	case given && from < 0:
		return follow.State{}, fmt.Errorf("--from is %d: write a leaf index, from 0 on", from)
	case given && from > 0:
		before, err := t.read.LeavesBetween(ctx, from-1, from)
		if err == nil && len(before) == 0 {
			err = fmt.Errorf("--from is %d, and there is no leaf %d before it yet", from, from-1)
		}
		if err != nil {
			return follow.State{}, err
		}
		return follow.After(t.logName(), before[0]), nil
	case !given && path != "":
		return follow.LoadState(path, t.logName())
	}
	return follow.Begin(t.logName()), nil
}
