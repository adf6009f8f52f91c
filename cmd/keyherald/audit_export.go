package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/internal/period"
)

// exportFlags are what `audit export` is asked for, as it was written.
type exportFlags struct {
	format, from, to string
	out              output
}

func auditExport(load func() (config, error), r *remote) *cobra.Command {
	var flags exportFlags
	cmd := tool(load, "export", "Write the sealed events of one moment into a file", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		asked, err := flags.read(time.Now())
		if err != nil {
			return err
		}
		return t.export(cmd.Context(), asked, flags.out, cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
	cmd.Flags().StringVar(&flags.format, "format", "", "jsonl, csv (for spreadsheets), ocsf (OCSF "+export.OCSFVersion+"), or bundle (for keyherald-verify)")
	cmd.Flags().StringVar(&flags.from, "from", "", "only events from this time on: a day, a time, or how long ago (24h, 7d)")
	cmd.Flags().StringVar(&flags.to, "to", "", "only events before this time; a day is included")
	flags.out.flags(cmd, "")
	_ = cmd.MarkFlagRequired("format")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		// The server judges what is asked for, and the command in its own words.
		if _, err := flags.read(time.Now()); err != nil {
			return err
		}
		return c.export(cmd.Context(), flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
	})
}

func (f *exportFlags) read(now time.Time) (e reader.Export, err error) {
	e.Format = audit.Format(f.format)
	if e.Since, e.Until, err = period.Between(f.from, f.to, now); err != nil {
		return e, fmt.Errorf("--from, --to: %w", err)
	}
	return e, f.out.check()
}

func (t *auditTools) export(ctx context.Context, asked reader.Export, out output, stdout, said io.Writer) error {
	return t.Export(ctx, localActor(), asked, func(at reader.Moment, encode func(io.Writer) (int64, error)) error {
		var n int64
		err := out.stream(stdout, func(to io.Writer) (err error) {
			n, err = encode(to)
			return err
		})
		if err != nil {
			return err
		}
		return sayExported(said, fmt.Sprintf("%d events of %d that are sealed", n, at.Size), at.Newest.Size, at.Newest.Epoch, at.Unsealed)
	})
}

// sayExported tells what an export has and what it has not.
func sayExported(said io.Writer, what string, newest int64, epoch int, unsealed int64) error {
	_, err := fmt.Fprintf(said, "Exported %s, under the checkpoint of %d events in epoch %d.\n", what, newest, epoch)
	if unsealed > 0 && err == nil {
		_, err = fmt.Fprintf(said, "Not among them: %d events that are not sealed yet.\n", unsealed)
	}
	return err
}
