package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit"
)

// meant reports whether somebody who may read the log by the database or by the API meant the API: he named a server, or his
// environment does and he named no configuration.
func (r *remote) meant(cmd *cobra.Command) bool {
	return r.server != "" || os.Getenv(serverVariable) != "" && !cmd.Flag("config").Changed
}

// listEvents is `audit list` by the API. The log is read in pages, the newest first, each of which leaves an event of its own.
func (r *remote) listEvents(ctx context.Context, out, said io.Writer, flags listFlags) error {
	// The server judges what is asked for, and the command in its own words.
	if _, _, err := flags.filter(time.Now()); err != nil {
		return err
	}
	if flags.limit == 0 {
		return errors.New("--limit 0: by the API the log is read the newest first, so that all of it would have to be kept here: write how many, or read by the database (`keyherald audit export`)")
	}
	c, err := r.connect()
	if err != nil {
		return err
	}
	if flags.refused {
		flags.outcome = string(audit.Refused)
	}
	filters := url.Values{}
	for name, value := range map[string]string{"rotation": flags.rotation, "user_id": flags.user, "actor": flags.actor, "outcome": flags.outcome, "since": flags.since, "until": flags.until,
		"action": strings.Join(flags.actions, ",")} {
		if value != "" {
			filters.Set(name, value)
		}
	}
	var events []api.Event
	for len(events) < flags.limit {
		filters.Set("limit", strconv.Itoa(min(1000, flags.limit-len(events))))
		var page api.Page[api.Event]
		if err := c.do(ctx, http.MethodGet, "/audit/events?"+filters.Encode(), nil, &page); err != nil {
			return err
		}
		events = append(events, page.Items...)
		if page.NextCursor == "" {
			break
		}
		filters.Set("cursor", page.NextCursor)
	}
	if len(events) == 0 {
		_, _ = fmt.Fprintln(said, "No event is like that.")
	}
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for _, event := range slices.Backward(events) {
		if flags.asJSON {
			err = encoder.Encode(event.Line)
		} else {
			err = printLine(out, event.Line)
		}
		if err != nil {
			return fmt.Errorf("printing the events: %w", err)
		}
	}
	return nil
}

// showEvent is `audit show` by the API.
func (r *remote) showEvent(ctx context.Context, out io.Writer, event string, asJSON bool) error {
	key, err := uuid.Parse(event)
	if err != nil {
		return fmt.Errorf("%q is no event's id: `keyherald audit list` shows them", event)
	}
	c, err := r.connect()
	if err != nil {
		return err
	}
	var view eventView
	if err := c.do(ctx, http.MethodGet, "/audit/events/"+key.String(), nil, &view.Event); err != nil {
		return err
	}
	return view.show(out, asJSON)
}
