package api_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
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
	case <-time.After(time.Minute):
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

func TestAStreamTellsACampaignFromItsBeginToItsEnd(t *testing.T) {
	s := newServer(t)
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", "user_id\n@alice:example.org\n@bob:example.org\n", "Content-Type", "text/csv"), http.StatusOK)
	s.device("@alice:example.org", "MANAGED")
	s.device("@bob:example.org", "MANAGED")
	// One user a minute in one wave: the second begin, and the first done, move nothing but the counts.
	started := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", `{"who":{"all":true},"kms":"corporate","path":"keyherald/{user}","reason":"yearly","rate":1,"waves":[100]}`), http.StatusCreated)
	path := "/campaigns/" + started.ID.String()
	events := s.watchPath(path+"/events", "auditor", "")
	step := func() {
		t.Helper()
		s.clock.Advance(time.Minute)
		check(t, s.enforcer.StepCampaigns(t.Context()))
		s.api.Wake()
	}
	// A step may be seen half done: each event is read until the one that is waited for.
	tells := func(what string, is func(api.CampaignProgress) bool) {
		t.Helper()
		for {
			e, open := next(t, events)
			if !open || e.event != "progress" {
				t.Fatalf("before %s came %v", what, e)
			}
			var progress api.CampaignProgress
			check(t, json.Unmarshal([]byte(e.data), &progress))
			if is(progress) {
				return
			}
		}
	}
	tells("how it stands", func(p api.CampaignProgress) bool { return p.ID == started.ID && p.Counts.Pending == 2 })
	for _, left := range []int{1, 0} {
		step()
		tells("a begin", func(p api.CampaignProgress) bool { return p.Counts.Pending == left && p.Counts.Done == 0 })
	}
	users := walk[api.CampaignUser](t, s, "auditor", path+"/users", 10, nil)
	if len(users) != 2 || users[0].Rotation == "" || users[1].Rotation == "" {
		t.Fatalf("begun are %+v", users)
	}
	for i, u := range users {
		s.ended(uuid.MustParse(u.Rotation), "done")
		step()
		tells("a done", func(p api.CampaignProgress) bool { return p.Counts.Done == i+1 })
	}
	step()
	for ended := false; !ended; {
		e, open := next(t, events)
		if ended = e.event == "end"; !open || !ended && e.event != "progress" {
			t.Fatalf("before the end came %v", e)
		}
	}
	if e, open := next(t, events); open {
		t.Errorf("behind the end came %v", e)
	}
	if end := into[api.CampaignProgress](t, s.as("auditor", http.MethodGet, path, nil), http.StatusOK); end.State != campaign.Finished {
		t.Errorf("in the end it is %s", end.State)
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
