package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/postgres"
)

// listFlags are what `audit list` is asked for, as it was written.
type listFlags struct {
	rotation, user, actor, outcome, since, until string
	actions                                      []string
	limit                                        int
	refused, asJSON                              bool
}

// filter reads the flags; asked is what the log keeps of them.
func (f listFlags) filter(now time.Time) (filter postgres.EventFilter, asked []audit.Field, err error) {
	fail := func(format string, args ...any) (postgres.EventFilter, []audit.Field, error) {
		return postgres.EventFilter{}, nil, fmt.Errorf(format, args...)
	}
	if f.rotation != "" {
		if filter.Rotation, err = rotationID(f.rotation); err != nil {
			return fail("--rotation: %w", err)
		}
		asked = append(asked, audit.ID("rotation", filter.Rotation))
	}
	if len(f.user)+len(f.actor) > postgres.MaxFilter || (f.user != "" && !strings.HasPrefix(f.user, "@")) {
		return fail("--user, --actor: write a user such as @alice:example.org, in at most %d bytes", postgres.MaxFilter)
	}
	for _, action := range f.actions {
		if !postgres.IsActionFilter(action) {
			return fail("--action: %q is no action: write one such as rotation.done, or rotation.* for all of them", action)
		}
	}
	if f.refused && f.outcome != "" && f.outcome != string(audit.Refused) {
		return fail("--refused and --outcome %s exclude each other", f.outcome)
	}
	if f.refused {
		f.outcome = string(audit.Refused)
	}
	if f.outcome != "" && !postgres.IsOutcomeFilter(f.outcome) {
		return fail("--outcome: %q is none: write accepted, refused, failed or reported_by_device", f.outcome)
	}
	if f.limit < 0 {
		return fail("--limit is %d: write how many, or 0 for all", f.limit)
	}
	if filter.Since, filter.Until, err = period.Between(f.since, f.until, now); err != nil {
		return fail("--since, --until: %w", err)
	}
	filter.User, filter.Actor, filter.Actions, filter.Outcome, filter.Newest = f.user, f.actor, f.actions, f.outcome, f.limit
	if f.user != "" {
		asked = append(asked, audit.ID("user", id.UserID(f.user)))
	}
	if f.actor != "" {
		asked = append(asked, audit.ID("actor", audit.Filter(f.actor)))
	}
	if f.outcome != "" {
		asked = append(asked, audit.Word("outcome", audit.Outcome(f.outcome)))
	}
	if len(f.actions) > 0 {
		actions := make([]audit.Filter, len(f.actions))
		for i, action := range f.actions {
			actions[i] = audit.Filter(action)
		}
		asked = append(asked, audit.IDs("actions", actions))
	}
	return filter, append(asked, reader.PeriodFields(filter.Since, filter.Until)...), nil
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
	cmd.Flags().StringVar(&flags.rotation, "rotation", "", "only this rotation's")
	cmd.Flags().StringVar(&flags.user, "user", "", "only what this user or his devices did or underwent, and his rotations")
	cmd.Flags().StringVar(&flags.actor, "actor", "", "only this actor's, such as relay, source:NAME, local:USER@HOST, or a user with all his devices")
	cmd.Flags().StringSliceVar(&flags.actions, "action", nil, "only these actions, such as rotation.done, or rotation.* for all of rotations")
	cmd.Flags().StringVar(&flags.outcome, "outcome", "", "only this outcome: accepted, refused, failed or reported_by_device")
	cmd.Flags().BoolVar(&flags.refused, "refused", false, "only what was refused")
	cmd.Flags().StringVar(&flags.since, "since", "", "only from this time on: a day, a time, or how long ago (24h, 7d)")
	cmd.Flags().StringVar(&flags.until, "until", "", "only before this time; a day is included")
	cmd.Flags().IntVar(&flags.limit, "limit", 100, "at most this many, the newest; 0 for all")
	cmd.Flags().BoolVar(&flags.asJSON, "json", false, "print JSON Lines")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		return c.listEvents(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), flags)
	})
}

func (t *auditTools) list(ctx context.Context, out, said io.Writer, filter postgres.EventFilter, asked []audit.Field, asJSON bool) error {
	return t.Read.Snapshot(ctx, func(in context.Context) error {
		// It fixes the moment that is read, so that the event of this reading is not among the events.
		if _, err := t.Read.TreeState(in); err != nil {
			return err
		}
		if err := t.Record(ctx, reader.Reading{By: localActor(), Action: audit.LogRead, Command: audit.CommandList, Asked: asked}); err != nil {
			return err
		}
		encode := printEvent
		if asJSON {
			encode = export.JSONLine
		}
		n, err := export.Each(out, t.Read.Events(in, filter), encode)
		if err == nil && n == 0 {
			_, _ = fmt.Fprintln(said, "No event is like that.")
		}
		return err
	})
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
type eventView struct{ api.Event }

func auditShow(load func() (config, error), r *remote) *cobra.Command {
	var asJSON bool
	cmd := tool(load, "show EVENT", "Show one event, by its id or leaf index: its detail, and which checkpoint covers it", cobra.ExactArgs(1), func(cmd *cobra.Command, t *auditTools, args []string) error {
		ctx := cmd.Context()
		record, err := t.eventKey(ctx, args[0])
		if err != nil {
			return err
		}
		view, err := t.view(ctx, record)
		if err != nil {
			return err
		}
		if err := t.Record(ctx, reader.Reading{By: localActor(), Action: audit.LogRead, Command: audit.CommandShow, Asked: []audit.Field{audit.ID("event", record.ID)}}); err != nil {
			return err
		}
		return view.show(cmd.OutOrStdout(), asJSON)
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, args []string) error {
		return c.showEvent(cmd.Context(), cmd.OutOrStdout(), args[0], asJSON)
	})
}

func (t *auditTools) view(ctx context.Context, record audit.Record) (eventView, error) {
	line, err := export.LineOf(record)
	if err != nil {
		return eventView{}, err
	}
	view := eventView{api.Event{Line: line, Sealed: record.Index != audit.Unsealed, Redacted: record.RedactedBy != uuid.Nil}}
	if !view.Sealed {
		return view, nil
	}
	c, ok, err := t.Read.CheckpointCovering(ctx, record.Index)
	if ok {
		view.Checkpoint = &api.Checkpoint{Origin: checkpoint.Origin(t.LogName(), c.Epoch), Size: c.Size, SignedAt: c.At.UTC()}
	}
	return view, err
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
