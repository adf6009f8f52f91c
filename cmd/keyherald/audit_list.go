package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/postgres"
)

// listFlags are what `audit list` is asked for, as it was written.
type listFlags struct {
	reader.Query
	limit           int
	refused, asJSON bool
}

// filter reads the flags; asked is what the log keeps of them.
func (f listFlags) filter(now time.Time) (filter postgres.EventFilter, asked []audit.Field, err error) {
	if f.refused && f.Outcome != "" && f.Outcome != string(audit.Refused) {
		return filter, nil, fmt.Errorf("--refused and --outcome %s exclude each other", f.Outcome)
	}
	if f.limit < 0 {
		return filter, nil, fmt.Errorf("--limit is %d: write how many, or 0 for all", f.limit)
	}
	if filter, asked, err = f.query().Filter(now); err != nil {
		return filter, nil, fmt.Errorf("--%w", err)
	}
	filter.Newest = f.limit
	return filter, asked, nil
}

func (f listFlags) query() reader.Query {
	if f.refused {
		f.Outcome = string(audit.Refused)
	}
	return f.Query
}

func auditList(load func() (config, error), r *remote) *cobra.Command {
	var flags listFlags
	cmd := tool(load, "list", "Print events, oldest first: what is asked for, or the newest", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		filter, asked, err := flags.filter(time.Now())
		if err != nil {
			return err
		}
		return t.list(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), filter, asked, flags.asJSON)
	})
	cmd.Flags().StringVar(&flags.Rotation, "rotation", "", "only this rotation's")
	cmd.Flags().StringVar(&flags.User, "user", "", "only what this user or his devices did or underwent, and his rotations")
	cmd.Flags().StringVar(&flags.Actor, "actor", "", "only this actor's, such as relay, source:NAME, local:USER@HOST, or a user with all his devices")
	cmd.Flags().StringSliceVar(&flags.Actions, "action", nil, "only these actions, such as rotation.done, or rotation.* for all of rotations")
	cmd.Flags().StringVar(&flags.Outcome, "outcome", "", "only this outcome: accepted, refused, failed or reported_by_device")
	cmd.Flags().BoolVar(&flags.refused, "refused", false, "only what was refused")
	cmd.Flags().StringVar(&flags.Since, "since", "", "only from this time on: a day, a time, or how long ago (24h, 7d)")
	cmd.Flags().StringVar(&flags.Until, "until", "", "only before this time; a day is included")
	cmd.Flags().IntVar(&flags.limit, "limit", 100, "at most this many, the newest; 0 for all")
	cmd.Flags().BoolVar(&flags.asJSON, "json", false, "print JSON Lines")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		return c.listEvents(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), flags)
	})
}

func (t *auditTools) list(ctx context.Context, out, said io.Writer, filter postgres.EventFilter, asked []audit.Field, asJSON bool) error {
	encode := printEvent
	if asJSON {
		encode = export.JSONLine
	}
	n := 0
	err := t.List(ctx, localActor(), filter, asked, func(record audit.Record) error {
		n++
		return encode(out, record)
	})
	if err == nil && n == 0 {
		_, _ = fmt.Fprintln(said, "No event is like that.")
	}
	return err
}

// printEvent is an export.Encoder for people.
func printEvent(to io.Writer, record audit.Record) error {
	line, err := export.LineOf(record)
	if err != nil {
		return err
	}
	return printLine(to, line)
}

func printLine(to io.Writer, line export.Line) error {
	detail := string(line.Detail)
	if line.Detail == nil {
		detail = "(no detail)"
	}
	if line.RedactedBy != nil {
		detail = "(redacted)"
	}
	_, err := fmt.Fprintf(to, "%s  %s  %-28s %-18s %s → %s  %s\n", line.Time, line.ID, plain(string(line.Action)), plain(string(line.Outcome)), plain(line.Actor), plain(line.Subject), plain(detail))
	return err
}

// eventView is one event as `audit show --json` prints it.
type eventView struct{ reader.Event }

func auditShow(load func() (config, error), r *remote) *cobra.Command {
	var asJSON bool
	cmd := tool(load, "show EVENT", "Show one event, by its id or leaf index: its detail, and which checkpoint covers it", cobra.ExactArgs(1), func(cmd *cobra.Command, t *auditTools, args []string) error {
		ctx := cmd.Context()
		record, err := t.eventKey(ctx, args[0])
		if err != nil {
			return err
		}
		event, err := t.Show(ctx, localActor(), record)
		if err != nil {
			return err
		}
		return eventView{event}.show(cmd.OutOrStdout(), asJSON)
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, args []string) error {
		return c.showEvent(cmd.Context(), cmd.OutOrStdout(), args[0], asJSON)
	})
}

func (v eventView) show(out io.Writer, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	}
	return v.print(out)
}

func (v eventView) print(out io.Writer) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-11s %s\n", name, plain(value))
		}
	}
	line("event", v.ID.String())
	switch {
	case !v.Sealed:
		line("sealed", "not yet: no checkpoint covers it")
	case v.Checkpoint == nil:
		line("sealed", fmt.Sprintf("as leaf %d, and no checkpoint in the database covers it: see `keyherald audit verify`", *v.Index))
	default:
		line("sealed", fmt.Sprintf("as leaf %d, first covered by the checkpoint %s size %d of %s", *v.Index, v.Checkpoint.Origin, v.Checkpoint.Size, v.Checkpoint.SignedAt.Format(time.RFC3339)))
	}
	line("time", v.Time)
	line("actor", v.Actor)
	line("action", string(v.Action))
	line("subject", v.Subject)
	line("rotation", v.Rotation)
	line("outcome", string(v.Outcome))
	switch {
	case v.Redacted:
		line("detail", "redacted by the event "+v.RedactedBy.String())
	case v.Detail == nil:
		line("detail", "missing, and no redaction says why: see `keyherald audit verify`")
	default:
		line("detail", string(v.Detail))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func auditCheckpoint(load func() (config, error), r *remote) *cobra.Command {
	var epoch int
	var size int64
	// A checkpoint says nothing of what is in the log, so that printing one is no reading of it.
	cmd := tool(load, "checkpoint", "Print a signed checkpoint: the newest, or the one that is asked for", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		if epoch < 0 || size < 0 {
			return errNoSize
		}
		note, err := t.Checkpoint(cmd.Context(), epoch, size)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), note)
		return err
	})
	cmd.Flags().IntVar(&epoch, "epoch", 0, "of this epoch; the present one where it is not given")
	cmd.Flags().Int64Var(&size, "size", 0, "of exactly this many events")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		return c.checkpoint(cmd.Context(), cmd.OutOrStdout(), epoch, size)
	})
}

var errNoSize = errors.New("--epoch and --size are numbers from 1 on")
