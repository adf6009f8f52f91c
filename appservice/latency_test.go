package appservice

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (r roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }

func TestTheStopwatchMeasuresMessagesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := time.Second
		s := &stopwatch{next: roundTrip(func(*http.Request) (*http.Response, error) {
			time.Sleep(takes) // the bubble's clock, which costs nothing
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		})}
		ask := func(path string) {
			t.Helper()
			resp, err := s.RoundTrip(httptest.NewRequest(http.MethodPut, path, strings.NewReader("{}")))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}
		ask("/_matrix/client/v3/sync")
		if mean, ok := s.news(); ok {
			t.Errorf("a request for messages was measured: %s", mean)
		}
		ask("/_matrix/client/v3/sendToDevice/m.room.encrypted/1")
		if mean, ok := s.news(); !ok || mean != time.Second {
			t.Errorf("the first took %s, %t", mean, ok)
		}
		takes = 2 * time.Second
		ask("/_matrix/client/v3/sendToDevice/m.room.encrypted/2")
		if mean, ok := s.news(); !ok || mean != 1200*time.Millisecond {
			t.Errorf("the mean is %s, %t", mean, ok)
		}
		if _, ok := s.news(); ok {
			t.Error("it tells the same again")
		}
	})
}

// A homeserver that never answers is slow, and not unknown: what ran into the client's bound took as long, and more.
func TestTheStopwatchCountsWhatIsNeverAnsweredAndNotWhatIsTakenBack(t *testing.T) {
	arrived, end := make(chan struct{}, 3), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-end
	}))
	defer server.Close()
	defer close(end)
	var took []time.Duration // that each request was under way
	s := &stopwatch{next: roundTrip(func(req *http.Request) (*http.Response, error) {
		began := time.Now()
		resp, err := http.DefaultTransport.RoundTrip(req)
		took = append(took, time.Since(began))
		return resp, err
	})}
	ask := func(ctx context.Context, bound time.Duration) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, server.URL+"/_matrix/client/v3/sendToDevice/m.room.encrypted/1", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Timeout: bound, Transport: s}).Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if err := ask(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Fatalf("taken back it gave %v", err)
	}
	if mean, ok := s.news(); ok {
		t.Errorf("what the caller took back was measured: %s", mean)
	}
	const bound = 100 * time.Millisecond
	if err := ask(t.Context(), bound); err == nil {
		t.Fatal("it was answered")
	}
	if mean, ok := s.news(); !ok || mean < took[1] {
		t.Errorf("what is never answered took %s, %t", mean, ok)
	}
	within, done := context.WithTimeout(t.Context(), bound)
	defer done()
	if err := ask(within, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with the caller's bound it gave %v", err)
	}
	if mean, ok := s.news(); !ok || mean < min(took[1], took[2]) {
		t.Errorf("with the caller's bound it took %s, %t", mean, ok)
	}
}
