package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/audit/report"
)

// listEvents is `audit list` by the API. The log is read in pages, the newest first, each of which leaves an event of its own.
func (c *client) listEvents(ctx context.Context, out, said io.Writer, flags listFlags) error {
	// The server judges what is asked for, and the command in its own words.
	if _, _, err := flags.filter(time.Now()); err != nil {
		return err
	}
	if flags.limit == 0 {
		return errors.New("--limit 0: by the API the log is read the newest first, so that all of it would have to be kept here: write how many, or read by the database (`keyherald audit export`)")
	}
	q := flags.query()
	filters := url.Values{}
	for name, value := range map[string]string{"rotation": q.Rotation, "user_id": q.User, "actor": q.Actor, "outcome": q.Outcome, "since": q.Since, "until": q.Until,
		"action": strings.Join(q.Actions, ",")} {
		if value != "" {
			filters.Set(name, value)
		}
	}
	var events []reader.Event
	for len(events) < flags.limit {
		filters.Set("limit", strconv.Itoa(min(1000, flags.limit-len(events))))
		var page api.Page[reader.Event]
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
	show := func(line export.Line) error { return printLine(out, line) }
	if flags.asJSON {
		show = func(line export.Line) error { return encoder.Encode(line) }
	}
	for _, event := range slices.Backward(events) {
		if err := show(event.Line); err != nil {
			return fmt.Errorf("printing the events: %w", err)
		}
	}
	return nil
}

// showEvent is `audit show` by the API.
func (c *client) showEvent(ctx context.Context, out io.Writer, event string, asJSON bool) error {
	key, err := eventID(event)
	if err != nil {
		return err
	}
	var view eventView
	if err := c.do(ctx, http.MethodGet, "/audit/events/"+key.String(), nil, &view.Event); err != nil {
		return err
	}
	return view.show(out, asJSON)
}

// eventID reads an event's id. By the API an event has no other name.
func eventID(text string) (uuid.UUID, error) {
	key, err := uuid.Parse(text)
	if err != nil {
		return key, fmt.Errorf("%q is no event's id: `keyherald audit list` shows them", text)
	}
	return key, nil
}

// proof is `audit prove` by the API.
func (c *client) proof(ctx context.Context, event string) ([]byte, error) {
	key, err := eventID(event)
	if err != nil {
		return nil, err
	}
	var proof strings.Builder
	_, err = c.fetch(ctx, "/audit/events/"+key.String()+"/proof", "text/plain", &proof)
	return []byte(proof.String()), err
}

// checkpoint is `audit checkpoint` by the API.
func (c *client) checkpoint(ctx context.Context, out io.Writer, epoch int, size int64) error {
	if epoch < 0 || size < 0 {
		return errNoSize
	}
	query := url.Values{}
	if epoch > 0 {
		query.Set("epoch", strconv.Itoa(epoch))
	}
	if size > 0 {
		query.Set("size", strconv.FormatInt(size, 10))
	}
	_, err := c.fetch(ctx, "/audit/checkpoint?"+query.Encode(), "text/plain", out)
	return err
}

// span is a period as a query has it.
func span(from, to string) url.Values {
	query := url.Values{}
	if from != "" {
		query.Set("since", from)
	}
	if to != "" {
		query.Set("until", to)
	}
	return query
}

// export is `audit export` by the API.
func (c *client) export(ctx context.Context, flags exportFlags, stdout, said io.Writer) error {
	query := span(flags.from, flags.to)
	query.Set("format", flags.format)
	var header http.Header
	err := flags.out.stream(stdout, func(to io.Writer) (err error) {
		header, err = c.fetch(ctx, "/audit/export?"+query.Encode(), "", to)
		return err
	})
	if err != nil {
		return err
	}
	of := func(name string) int64 {
		n, _ := strconv.ParseInt(header.Get(name), 10, 64)
		return n
	}
	what := fmt.Sprintf("the %d events that are sealed", of(api.HeaderLogSize))
	if len(query) > 1 {
		what = fmt.Sprintf("what is of that period of the %d events that are sealed", of(api.HeaderLogSize))
	}
	return sayExported(said, what, of(api.HeaderCheckpointSize), int(of(api.HeaderCheckpointEpoch)), of(api.HeaderUnsealed))
}

// report is `audit report` by the API: the server makes the page, and says in it by whom it was asked.
func (c *client) report(ctx context.Context, flags reportFlags, stdout, said io.Writer) error {
	path := "/audit/report?" + span(flags.from, flags.to).Encode()
	var header http.Header
	fetch := func(kind string) func(io.Writer) error {
		return func(to io.Writer) (err error) {
			header, err = c.fetch(ctx, path, kind, to)
			return err
		}
	}
	if err := flags.page.stream(stdout, fetch("text/html")); err != nil {
		return err
	}
	if flags.table.path != "" {
		if err := flags.table.stream(stdout, fetch("text/csv")); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(said, "The server finds its log: %s.\n%s\n", plain(header.Get(api.HeaderVerdict)), report.SentIsNoProof)
	return err
}
