package vaultevents

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/keyherald/keyherald/kms"
)

func recorded(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("testdata/data-write.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// server replays frames: each connection gets what the test gives it for its number, from 0 on, and is then closed or held.
type server struct {
	t       *testing.T
	replay  func(ctx context.Context, n int, conn *websocket.Conn)
	refuse  func(n int) int // a status in the place of a stream; nil or 0 for none
	pinged  chan<- struct{} // told of each ping where it has room; may be nil
	mu      sync.Mutex
	streams int
	headers []http.Header
}

func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !strings.HasPrefix(req.URL.Path, "/v1/sys/events/") {
		// The token's own affairs.
		_, _ = w.Write([]byte(`{"data":{"ttl":0}}`))
		return
	}
	s.mu.Lock()
	n := s.streams
	s.streams++
	s.headers = append(s.headers, req.Header.Clone())
	s.mu.Unlock()
	if req.URL.RequestURI() != "/v1/sys/events/subscribe/kv-v2/data-write?json=true" {
		s.t.Errorf("asked for was %s", req.URL.RequestURI())
	}
	if s.refuse != nil {
		if status := s.refuse(n); status != 0 {
			w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
			w.WriteHeader(status)
			_, _ = w.Write([]byte("hunter2"))
			return
		}
	}
	conn, err := websocket.Accept(w, req, &websocket.AcceptOptions{OnPingReceived: func(context.Context, []byte) bool {
		select {
		case s.pinged <- struct{}{}:
		default:
		}
		return true
	}})
	if err != nil {
		s.t.Error(err)
		return
	}
	defer func() { _ = conn.CloseNow() }()
	s.replay(req.Context(), n, conn)
}

// told is what a handler was told.
type told struct {
	mu         sync.Mutex
	opened     int
	changes    []Event
	failed     []error // why the stream was not open
	unreadable []error
	news       chan struct{}
}

func (d *told) handler() Handler {
	d.news = make(chan struct{}, 1)
	note := func(do func()) {
		d.mu.Lock()
		defer d.mu.Unlock()
		do()
		select {
		case d.news <- struct{}{}:
		default:
		}
	}
	return Handler{
		Opened:     func(context.Context) { note(func() { d.opened++ }) },
		Changed:    func(_ context.Context, event Event) { note(func() { d.changes = append(d.changes, event) }) },
		Closed:     func(err error) { note(func() { d.failed = append(d.failed, err) }) },
		Unreadable: func(err error) { note(func() { d.unreadable = append(d.unreadable, err) }) },
	}
}

// watch runs a client on a server until enough was told.
func watch(t *testing.T, s *server, change func(*Client), enough func(d *told) bool) *told {
	t.Helper()
	s.t = t
	hs := httptest.NewServer(s)
	t.Cleanup(hs.Close)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("hvs.token"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := Config{URL: hs.URL, Namespace: "company/matrix"}
	config.Auth.Method, config.Auth.TokenFile = "token", file
	client, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	client.least = 5 * time.Millisecond
	if change != nil {
		change(client)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := &told{}
	handler := d.handler()
	var running sync.WaitGroup
	running.Go(func() { client.Watch(ctx, handler) })
	defer running.Wait()
	defer cancel()
	late := time.After(time.Minute)
	for {
		d.mu.Lock()
		done := enough(d)
		d.mu.Unlock()
		if done {
			return d
		}
		select {
		case <-d.news:
		case <-late:
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Fatalf("it was told: opened %d, %v, failed %v", d.opened, d.changes, d.failed)
		}
	}
}

func say(ctx context.Context, t *testing.T, conn *websocket.Conn, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err := conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Logf("a frame was not sent: %v", err)
		}
	}
}

// hold keeps a connection open, and answers pings.
func hold(ctx context.Context, conn *websocket.Conn) { <-conn.CloseRead(ctx).Done() }

func TestARecordedFrameIsAChange(t *testing.T) {
	frame := recorded(t)
	s := &server{replay: func(ctx context.Context, _ int, conn *websocket.Conn) {
		say(ctx, t, conn, frame)
		hold(ctx, conn)
	}}
	d := watch(t, s, nil, func(d *told) bool { return len(d.changes) > 0 })
	want := Event{ID: "901f2388-aabb-a385-7bc0-0b09d5fa060a", Path: "keyherald/alice/backup-key", Version: "2"}
	if d.opened != 1 || d.changes[0] != want || len(d.failed) > 0 {
		t.Errorf("told was %+v", d)
	}
	if h := s.headers[0]; h.Get("X-Vault-Token") != "hvs.token" || h.Get("X-Vault-Namespace") != "company/matrix" {
		t.Errorf("the headers were %v", h)
	}
}

func TestAStreamThatEndsIsOpenedAgainAndEverythingIsToBeReadAgain(t *testing.T) {
	frame := recorded(t)
	for name, end := range map[string]func(ctx context.Context, conn *websocket.Conn){
		"closed": func(_ context.Context, conn *websocket.Conn) { _ = conn.Close(websocket.StatusGoingAway, "hunter2") },
		"cut":    func(_ context.Context, conn *websocket.Conn) { _ = conn.CloseNow() },
		"too long": func(ctx context.Context, conn *websocket.Conn) {
			say(ctx, t, conn, strings.Repeat(" ", 65<<10))
			hold(ctx, conn)
		},
		"too large": func(ctx context.Context, conn *websocket.Conn) {
			say(ctx, t, conn, strings.Replace(frame, `"2"`, `"`+strings.Repeat("2", 70<<10)+`"`, 1))
			hold(ctx, conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{replay: func(ctx context.Context, n int, conn *websocket.Conn) {
				if n < 2 {
					end(ctx, conn)
					return
				}
				say(ctx, t, conn, frame)
				hold(ctx, conn)
			}}
			d := watch(t, s, nil, func(d *told) bool { return len(d.changes) > 0 })
			if d.opened != 3 || len(d.failed) != 2 || !kms.Retryable(d.failed[0]) {
				t.Errorf("told was %+v", d)
			}
		})
	}
}

func TestAServerThatDoesNotAnswerIsLeft(t *testing.T) {
	release := make(chan struct{})
	s := &server{replay: func(ctx context.Context, n int, conn *websocket.Conn) {
		if n == 0 {
			<-release // nobody reads, so that no ping is answered
			return
		}
		hold(ctx, conn)
	}}
	d := watch(t, s, func(c *Client) { c.ping = time.Second }, func(d *told) bool { return d.opened == 2 })
	close(release)
	if len(d.failed) != 1 || !errors.Is(d.failed[0], errSilent) {
		t.Errorf("told was %+v", d)
	}
}

func TestAQuietStreamStaysOpen(t *testing.T) {
	frame := recorded(t)
	pinged := make(chan struct{}, 100)
	s := &server{pinged: pinged, replay: func(ctx context.Context, _ int, conn *websocket.Conn) {
		reading := conn.CloseRead(ctx)
		for range 3 {
			<-pinged
		}
		say(ctx, t, conn, frame)
		<-reading.Done()
	}}
	d := watch(t, s, func(c *Client) { c.ping = time.Second }, func(d *told) bool { return len(d.changes) > 0 })
	if d.opened != 1 || len(d.failed) > 0 {
		t.Errorf("told was %+v", d)
	}
}

func TestARefusalIsToldAndTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		want   error
		says   string
	}{
		"a community server":               {404, kms.ErrNotFound, "only Vault Enterprise has events"},
		"no right to the events":           {403, kms.ErrForbidden, ""},
		"a sealed server":                  {503, kms.ErrUnavailable, "sealed"},
		"a redirect, which nobody follows": {307, kms.ErrMalformed, "307"},
		"a page":                           {200, kms.ErrMalformed, "200"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{refuse: func(n int) int {
				if n < 1 {
					return c.status
				}
				return 0
			}, replay: func(ctx context.Context, _ int, conn *websocket.Conn) { hold(ctx, conn) }}
			d := watch(t, s, nil, func(d *told) bool { return d.opened == 1 })
			if len(d.failed) != 1 || !errors.Is(d.failed[0], c.want) || !strings.Contains(d.failed[0].Error(), c.says) || strings.Contains(d.failed[0].Error(), "hunter2") {
				t.Errorf("told was %v", d.failed)
			}
		})
	}
}

