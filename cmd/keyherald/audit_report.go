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
	"github.com/keyherald/keyherald/audit/report"
	"github.com/keyherald/keyherald/internal/period"
)

func auditReport(load func() (config, error)) *cobra.Command {
	var from, to string
	var page, table output
	cmd := tool(load, "report", "Write the report of a period: a page of HTML for screen and paper, and a CSV", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		since, until, err := period.Between(from, to, time.Now())
		if err != nil {
			return fmt.Errorf("--from, --to: %w", err)
		}
		table.force = page.force
		for _, out := range []*output{&page, &table} {
			if out.path != "" || out == &page {
				if err := out.check(); err != nil {
					return err
				}
			}
		}
		return t.report(cmd.Context(), report.Period{From: since, To: until}, page, table, cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
	cmd.Flags().StringVar(&from, "from", "", "the first day, such as 2026-11-01, or a time, or how long ago (30d)")
	cmd.Flags().StringVar(&to, "to", "", "the last day, which is included, or a time")
	cmd.Flags().StringVar(&table.path, "csv", "", "a file for the rotations as CSV")
	page.flags(cmd, "")
	_ = cmd.MarkFlagRequired("from")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func (t *auditTools) report(ctx context.Context, span report.Period, page, table output, stdout, said io.Writer) error {
	keys, err := t.verifiers()
	if err != nil {
		return err
	}
	known, err := t.outside(ctx, keys, nil)
	if err != nil {
		return err
	}
	// Between the sinks and the database, so that a replica has caught up with what the sinks have.
	asked := append([]audit.Field{audit.Word("format", audit.FormatReport)}, periodFields(span.From, span.To)...)
	if err := t.record(ctx, audit.LogExported, audit.CommandReport, asked...); err != nil {
		return err
	}
	data := report.Page{Log: t.logName(), By: localActor().String(), At: time.Now(), Sinks: known.sinks}
	err = t.read.Snapshot(ctx, func(in context.Context) error {
		if data.Integrity, err = t.verify(in, keys, known); err != nil {
			return err
		}
		data.Unsealed = data.Integrity.Checked.Unsealed
		data.Facts, err = report.Collect(t.read.Leaves(in, 0, data.Integrity.Size), span)
		return err
	})
	if err != nil {
		return err
	}
	if err := writeOutput(page, stdout, func(w io.Writer) error { return report.HTML(w, data) }); err != nil {
		return err
	}
	if table.path != "" {
		if err := writeOutput(table, stdout, func(w io.Writer) error { return report.CSV(w, data.Facts) }); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(said, "%s\n%d users rotated, %d did not, %d attempts were refused.\n%s\n", plain(data.Integrity.Headline), len(data.Rotated), len(data.NotRotated), len(data.Refused), report.SentIsNoProof)
	return err
}

func writeOutput(out output, stdout io.Writer, write func(io.Writer) error) error {
	file, err := out.open(stdout)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(file)
	if err = write(buffered); err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return errors.Join(err, file.abort())
	}
	return file.commit()
}
