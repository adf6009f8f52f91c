package intake_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// What we cannot know or do now is no fault of the sender's: it is asked to come again, and nothing was done.
func TestFaultsOfOursAskToComeAgain(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	again := func(t *testing.T, r senders.Request, result string) {
		t.Helper()
		out := httptest.NewRecorder()
		web.ServeHTTP(out, r.HTTP())
		var body struct {
			Result string `json:"result"`
		}
		if err := json.Unmarshal(out.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if out.Code != 503 || out.Header().Get("Retry-After") == "" || body.Result != result {
			t.Errorf("got %d %q with Retry-After %q, want 503 %q", out.Code, body.Result, out.Header().Get("Retry-After"), result)
		}
	}
	honest := func(source string) senders.Request {
		s := w.Sender(source)
		return s.Send(s.Event("fault", "alice", "7"))
	}
	t.Run("the issuer's keys cannot be read", func(t *testing.T) {
		w.SetDown(true)
		defer w.SetDown(false)
		for _, source := range []string{"azure", "bridge-oauth", "pubsub", "fortress"} {
			again(t, honest(source), "issuer_unavailable")
		}
		// One that is no token of any issuer needs no key to be refused.
		nobodys := senders.Request{Source: "azure", Headers: [][2]string{{"Authorization", "Bearer x"}}}
		if status, result := nobodys.Answer(web); status != 401 || result != "wrong_token" {
			t.Errorf("got %d %q", status, result)
		}
	})
	t.Run("the certificate of SNS cannot be read", func(t *testing.T) {
		w.SetDown(true)
		defer w.SetDown(false)
		again(t, honest("sns"), "sns_unavailable")
	})
	if memory.Count() != 0 || len(memory.Refusals) != 1 {
		t.Errorf("%d were accepted, and %v refused", memory.Count(), memory.Refusals)
	}
	w.Pass(time.Minute)
	for _, source := range []string{"azure", "bridge-oauth", "pubsub", "fortress", "sns"} {
		if status, result := honest(source).Answer(web); status != 202 {
			t.Errorf("%s, when it works again: got %d %q", source, status, result)
		}
	}
	t.Run("the confirmation cannot be made", func(t *testing.T) {
		w.SetDown(true)
		defer w.SetDown(false)
		again(t, w.Confirmation(), "subscription_not_confirmed")
	})
	t.Run("nothing can be kept", func(t *testing.T) {
		memory.Fail = true
		defer func() { memory.Fail = false }()
		asked := len(w.Asked())
		again(t, honest("kms"), "the notification could not be kept")
		again(t, w.Confirmation(), "the notification could not be kept")
		again(t, w.Validation(), "the notification could not be kept")
		again(t, senders.Request{Source: "soar"}, "the notification could not be kept") // its refusal could not be audited
		if got := len(w.Asked()); got != asked {
			t.Error("a confirmation that is not audited was made")
		}
	})
	t.Run("and then it is confirmed", func(t *testing.T) {
		if status, result := w.Confirmation().Answer(web); status != 200 || result != "confirmed" {
			t.Errorf("got %d %q", status, result)
		}
	})
}

// failing keeps so many notifications, and then no more.
type failing struct {
	*senders.Memory
	left int
}

func (f *failing) Accept(ctx context.Context, n intake.Notification) (intake.Receipt, error) {
	if f.left--; f.left < 0 {
		return intake.Receipt{}, context.DeadlineExceeded
	}
	return f.Memory.Accept(ctx, n)
}

// All events of a request are recorded, or it is to come again; what was recorded by then is no harm.
func TestSeveralEventsAreAllRecordedOrComeAgain(t *testing.T) {
	w := senders.New(t)
	recorder := &failing{Memory: senders.NewMemory(), left: 3}
	web := newWeb(t, w, recorder)
	batch := w.Batch(10)
	if status, result := batch.Answer(web); status != 503 {
		t.Errorf("got %d %q", status, result)
	}
	if recorder.Count() != 3 {
		t.Errorf("%d are recorded", recorder.Count())
	}
	recorder.left = 100
	out := httptest.NewRecorder()
	web.ServeHTTP(out, batch.HTTP())
	if out.Code != 202 || strings.Count(out.Body.String(), `"duplicate"`) != 3 || strings.Count(out.Body.String(), `"accepted"`) != 8 {
		t.Errorf("got %d %s", out.Code, out.Body)
	}
	if recorder.Count() != 10 {
		t.Errorf("%d are recorded, want 10", recorder.Count())
	}
	// They are recorded in their order, by which versions without an order are told apart.
	for i, n := range recorder.Accepted {
		if want := senders.BatchVersion(i); n.Version != want {
			t.Errorf("the event at %d is of version %s, want %s", i, n.Version, want)
		}
	}
}

func TestTheLargestBatchIsTaken(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	count := 1
	for len(w.Batch(count+1).Body) <= intake.MaxBody {
		count++
	}
	if status, result := w.Batch(count).Answer(web); status != 202 || memory.Count() != count {
		t.Errorf("got %d %q, and %d of %d are recorded", status, result, memory.Count(), count)
	}
}

func TestAnswersAreCounted(t *testing.T) {
	w := senders.New(t)
	registry := prometheus.NewRegistry()
	deps := w.Deps(senders.NewMemory())
	deps.Metrics = registry
	handler, err := intake.New(w.Config(), deps)
	if err != nil {
		t.Fatal(err)
	}
	web := echoOf(handler)
	_, _ = w.Batch(3).Answer(web)
	_, _ = w.Batch(4).Answer(web)
	_, _ = w.Validation().Answer(web)
	_, _ = senders.Request{Source: "azure-header"}.Answer(web)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "keyherald_notifications_total" {
		t.Fatalf("%v, %v", families, err)
	}
	counts := map[string]float64{}
	for _, metric := range families[0].GetMetric() {
		for _, label := range metric.GetLabel() {
			if label.GetName() == "answer" {
				counts[label.GetValue()] += metric.GetCounter().GetValue()
			}
		}
	}
	if want := map[string]float64{"401": 1, "accepted": 4, "duplicate": 3, "handshake": 1}; !maps.Equal(counts, want) {
		t.Errorf("got %v, want %v", counts, want)
	}
}

// A change that Doppler tells twice is two changes to it, and a replay is a third: its notifications are the same bytes.
func TestASenderWhoSignsNoTimeAndNoIDIsHeardEachTime(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	s := w.Sender("doppler")
	r := s.Send(s.Event("", "alice", ""))
	for range 3 {
		if status, result := r.Answer(web); status != 202 || result != "accepted" {
			t.Errorf("got %d %q", status, result)
		}
	}
	versions := map[string]bool{}
	for _, n := range memory.Accepted {
		versions[n.Version] = true
	}
	if len(versions) != 3 {
		t.Errorf("%d versions came of it", len(versions))
	}
}

func TestReach(t *testing.T) {
	w := senders.New(t)
	handler, err := intake.New(w.Config(), w.Deps(senders.NewMemory()))
	if err != nil {
		t.Fatal(err)
	}
	if err := handler.Reach(t.Context()); err != nil {
		t.Error(err)
	}
	w.SetDown(true)
	handler, err = intake.New(w.Config(), w.Deps(senders.NewMemory()))
	if err != nil {
		t.Fatal(err)
	}
	if err := handler.Reach(t.Context()); err == nil || !strings.Contains(err.Error(), "sources.azure.jwt.keys_url") || !strings.Contains(err.Error(), "sources.pubsub.jwt.keys_url") {
		t.Errorf("got %v", err)
	}
}
