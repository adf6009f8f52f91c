package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit/reader"
)

// versionOf is the version as people read it.
func versionOf(r api.Rotation) string {
	if r.KMS.Version == "" {
		return "to be made"
	}
	return r.KMS.Version
}

// at is a time that may be missing.
func at(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return when(*t)
}

func rotationsCommand(r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "rotations", Short: "Rotations: who is done, who is stuck, and what to do about it"}
	cmd.AddCommand(rotationsList(r), rotationsShow(r), rotationsWatch(r), rotationsRelease(r),
		rotationsChange(r, "retry", "Ask for another attempt at a rotation that is open or came to nothing"),
		rotationsChange(r, "cancel", "End an open rotation and tell its device to stop where it is"),
		rotationsChange(r, "repeat", "Have a rotation's key pushed to every target once more"))
	return cmd
}

func rotationsList(r *remote) *cobra.Command {
	var userID string
	var open, asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List rotations, newest first, and what the stuck ones need", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		filters := url.Values{}
		if userID != "" {
			filters.Set("user_id", userID)
		}
		if open {
			filters.Set("open", "true")
		}
		rotations, err := all[api.Rotation](cmd.Context(), c, "/rotations", filters)
		if err != nil {
			return err
		}
		if asJSON {
			return printLines(cmd.OutOrStdout(), rotations)
		}
		var f api.Freeze
		if err := c.do(cmd.Context(), http.MethodGet, "/freeze", nil, &f); err != nil {
			return err
		} else if f.Frozen {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "All triggers are frozen since %s by %s: `keyherald thaw` lets them go.\n", at(f.At), f.By)
		}
		table := newTable(cmd.OutOrStdout())
		_, _ = fmt.Fprintln(table, "ROTATION\tUSER\tVERSION\tSTATE\tSTAGE\tNEEDS ATTENTION\tNEXT ACTION")
		for _, r := range rotations {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.UserID, versionOf(r), r.State, r.Stage, r.NeedsAttention, r.NextAction)
		}
		return table.Flush()
	}}
	cmd.Flags().StringVar(&userID, "user", "", "only this user's")
	cmd.Flags().BoolVar(&open, "open", false, "only those that have not ended")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

// printLines prints JSON Lines.
func printLines[T any](out io.Writer, items []T) error {
	encoder := json.NewEncoder(out)
	for _, item := range items {
		if err := encoder.Encode(item); err != nil {
			return fmt.Errorf("printing: %w", err)
		}
	}
	return nil
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func rotationsShow(r *remote) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "show ROTATION", Short: "Show one rotation with its attempts and the outcome for each target", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := rotationID(args[0])
		if err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var view api.Rotation
		if err := c.do(cmd.Context(), http.MethodGet, "/rotations/"+key.String(), nil, &view); err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), view)
		}
		return printRotation(cmd.OutOrStdout(), view)
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func rotationsWatch(r *remote) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "watch ROTATION", Short: "Print what happens to a rotation, from its begin until it has ended", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := rotationID(args[0])
		if err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		return watch(cmd.Context(), c, key, cmd.OutOrStdout(), asJSON)
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines, as `keyherald audit list` does")
	return cmd
}

func watch(ctx context.Context, c *client, key uuid.UUID, out io.Writer, asJSON bool) error {
	return c.stream(ctx, "/rotations/"+key.String()+"/events", func(kind string, data []byte) error {
		if kind != "log" {
			return nil
		}
		if asJSON {
			_, err := fmt.Fprintf(out, "%s\n", data)
			return err
		}
		var e reader.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("the server streams what this program does not know: %w", err)
		}
		_, err := fmt.Fprintf(out, "%s  %-22s %-18s %s  %s\n", e.Time, plain(string(e.Action)), plain(string(e.Outcome)), plain(e.Actor), plain(string(e.Detail)))
		return err
	})
}

func printRotation(out io.Writer, v api.Rotation) error {
	table := newTable(out)
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

func rotationsChange(r *remote, name, short string) *cobra.Command {
	return &cobra.Command{Use: name + " ROTATION", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := rotationID(args[0])
		if err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var view api.Rotation
		if err := c.do(cmd.Context(), http.MethodPost, "/rotations/"+key.String()+"/"+name, nil, &view); err != nil {
			return err
		}
		return printRotation(cmd.OutOrStdout(), view)
	}}
}

func rotationsRelease(r *remote) *cobra.Command {
	var everything bool
	cmd := &cobra.Command{Use: "release [ROTATION…]", Short: "Let rotations go that are held: too many users changed at once, or a key was read again", RunE: func(cmd *cobra.Command, args []string) error {
		if everything == (len(args) > 0) {
			return errors.New("name the rotations to release, or write --all: `keyherald rotations list --open` shows them")
		}
		request := api.ReleaseRequest{All: everything}
		for _, arg := range args {
			key, err := rotationID(arg)
			if err != nil {
				return err
			}
			request.Rotations = append(request.Rotations, key)
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		var released api.Released
		if err := c.do(cmd.Context(), http.MethodPost, "/rotations/release", request, &released); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d rotations were released\n", released.Released)
		return err
	}}
	cmd.Flags().BoolVar(&everything, "all", false, "release everything that is held")
	return cmd
}

func freezeCommand(r *remote, name, short, method string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		return c.do(cmd.Context(), method, "/freeze", nil, nil)
	}}
}

func rotationID(text string) (uuid.UUID, error) {
	key, err := uuid.Parse(text)
	if err != nil {
		return key, fmt.Errorf("%q is no rotation's id: `keyherald rotations list` shows them", text)
	}
	return key, nil
}
