package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// rotationView is a rotation as `--json` prints it. Times are RFC 3339, empty where there is none yet.
type rotationView struct {
	ID             uuid.UUID           `json:"id"`
	UserID         id.UserID           `json:"user_id"`
	Secret         string              `json:"secret"`
	KMS            protocol.KMSRef     `json:"kms"`
	Source         string              `json:"source"`
	Action         protocol.Action     `json:"action"`
	Reason         rotation.Reason     `json:"reason,omitempty"`
	State          rotation.State      `json:"state"`
	Held           bool                `json:"held,omitempty"`
	Stage          protocol.Stage      `json:"stage,omitempty"`
	BackupVersion  string              `json:"backup_version,omitempty"`
	RecoveryCopy   string              `json:"recovery_copy,omitempty"`
	NeedsAttention string              `json:"needs_attention,omitempty"`
	NextAction     string              `json:"next_action,omitempty"`
	Failure        string              `json:"failure,omitempty"`
	CreatedAt      time.Time           `json:"created_at"`
	UpdatedAt      time.Time           `json:"updated_at"`
	EndedAt        *time.Time          `json:"ended_at,omitempty"`
	Attempts       []attemptView       `json:"attempts,omitempty"`
	Deliveries     []protocol.Delivery `json:"deliveries,omitempty"`
}

type attemptView struct {
	Number   int            `json:"attempt"`
	DeviceID id.DeviceID    `json:"device_id"`
	Sequence int64          `json:"sequence"`
	Stage    protocol.Stage `json:"stage,omitempty"`
	SentAt   *time.Time     `json:"sent_at,omitempty"`
}

func viewOf(r postgres.Rotation) rotationView {
	if r.Pending() {
		r.KMS.Version = ""
	}
	return rotationView{ID: r.ID, UserID: r.UserID, Secret: r.Secret, KMS: r.KMS, Source: r.Source, Action: r.Action, Reason: r.Reason, State: r.Facts.State, Held: r.Held, Stage: r.Facts.Stage,
		BackupVersion: r.Facts.BackupVersion, RecoveryCopy: string(r.Facts.RecoveryCopy), NeedsAttention: string(r.Facts.Attention), NextAction: r.NextAction,
		Failure: string(r.Facts.Failure), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, EndedAt: optional(r.EndedAt)}
}

// versionOf is the version as people read it.
func versionOf(r postgres.Rotation) string {
	if r.Pending() {
		return "to be made"
	}
	return r.KMS.Version
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func rotationsCommand(load func() (config, error)) *cobra.Command {
	cmd := &cobra.Command{Use: "rotations", Short: "Rotations: who is done, who is stuck, and what to do about it"}
	cmd.AddCommand(rotationsList(load), rotationsShow(load), rotationsWatch(load), rotationsRelease(load),
		rotationsChange(load, "retry", "Ask for another attempt at a rotation that is open or came to nothing", (*relay.Engine).Retry),
		rotationsChange(load, "cancel", "End an open rotation and tell its device to stop where it is", (*relay.Engine).Cancel),
		rotationsChange(load, "repeat", "Have a rotation's key pushed to every target once more", (*relay.Engine).Repeat))
	return cmd
}

func rotationsList(load func() (config, error)) *cobra.Command {
	var userID string
	var open, asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List rotations, newest first, and what the stuck ones need", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withEngine(cmd.Context(), load, func(db *postgres.DB, _ *relay.Engine) error {
			rotations, err := db.Rotations(cmd.Context(), id.UserID(userID), open)
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				for _, r := range rotations {
					if err := encoder.Encode(viewOf(r)); err != nil {
						return fmt.Errorf("printing the rotations: %w", err)
					}
				}
				return nil
			}
			if f, frozen, err := db.Frozen(cmd.Context(), false); err != nil {
				return err
			} else if frozen {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "All triggers are frozen since %s by %s: `keyherald thaw` lets them go.\n", when(f.At), f.By)
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			_, _ = fmt.Fprintln(table, "ROTATION\tUSER\tVERSION\tSTATE\tSTAGE\tNEEDS ATTENTION\tNEXT ACTION")
			for _, r := range rotations {
				_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.UserID, versionOf(r), r.Facts.State, r.Facts.Stage, r.Facts.Attention, r.NextAction)
			}
			return table.Flush()
		})
	}}
	cmd.Flags().StringVar(&userID, "user", "", "only this user's")
	cmd.Flags().BoolVar(&open, "open", false, "only those that have not ended")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

