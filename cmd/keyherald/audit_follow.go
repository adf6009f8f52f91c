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
	"github.com/keyherald/keyherald/audit/reader"
)

// followFlags are what `audit follow` is asked for, as it was written.
type followFlags struct {
	from     int64
	format   string
	follower follow.Follower
}

func auditFollow(load func() (config, error), r *remote) *cobra.Command {
	var flags followFlags
	cmd := tool(load, "follow", "Print sealed events as they come, in the order of their leaves, for a SIEM", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		ctx := cmd.Context()
		f, err := flags.prepare(ctx, cmd, t.LogName(), t.Read.LeavesBetween)
		if err != nil {
			return err
		}
		asked := []audit.Field{audit.Word("format", audit.Format(flags.format)), audit.Number("from", f.State.Next)}
		if err := t.Record(ctx, reader.Reading{By: localActor(), Action: audit.LogRead, Command: audit.CommandFollow, Asked: asked}); err != nil {
			return err
		}
		return runFollower(ctx, f)
	})
	cmd.Flags().Int64Var(&flags.from, "from", 0, "the leaf index to begin with, whatever the state says")
	cmd.Flags().StringVar(&flags.follower.Path, "state", "", "a file that remembers how far it came: after an end, however it came, it goes on from there")
	cmd.Flags().StringVar(&flags.format, "format", "jsonl", "jsonl, or ocsf for OCSF "+export.OCSFVersion+", one JSON object a line")
	cmd.Flags().BoolVar(&flags.follower.Once, "once", false, "end when all that is sealed was printed")
	cmd.Flags().DurationVar(&flags.follower.Interval, "interval", time.Second, "how often to look")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		return c.follow(cmd, flags)
	})
}

// leavesBetween is follow.Follower's Leaves.
type leavesBetween func(ctx context.Context, first, end int64) ([]audit.Record, error)

// prepare reads the flags, and finds where to begin: where somebody says, or where the state is.
func (flags followFlags) prepare(ctx context.Context, cmd *cobra.Command, log string, leaves leavesBetween) (f follow.Follower, err error) {
	f = flags.follower
	if f.Interval < 10*time.Millisecond {
		return f, fmt.Errorf("--interval is %s: write 1s", f.Interval)
	}
	if f.Encode, err = lineEncoder(flags.format, log); err != nil {
		return f, err
	}
	f.Leaves, f.Out = leaves, cmd.OutOrStdout()
	f.Failed = func(err error) { _, _ = fmt.Fprintln(cmd.ErrOrStderr(), "keyherald:", err) }
	f.State, err = followFrom(ctx, cmd.Flags().Changed("from"), flags.from, f.Path, log, leaves)
	return f, err
}

func runFollower(ctx context.Context, f follow.Follower) error {
	err := f.Run(ctx)
	switch {
	case errors.Is(err, follow.ErrWentBack):
		err = exitError{integrity.RolledBack.ExitCode(), err.Error()}
	case errors.Is(err, follow.ErrAltered):
		err = exitError{integrity.Altered.ExitCode(), err.Error()}
	}
	return err
}

// lineEncoder is the encoder of a format that has a line for each event.
func lineEncoder(format, log string) (export.Encoder, error) {
	switch audit.Format(format) {
	case audit.FormatJSONLines:
		return export.JSONLine, nil
	case audit.FormatOCSF:
		return export.OCSF(log), nil
	}
	return nil, fmt.Errorf("--format is %q: write jsonl or ocsf", format)
}

func followFrom(ctx context.Context, given bool, from int64, path, log string, leaves leavesBetween) (follow.State, error) {
	switch {
	case given && from < 0:
		return follow.State{}, fmt.Errorf("--from is %d: write a leaf index, from 0 on", from)
	case given && from > 0:
		before, err := leaves(ctx, from-1, from)
		if err == nil && len(before) == 0 || errors.Is(err, follow.ErrWentBack) {
			err = fmt.Errorf("--from is %d, and there is no leaf %d before it yet", from, from-1)
		}
		if err != nil {
			return follow.State{}, err
		}
		return follow.After(log, before[0]), nil
	case !given && path != "":
		return follow.LoadState(path, log)
	}
	return follow.Begin(log), nil
}