func TestAFrameIsOursOrPassedOverOrTold(t *testing.T) {
	frame := recorded(t)
	change := func(old, new string) string {
		t.Helper()
		changed := strings.ReplaceAll(frame, old, new)
		if changed == frame {
			t.Fatalf("the frame has no %s", old)
		}
		return changed
	}
	for name, c := range map[string]struct {
		text string
		ours bool
		err  bool
	}{
		"a change of ours":                      {frame, true, false},
		"one that says nothing about its mount": {change(`"mount_path":"secret/",`, ""), true, false},
		"another type":                          {change("kv-v2/data-write", "kv-v2/data-delete"), false, false},
		"another operation":                     {change(`"operation":"data-write"`, `"operation":"data-delete"`), false, false},
		"a write that changed nothing":          {change(`"modified":"true"`, `"modified":"false"`), false, false},
		"another engine's":                      {change(`"data_path":"secret/data/`, `"data_path":"other/data/`), false, false},
		"an engine that is mounted as if ours":  {change(`"mount_path":"secret/"`, `"mount_path":"secret/data/x/"`), false, false},
		"a type that the envelope alone has":    {`{"id":"1","specversion":"1.0","type":"kv-v2/data-write"}`, false, false},
		"a path that leads upwards":             {change("keyherald/alice/backup-key", "../alice"), false, true},
		"a version that is none":                {change(`"current_version":"2"`, `"current_version":"two"`), false, true},
		"version 0":                             {change(`"current_version":"2"`, `"current_version":"0"`), false, true},
		"a version of another kind":             {change(`"current_version":"2"`, `"current_version":2`), false, true},
		"a name that comes twice":               {change(`"current_version":"2"`, `"current_version":"2","current_version":"3"`), false, true},
		"another specification":                 {change(`"specversion":"1.0"`, `"specversion":"0.3"`), false, true},
		"no id":                                 {change(`"id":"901f2388-aabb-a385-7bc0-0b09d5fa060a"`, `"id":""`), false, true},
		"no JSON":                               {"hunter2", false, true},
		"two values":                            {frame + frame, false, true},
		"nothing":                               {"", false, true},
		"null":                                  {"null", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			event, ours, err := parse(websocket.MessageText, []byte(c.text), "secret")
			if ours != c.ours || (err != nil) != c.err || !ours && event != (Event{}) {
				t.Errorf("got %+v, %v, %v", event, ours, err)
			}
			if err != nil && (!errors.Is(err, kms.ErrMalformed) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	if _, _, err := parse(websocket.MessageBinary, []byte(frame), "secret"); !errors.Is(err, kms.ErrMalformed) {
		t.Errorf("a binary frame: %v", err)
	}
	// A bad one is told, and the next is heard all the same.
	s := &server{replay: func(ctx context.Context, _ int, conn *websocket.Conn) {
		say(ctx, t, conn, "hunter2", frame)
		hold(ctx, conn)
	}}
	if d := watch(t, s, nil, func(d *told) bool { return len(d.changes) > 0 }); d.opened != 1 || len(d.failed) != 0 || len(d.unreadable) != 1 {
		t.Errorf("told was %+v", d)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte(recorded(f)))
	f.Add([]byte(`{"id":"1","specversion":"1.0","data":{"event_type":"kv-v2/data-write","event":{"metadata":{"data_path":"secret/data/a","current_version":"1","operation":"data-write"}}}}`))
	f.Add([]byte(`{"id":"1","id":"2"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		event, ours, err := parse(websocket.MessageText, text, "secret")
		if err != nil && !errors.Is(err, kms.ErrMalformed) {
			t.Fatalf("got %v", err)
		}
		if !ours {
			if event != (Event{}) {
				t.Fatalf("%+v is none of ours", event)
			}
			return
		}
		if _, ordered := kms.NewerVersion(event.Version, "0"); kms.CheckPath(event.Path) != nil || !ordered || event.Version == "0" || event.ID == "" {
			t.Fatalf("%+v was taken", event)
		}
	})
}
