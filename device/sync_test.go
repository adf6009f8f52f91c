package device

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"pgregory.net/rapid"
)

// The homeserver has two messages, the second one when the first is acknowledged.
func TestAnAccountThatAsksNowAndThenTakesAllThatLiesThereAndThenPauses(t *testing.T) {
	asked := make(chan url.Values, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Query()
		next := map[string]string{"": "1", "1": "2", "2": "2"}[r.URL.Query().Get("since")]
		answer := `{"next_batch": "` + next + `", "device_one_time_keys_count": {"signed_curve25519": 50}`
		if r.URL.Query().Get("since") != "2" {
			answer += `, "to_device": {"events": [{"type": "m.dummy", "sender": "@alice:example.org", "content": {}}]}`
		}
		_, _ = w.Write([]byte(answer + "}"))
	}))
	defer server.Close()
	store, err := openStore(t.Context(), filepath.Join(t.TempDir(), "x.db"), make([]byte, 32), openSQLite)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.close() }()
	client, err := mautrix.NewClient(server.URL, "@alice:example.org", "token")
	if err != nil {
		t.Fatal(err)
	}
	client.DeviceID = "DEVICE"
	a := &Account{store: store, client: client, now: time.Now, options: Options{Sync: Sync{Interval: 24 * time.Hour}}}
	if err := a.connect(); err != nil {
		t.Fatal(err)
	}
	if err := a.endpoint.InTxn(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.receiveLoop(ctx, cancel) }()
	for _, since := range []string{"", "1", "2"} {
		select {
		case query := <-asked:
			if query.Get("since") != since || len(query.Get("timeout")) > 3 {
				t.Errorf("after %q it asks since %q and waits %s ms", since, query.Get("since"), query.Get("timeout"))
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("nobody asks since %q", since)
		}
	}
	// The pause is anywhere within a day: this short by chance is one in three hundred thousand.
	select {
	case <-asked:
		t.Error("it asks again at once, though nothing came")
	case <-time.After(300 * time.Millisecond):
	}
	cancel(nil)
	<-done
}

func TestWithoutAnIntervalARequestIsHeldOpenAllTheTime(t *testing.T) {
	var s Sync
	if s.wait() != longPoll {
		t.Errorf("it waits %s", s.wait())
	}
	for _, first := range []bool{true, false} {
		if pause := s.pause(0, first); pause != 0 {
			t.Errorf("between two requests it pauses %s", pause)
		}
	}
}

func TestWithAnIntervalAnAccountAsksAboutThatOftenAndNotTogetherWithOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Sync{Interval: time.Duration(rapid.Int64Range(int64(time.Second), int64(24*time.Hour)).Draw(t, "interval"))}
		if s.wait() != 0 {
			t.Errorf("a request waits %s", s.wait())
		}
		if pause := s.pause(rapid.IntRange(1, 200).Draw(t, "came"), rapid.Bool().Draw(t, "first")); pause != 0 {
			t.Errorf("what else lies there waits %s", pause)
		}
		if pause := s.pause(0, true); pause < 0 || pause >= s.Interval {
			t.Errorf("the first pause is %s of %s", pause, s.Interval)
		}
		if pause := s.pause(0, false); pause < s.Interval*9/10 || pause > s.Interval*11/10 {
			t.Errorf("a pause is %s of %s", pause, s.Interval)
		}
	})
	// A fleet of a thousand that began in one moment: every tenth of the interval has its part of the second requests.
	const accounts = 1000
	s := Sync{Interval: time.Minute}
	var tenths [10]int
	for range accounts {
		tenths[int(10*s.pause(0, true)/s.Interval)]++
	}
	for i, n := range tenths {
		// A hundred each, give or take five standard deviations.
		if n < 50 || n > 150 {
			t.Errorf("in tenth %d of the interval there are %d of %d requests", i, n, accounts)
		}
	}
}
