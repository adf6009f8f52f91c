package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/follow"
)

// follow is `audit follow` by the API. What the server sends are the events' bytes, so that the follower hashes them here.
func (c *client) follow(cmd *cobra.Command, flags followFlags) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	var log api.Log
	if err := c.do(ctx, http.MethodGet, "/audit/log", nil, &log); err != nil {
		return err
	}
	s := &leafStream{client: c, once: flags.follower.Once, patience: flags.follower.Interval}
	f, err := flags.prepare(ctx, cmd, log.Name, s.Leaves)
	if err != nil {
		return err
	}
	return runFollower(ctx, f)
}

// settle is how long what comes next may take, where leaves come, to be of the same page.
const settle = 100 * time.Millisecond

// leafStream has the log's leaves as a follower asks for them, page by page in their order, out of the server's stream.
type leafStream struct {
	client *client
	once   bool
	// patience is how long a page that has nothing new is waited for.
	patience time.Duration

	// held is the leaf that was given out last, with which each page but the first begins; none before there was one.
	held []audit.Record
	// come are the leaves of the stream that is open, nil where none is. It is closed with the stream; failed then says why it
	// ended, nil where all was sent.
	come   chan audit.Record
	failed error
	all    bool
}

// Leaves implements follow.Follower's. first is that of the leaf that was given out last, if there was one.
func (s *leafStream) Leaves(ctx context.Context, first, end int64) (page []audit.Record, err error) {
	switch {
	case s.all:
		return s.held, nil
	case s.come == nil:
		s.open(ctx, first) // the leaf that was given out last comes again: it shows whether it is the same log
	default:
		page = append(page, s.held...)
	}
	patience := time.NewTimer(s.patience)
	defer patience.Stop()
	for int64(len(page)) < end-first {
		waits := patience.C
		if len(page) == 0 || s.once {
			waits = nil
		}
		select {
		case record, open := <-s.come:
			if !open {
				s.come = nil
				return page, s.ended(len(page) > 0)
			}
			page, s.held = append(page, record), []audit.Record{record}
			patience.Reset(settle)
		case <-waits:
			return page, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return page, nil
}

// ended says what the end of the stream means. One that was cut off is opened again for the next page.
func (s *leafStream) ended(hasPage bool) error {
	problem := new(api.Problem)
	isProblem := errors.As(s.failed, &problem)
	switch {
	case s.failed == nil:
		s.all = true
		return nil
	case errors.Is(s.failed, errCut) && hasPage && !s.once:
		return nil // it had its time, or the server stops
	case errors.Is(s.failed, errCut), isProblem && (problem.Status >= http.StatusInternalServerError || problem.Code == api.CodeTooMany):
		return s.failed
	case isProblem && problem.Code == api.CodeConflict:
		return fmt.Errorf("%s: %w", problem.Detail, follow.ErrWentBack)
	}
	return fmt.Errorf("%w: %w", follow.ErrRefused, s.failed)
}

func (s *leafStream) open(ctx context.Context, first int64) {
	query := url.Values{"first": {strconv.FormatInt(first, 10)}}
	if s.once {
		query.Set("once", "true")
	}
	come := make(chan audit.Record)
	s.come = come
	go func() {
		defer close(come)
		last := ""
		_, _, s.failed = s.client.hear(ctx, "/audit/leaves?"+query.Encode(), &last, func(kind string, data []byte) error {
			var leaf api.Leaf
			if kind != "leaf" {
				return nil
			}
			if err := json.Unmarshal(data, &leaf); err != nil {
				return fmt.Errorf("the server sends what this program does not know: is it of the same version? %w", err)
			}
			select {
			case come <- leaf.Record():
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
}
