package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit/report"
	"github.com/keyherald/keyherald/internal/period"
)

// reportFlags are what `audit report` is asked for, as it was written.
type reportFlags struct {
	from, to    string
	page, table output
}

func auditReport(load func() (config, error), r *remote) *cobra.Command {
	var flags reportFlags
	cmd := tool(load, "report", "Write the report of a period: a page of HTML for screen and paper, and a CSV", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		span, err := flags.read(time.Now())
		if err != nil {
			return err
		}
		return t.report(cmd.Context(), span, flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
	cmd.Flags().StringVar(&flags.from, "from", "", "the first day, such as 2026-11-01, or a time, or how long ago (30d)")
	cmd.Flags().StringVar(&flags.to, "to", "", "the last day, which is included, or a time")
	cmd.Flags().StringVar(&flags.table.path, "csv", "", "a file for the rotations as CSV")
	flags.page.flags(cmd, "")
	_ = cmd.MarkFlagRequired("from")
	_ = cmd.MarkFlagRequired("to")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		if _, err := flags.read(time.Now()); err != nil {
			return err
		}
		return c.report(cmd.Context(), flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
}

func (f *reportFlags) read(now time.Time) (span report.Period, err error) {
	if span.From, span.To, err = period.Between(f.from, f.to, now); err != nil {
		return span, fmt.Errorf("--from, --to: %w", err)
	}
	f.table.force = f.page.force
	for _, out := range []*output{&f.page, &f.table} {
		if out.path != "" || out == &f.page {
			if err := out.check(); err != nil {
				return span, err
			}
		}
	}
	return span, nil
}

func (t *auditTools) report(ctx context.Context, span report.Period, flags reportFlags, stdout, said io.Writer) error {
	page, err := t.Report(ctx, localActor(), span)
	if err != nil {
		return err
	}
	if err := flags.page.stream(stdout, func(w io.Writer) error { return report.HTML(w, page) }); err != nil {
		return err
	}
	if flags.table.path != "" {
		if err := flags.table.stream(stdout, func(w io.Writer) error { return report.CSV(w, page.Facts) }); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(said, "%s\n%d users rotated, %d did not, %d attempts were refused.\n%s\n", plain(page.Integrity.Headline), len(page.Rotated), len(page.NotRotated), len(page.Refused), report.SentIsNoProof)
	return err
}
