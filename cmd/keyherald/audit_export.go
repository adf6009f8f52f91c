package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/postgres"
)

// bundleCheckpoints is about how many checkpoints of an epoch a bundle has.
const bundleCheckpoints = 2000

func auditExport(load func() (config, error)) *cobra.Command {
	var format, from, to string
	var out output
	cmd := tool(load, "export", "Write the sealed events of one moment into a file", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		since, until, err := period.Between(from, to, time.Now())
		if err != nil {
			return fmt.Errorf("--from, --to: %w", err)
		}
		if err := out.check(); err != nil {
			return err
		}
		e := exporter{tools: t, format: format, since: since, until: until, out: out}
		return e.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
	cmd.Flags().StringVar(&format, "format", "", "jsonl, csv (for spreadsheets), ocsf (OCSF "+export.OCSFVersion+"), or bundle (for keyherald-verify)")
	cmd.Flags().StringVar(&from, "from", "", "only events from this time on: a day, a time, or how long ago (24h, 7d)")
	cmd.Flags().StringVar(&to, "to", "", "only events before this time; a day is included")
	out.flags(cmd, "")
	_ = cmd.MarkFlagRequired("format")
	return cmd
}

type exporter struct {
	tools        *auditTools
	format       string
	since, until time.Time
	out          output
}

func (e *exporter) run(ctx context.Context, stdout, said io.Writer) error {
	switch e.format {
	case "jsonl", "csv", "ocsf":
	case "bundle":
		if !e.since.IsZero() || !e.until.IsZero() {
			return errors.New("a bundle is always whole, or nothing could be said of it: leave out --from and --to")
		}
		if !e.tools.config.Audit.on() {
			return errUnsigned
		}
	default:
		return fmt.Errorf("--format is %q: write jsonl, csv, ocsf or bundle", e.format)
	}
	// For how long a redaction that was made just now is waited for: a few batches.
	patience := 5*time.Second + 3*e.tools.config.Audit.Interval
	for deadline := time.Now().Add(patience); ; loop.Pause(ctx, 200*time.Millisecond) {
		err := e.tools.read.Snapshot(ctx, func(in context.Context) error { return e.snapshot(ctx, in, stdout, said) })
		if !errors.Is(err, errRedactionUnsealed) || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

var errRedactionUnsealed = errors.New("a detail was redacted, and the event that says so is not sealed, so that a bundle would look altered: see that `keyherald serve` runs and signs (/readyz says), then export again")

// snapshot exports one moment. in is of the transaction that reads, and ctx is not.
func (e *exporter) snapshot(ctx, in context.Context, stdout, said io.Writer) error {
	read := e.tools.read
	state, err := read.TreeState(in)
	if err != nil {
		return err
	}
	unsealed, err := read.CountUnsealed(in)
	if err != nil {
		return err
	}
	if e.format == "bundle" {
		if waiting, err := read.UnsealedRedactions(in); err != nil {
			return err
		} else if len(waiting) > 0 {
			return errRedactionUnsealed
		}
	}
	asked := append([]audit.Field{audit.Word("format", audit.Format(e.format)), audit.Number("size", state.Size)}, periodFields(e.since, e.until)...)
	if err := e.tools.record(ctx, audit.LogExported, audit.CommandExport, asked...); err != nil {
		return err
	}
	file, err := e.out.open(stdout)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(file, 256<<10)
	n, err := e.write(in, buffered, state)
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("exporting the audit log: %w", err), file.abort())
	}
	if err := file.commit(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(said, "Exported %d events of %d that are sealed, under the checkpoint of %d events in epoch %d.\n", n, state.Size, state.Newest.Size, state.Newest.Epoch)
	if unsealed > 0 && err == nil {
		_, err = fmt.Fprintf(said, "Not among them: %d events that are not sealed yet.\n", unsealed)
	}
	return err
}

func (e *exporter) write(in context.Context, to io.Writer, state postgres.TreeState) (int64, error) {
	leaves := e.tools.read.Leaves(in, 0, state.Size)
	switch e.format {
	case "bundle":
		return state.Size, e.bundle(in, to, state, leaves)
	case "csv":
		return export.CSV(to, export.Between(leaves, e.since, e.until))
	}
	encode, err := lineEncoder(e.format, e.tools.logName())
	if err != nil {
		return 0, err
	}
	return export.Each(to, export.Between(leaves, e.since, e.until), encode)
}

func (e *exporter) bundle(in context.Context, to io.Writer, state postgres.TreeState, leaves export.Rows) error {
	read := e.tools.read
	b := export.Bundle{Name: e.tools.config.Audit.Name, Size: state.Size, ExportedAt: time.Now(), Leaves: leaves}
	var err error
	if b.Epoch, err = read.SealedEpoch(in); err != nil {
		return err
	}
	if b.Checkpoints, err = read.SomeCheckpoints(in, bundleCheckpoints); err != nil {
		return err
	}
	if b.Keys, err = read.AllSigningKeys(in); err != nil {
		return err
	}
	return b.Write(to)
}
