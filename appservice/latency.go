package appservice

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/keyherald/keyherald/internal/loop"
)

const (
	// newestWeighs is how much a measurement counts beside all before it.
	newestWeighs = 0.2
	// latencyTold is how often what was measured is written down.
	latencyTold = 2 * time.Second
)

// stopwatch measures how long the homeserver takes for to-device messages, whatever it answers and
// whether it does: a mean in which the newest count most.
type stopwatch struct {
	next http.RoundTripper

	mu    sync.Mutex // guards the rest
	mean  time.Duration
	fresh bool
}

// RoundTrip is http.RoundTripper.
func (s *stopwatch) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.Contains(req.URL.Path, "/sendToDevice/") {
		return s.next.RoundTrip(req)
	}
	began := time.Now()
	resp, err := s.next.RoundTrip(req)
	// What the caller took back says nothing; what ran into a deadline, the client's own too, took at least as long.
	if !errors.Is(req.Context().Err(), context.Canceled) {
		s.note(time.Since(began))
	}
	return resp, err
}

func (s *stopwatch) note(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mean == 0 {
		s.mean = took
	}
	s.mean, s.fresh = s.mean+time.Duration(newestWeighs*float64(took-s.mean)), true
}

// news is the mean, if anything was measured since it was asked for last.
func (s *stopwatch) news() (mean time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mean, ok, s.fresh = s.mean, s.fresh, false
	return mean, ok
}

// tellLatency writes down what was measured, for whoever decides how fast a campaign may go, on whichever replica.
func (b *Bot) tellLatency(ctx context.Context) {
	for ctx.Err() == nil {
		if mean, ok := b.stopwatch.news(); ok {
			if err := b.config.DB.PutLatency(ctx, mean, time.Now()); err != nil && ctx.Err() == nil {
				b.config.Log.Warn().Err(err).Msg("The homeserver's latency could not be kept")
			}
		}
		loop.Pause(ctx, latencyTold)
	}
}
