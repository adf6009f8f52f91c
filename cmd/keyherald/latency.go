package main

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyherald/keyherald/kms"
)

// latencyBuckets reach from a neighbour that answers at once to one that has given up.
var latencyBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// latencies are how long others take to answer the server. No label names a user, a path or a version.
type latencies struct {
	kms, homeserver *prometheus.HistogramVec
}

func newLatencies(metrics prometheus.Registerer) (latencies, error) {
	l := latencies{
		kms: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "keyherald_kms_request_seconds", Buckets: latencyBuckets,
			Help: "How long a KMS took to say a secret's current version, by its name and the outcome: ok, not_found, forbidden, unavailable, failed."}, []string{"kms", "outcome"}),
		homeserver: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "keyherald_homeserver_request_seconds", Buckets: latencyBuckets,
			Help: "How long the homeserver took to begin its answer to the bot, by kind of request (a sync waits for news by design) and the outcome: 2xx, 4xx, 429, 5xx, no_answer."}, []string{"request", "outcome"}),
	}
	return l, errors.Join(metrics.Register(l.kms), metrics.Register(l.homeserver))
}

// timed is a KMS whose answers are measured.
type timed struct {
	kms.Metadata
	name    string
	seconds *prometheus.HistogramVec
}

// Current implements kms.Metadata.
func (t timed) Current(ctx context.Context, path string) (kms.Description, error) {
	began := time.Now()
	d, err := t.Metadata.Current(ctx, path)
	if ctx.Err() == nil {
		t.seconds.WithLabelValues(t.name, kmsOutcome(err)).Observe(time.Since(began).Seconds())
	}
	return d, err
}

// KeepAlive keeps the login of a client that has one, and ends at once for others.
func (t timed) KeepAlive(ctx context.Context, failed func(error)) {
	if kept, ok := t.Metadata.(interface {
		KeepAlive(ctx context.Context, failed func(error))
	}); ok {
		kept.KeepAlive(ctx, failed)
	}
}

func kmsOutcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, kms.ErrNotFound):
		return "not_found"
	case errors.Is(err, kms.ErrForbidden):
		return "forbidden"
	case errors.Is(err, kms.ErrUnavailable):
		return "unavailable"
	}
	return "failed"
}

// measured is a transport to the homeserver whose answers are measured.
type measured struct {
	below   http.RoundTripper
	seconds *prometheus.HistogramVec
}

// RoundTrip implements http.RoundTripper.
func (m measured) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	res, err := m.below.RoundTrip(req)
	outcome := "no_answer"
	if err == nil && res.StatusCode == http.StatusTooManyRequests {
		outcome = "429"
	} else if err == nil {
		outcome = strconv.Itoa(res.StatusCode/100) + "xx"
	} else if req.Context().Err() != nil {
		return res, err // we ended it ourselves
	}
	m.seconds.WithLabelValues(kindOfRequest(req.URL.Path), outcome).Observe(time.Since(began).Seconds())
	return res, err
}

var clientPath = regexp.MustCompile(`^.*/_matrix/client/[^/]+/`)

// kindOfRequest is one of few words, whatever the path.
func kindOfRequest(path string) string {
	path = clientPath.ReplaceAllString(path, "")
	first, rest, _ := strings.Cut(path, "/")
	switch {
	case first == "sync":
		return "sync"
	case first == "sendToDevice":
		return "send_to_device"
	case first == "keys" && (rest == "query" || rest == "claim" || rest == "upload"):
		return "keys_" + rest
	case first == "createRoom" || first == "rooms" || first == "joined_rooms":
		return "rooms"
	}
	return "other"
}