func rotationsShow(load func() (config, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "show ROTATION", Short: "Show one rotation with its attempts and the outcome for each target", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := rotationID(args[0])
		if err != nil {
			return err
		}
		return withEngine(cmd.Context(), load, func(db *postgres.DB, _ *relay.Engine) error {
			view, err := readRotation(cmd.Context(), db, key)
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(view)
			}
			return printRotation(cmd.OutOrStdout(), view)
		})
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// watchInterval is how often watch looks; the log is the source, so nothing that happens in between is missed.
const watchInterval = 300 * time.Millisecond

func rotationsWatch(load func() (config, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "watch ROTATION", Short: "Print what happens to a rotation, from its begin until it has ended", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := rotationID(args[0])
		if err != nil {
			return err
		}
		c, err := load()
		if err != nil {
			return err
		}
		return withEngine(cmd.Context(), func() (config, error) { return c, nil }, func(db *postgres.DB, _ *relay.Engine) error {
			// What it prints is the log.
			err := db.Append(cmd.Context(), audit.Event{Time: time.Now(), Actor: localActor(), Action: audit.LogRead, Subject: audit.OfLog(audit.LogName(c.Audit.Name)),
				Rotation: key, Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("command", audit.CommandWatch)}})
			if err != nil {
				return err
			}
			return watch(cmd.Context(), db, key, cmd.OutOrStdout(), asJSON)
		})
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

func watch(ctx context.Context, db *postgres.DB, key uuid.UUID, out io.Writer, asJSON bool) error {
	encoder := json.NewEncoder(out)
	for shown := 0; ; {
		// The state is read before the log: what ended it is then among the lines.
		view, err := readRotation(ctx, db, key)
		if err != nil {
			return err
		}
		lines, err := db.Log(ctx, key.String(), 100_000)
		if err != nil {
			return err
		}
		for _, line := range lines[min(shown, len(lines)):] {
			if asJSON {
				err = encoder.Encode(line)
			} else {
				_, err = fmt.Fprintf(out, "%s  %-22s %-18s %s  %s\n", line.Time.UTC().Format("2006-01-02 15:04:05.000"), line.Action, line.Outcome, line.Actor, line.Detail)
			}
			if err != nil {
				return fmt.Errorf("printing: %w", err)
			}
		}
		shown = len(lines)
		if view.State.Ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

func readRotation(ctx context.Context, db *postgres.DB, key uuid.UUID) (rotationView, error) {
	r, ok, err := db.Rotation(ctx, key)
	if err != nil {
		return rotationView{}, err
	}
	if !ok {
		return rotationView{}, fmt.Errorf("there is no rotation %s: `keyherald rotations list` shows them", key)
	}
	view := viewOf(r)
	attempts, err := db.Attempts(ctx, key)
	if err != nil {
		return view, err
	}
	for _, a := range attempts {
		device, err := db.Device(ctx, a.Device)
		if err != nil {
			return view, err
		}
		view.Attempts = append(view.Attempts, attemptView{a.Number, device.DeviceID, a.Sequence, a.Stage, optional(a.SentAt)})
	}
	view.Deliveries, err = db.Deliveries(ctx, key)
	return view, err
}

func printRotation(out io.Writer, v rotationView) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	line := func(name string, value any) {
		if text := fmt.Sprint(value); text != "" {
			_, _ = fmt.Fprintf(table, "%s\t%s\n", name, text)
		}
	}
	line("rotation", v.ID)
	line("user", v.UserID)
	line("key", fmt.Sprintf("%s version %s of %s", v.KMS.Path, v.KMS.Version, v.KMS.Name))
	line("state", v.State)
	line("stage", v.Stage)
	line("key backup", v.BackupVersion)
	line("recovery copy", v.RecoveryCopy)
	line("needs attention", v.NeedsAttention)
	line("next action", v.NextAction)
	line("failure", v.Failure)
	line("created", when(v.CreatedAt))
	for _, a := range v.Attempts {
		sent := "not sent yet"
		if a.SentAt != nil {
			sent = "sent " + when(*a.SentAt)
		}
		line(fmt.Sprintf("attempt %d", a.Number), fmt.Sprintf("%s, %s, %s", a.DeviceID, sent, a.Stage))
	}
	for _, d := range v.Deliveries {
		line("target "+d.DeviceID.String(), d.Outcome)
	}
	return table.Flush()
}

func rotationsChange(load func() (config, error), name, short string, do func(*relay.Engine, context.Context, uuid.UUID, audit.Actor) error) *cobra.Command {
	return &cobra.Command{Use: name + " ROTATION", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := rotationID(args[0])
		if err != nil {
			return err
		}
		return withEngine(cmd.Context(), load, func(db *postgres.DB, engine *relay.Engine) error {
			if err := do(engine, cmd.Context(), key, localActor()); err != nil {
				return err
			}
			view, err := readRotation(cmd.Context(), db, key)
			if err != nil {
				return err
			}
			return printRotation(cmd.OutOrStdout(), view)
		})
	}}
}

func rotationsRelease(load func() (config, error)) *cobra.Command {
	var all bool
	cmd := &cobra.Command{Use: "release [ROTATION…]", Short: "Let rotations go that are held: too many users changed at once, or a key was read again", RunE: func(cmd *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return errors.New("name the rotations to release, or write --all: `keyherald rotations list --open` shows them")
		}
		keys := []uuid.UUID{}
		for _, arg := range args {
			key, err := rotationID(arg)
			if err != nil {
				return err
			}
			keys = append(keys, key)
		}
		return withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
			released, err := engine.Release(cmd.Context(), keys, localActor())
			if err == nil {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%d rotations were released\n", released)
			}
			return err
		})
	}}
	cmd.Flags().BoolVar(&all, "all", false, "release everything that is held")
	return cmd
}

func freezeCommand(load func() (config, error), name, short string, do func(*relay.Engine, context.Context, audit.Actor) error) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
			return do(engine, cmd.Context(), localActor())
		})
	}}
}

func rotationID(text string) (uuid.UUID, error) {
	key, err := uuid.Parse(text)
	if err != nil {
		return key, fmt.Errorf("%q is no rotation's id: `keyherald rotations list` shows them", text)
	}
	return key, nil
}
