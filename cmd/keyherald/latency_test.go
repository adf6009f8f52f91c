package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/roster"
)

// series counts what a registry's histograms have observed, by the values of their labels.
func series(t *testing.T, metrics *prometheus.Registry, name string) map[string]uint64 {
	t.Helper()
	families, err := metrics.Gather()
	check(t, err)
	found := map[string]uint64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += l.GetValue() + " "
			}
			found[labels] = observed(m)
		}
	}
	return found
}

func observed(m *dto.Metric) uint64 {
	if m.GetHistogram() == nil {
		return uint64(m.GetGauge().GetValue())
	}
	return m.GetHistogram().GetSampleCount()
}

type answering struct{ err error }

func (a answering) Current(context.Context, string) (kms.Description, error) {
	return kms.Description{}, a.err
}
func (a answering) CanReadSecret(context.Context, string) (bool, error) { return false, nil }

func TestAnswersOfAKMSAreMeasuredByOutcome(t *testing.T) {
	metrics := prometheus.NewRegistry()
	l, err := newLatencies(metrics)
	check(t, err)
	for _, answer := range []error{nil, kms.ErrNotFound, fmt.Errorf("asking: %w", kms.ErrForbidden), kms.ErrUnavailable, kms.ErrMalformed, nil} {
		_, _ = timed{answering{answer}, "corporate", l.kms}.Current(t.Context(), "keyherald/alice")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = timed{answering{context.Canceled}, "corporate", l.kms}.Current(ended, "keyherald/alice")
	want := map[string]uint64{"corporate ok ": 2, "corporate not_found ": 1, "corporate forbidden ": 1, "corporate unavailable ": 1, "corporate failed ": 1}
	if got := series(t, metrics, "keyherald_kms_request_seconds"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("measured %v, want %v", got, want)
	}
	// A client without a login of its own has none to keep.
	timed{answering{}, "corporate", l.kms}.KeepAlive(t.Context(), nil)
}

func TestAnswersOfTheHomeserverAreMeasuredByKindAndOutcome(t *testing.T) {
	metrics := prometheus.NewRegistry()
	l, err := newLatencies(metrics)
	check(t, err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Query().Get("say") {
		case "busy":
			w.WriteHeader(http.StatusTooManyRequests)
		case "no":
			w.WriteHeader(http.StatusForbidden)
		case "broken":
			w.WriteHeader(http.StatusBadGateway)
		case "nothing":
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	client := http.Client{Transport: measured{http.DefaultTransport, l.homeserver}}
	for _, path := range []string{"v3/sync?since=s1", "v3/sendToDevice/m.room.encrypted/018f", "v3/sendToDevice/m.room.encrypted/018f?say=busy", "v3/keys/query", "v3/keys/claim?say=no", "v3/keys/upload",
		"v3/keys/changes", "v3/createRoom", "v3/rooms/!a:b/send/m.room.message/018f?say=broken", "v3/joined_rooms", "v3/profile/@alice:example.org", "v3/sync?say=nothing"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/behind/_matrix/client/"+path, nil)
		check(t, err)
		if res, err := client.Do(req); err == nil {
			check(t, res.Body.Close())
		}
	}
	want := map[string]uint64{"2xx sync ": 1, "no_answer sync ": 1, "2xx send_to_device ": 1, "429 send_to_device ": 1, "2xx keys_query ": 1, "4xx keys_claim ": 1, "2xx keys_upload ": 1,
		"2xx rooms ": 2, "5xx rooms ": 1, "2xx other ": 2}
	if got := series(t, metrics, "keyherald_homeserver_request_seconds"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("measured %v, want %v", got, want)
	}
}

func TestTheRosterIsCountedOnceAMinuteAndNotToldWhereItCannotBe(t *testing.T) {
	metrics := prometheus.NewRegistry()
	asked, fails := 0, false
	c := &coverage{count: func(context.Context) (roster.Compliance, error) {
		asked++
		if fails {
			return roster.Compliance{}, errors.New("the database is away")
		}
		return roster.Compliance{Roster: 12, States: map[roster.State]int{roster.Current: 9, roster.Unknown: 3}, PastMaxAge: 2}, nil
	}}
	metrics.MustRegister(c)
	for range 3 {
		if got := fmt.Sprint(series(t, metrics, "keyherald_roster_users")); got != "map[current :9 exempt :0 in_progress :0 needs_attention :0 not_covered :0 overdue :0 unknown :3]" || asked != 1 {
			t.Errorf("after %d questions it tells %v", asked, got)
		}
		if got := fmt.Sprint(series(t, metrics, "keyherald_roster_past_max_age_users")); got != "map[:2]" || asked != 1 {
			t.Errorf("after %d questions keys are too old of %v", asked, got)
		}
	}
	c.at, fails = c.at.Add(-coverageEvery), true
	if got := series(t, metrics, "keyherald_roster_users"); len(got) != 0 || asked != 2 {
		t.Errorf("after %d questions it tells %v", asked, got)
	}
}
