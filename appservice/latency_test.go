package appservice

import (
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
