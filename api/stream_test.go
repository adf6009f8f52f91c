package api_test

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/api"
)

// sse is one server-sent event.
type sse struct{ id, event, data string }

// watch opens a rotation's stream, which delivers until it ends.
func (s *server) watch(key uuid.UUID, last string) <-chan sse {
	s.t.Helper()
	return s.watchPath("/rotations/"+key.String()+"/events", "auditor", last)
}

func (s *server) watchPath(path string, role api.Role, last string) <-chan sse {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+api.Prefix+path, nil)
	check(s.t, err)
	request.Header.Set("Authorization", "Bearer "+s.tokens[role])
	if last != "" {
		request.Header.Set("Last-Event-ID", last)
	}
	events := make(chan sse, 100)
	opened := make(chan int, 1)
	go func() {
		defer close(events)
		response, err := s.http.Do(request)
		if err != nil {
			opened <- 0
			return
		}
		defer func() { _ = response.Body.Close() }()
		opened <- response.StatusCode
		var e sse
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.event = value
			case "data":
				e.data = value
			case "":
				if e.event != "" {
					events <- e
				}
				e = sse{}
			}
		}
	}()
	if status := <-opened; status != http.StatusOK {
		s.t.Fatalf("the stream is answered with %d", status)
	}
	return events
}

func next(t *testing.T, events <-chan sse) (e sse, open bool) {
	t.Helper()
	select {
	case e, open = <-events:
		return e, open
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		return e, false
	}
}

func TestAStreamTellsARotationFromItsBeginToItsEnd(t *testing.T) {
	s := newServer(t)
	key := s.rotation("@alice:example.org")
	events := s.watch(key, "")
	first, _ := next(t, events)
	read, _ := next(t, events)
	second, _ := next(t, events)
	if first.event != "log" || !strings.Contains(read.data, "audit.read") || !strings.Contains(first.data, "rotation.asked") || second.event != "rotation" || !strings.Contains(second.data, "received") {
		t.Fatalf("it begins with %v, %v", first, second)
	}
	into[api.Rotation](t, s.as("operator", http.MethodPost, "/rotations/"+key.String()+"/cancel", nil), http.StatusOK)
	s.api.Wake()
	var kinds []string
	for {
		e, open := next(t, events)
		if !open {
			break
		}
		kinds = append(kinds, e.event)
	}
	if got := strings.Join(kinds, " "); got != "log rotation end" && got != "log log rotation end" {
		t.Errorf("after its end there were %s", got)
	}
	if reads := s.log("audit.read", "accepted"); len(reads) != 1 || reads[0].Rotation != key.String() || !strings.Contains(string(reads[0].Detail), "watch") {
		t.Errorf("the reading left %v", reads)
	}
	// Whoever goes on from an event gets what came after it.
	resumed := s.watch(key, first.id)
	for {
		e, open := next(t, resumed)
		if !open {
			break
		}
		if e.id == first.id {
			t.Error("what was received comes again")
		}
	}
}

func TestStreamsEndWhenTheServerStops(t *testing.T) {
	s := newServer(t)
	events := s.watch(s.rotation("@alice:example.org"), "")
	next(t, events)
	s.end()
	for {
		e, open := next(t, events)
		if !open {
			return
		}
		if e.event == "end" {
			t.Error("it says that no more is to come")
		}
	}
}

// A client whose log has nothing new knows at once that its stream is open, and not by the first heartbeat.
func TestAStreamIsOpenBeforeThereIsSomethingToTell(t *testing.T) {
	s := newServer(t)
	before := time.Now()
	s.watchPath("/audit/leaves", "auditor", "")
	if took := time.Since(before); took > 10*time.Second {
		t.Errorf("it opened after %s", took)
	}
}
