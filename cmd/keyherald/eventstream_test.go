package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// enterprise speaks what is documented of Vault Enterprise: a KV v2 engine's metadata, and its event stream. It is not one.
type enterprise struct {
	t        *testing.T
	mu       sync.Mutex // guards the rest
	versions map[string]int
	conn     *websocket.Conn
	sealed   bool
}

func (e *enterprise) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	e.mu.Lock()
	sealed := e.sealed
	path, metadata := strings.CutPrefix(req.URL.Path, "/v1/secret/metadata/")
	version := e.versions[path]
	e.mu.Unlock()
	switch {
	case sealed:
		w.WriteHeader(http.StatusServiceUnavailable)
	case req.URL.Path == "/v1/sys/events/subscribe/kv-v2/data-write":
		if req.Header.Get("X-Vault-Token") != "the-token-for-events" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		conn, err := websocket.Accept(w, req, nil)
		if err != nil {
			e.t.Error(err)
			return
		}
		e.mu.Lock()
		e.conn = conn
		e.mu.Unlock()
		<-conn.CloseRead(req.Context()).Done()
	case metadata && version == 0:
		w.WriteHeader(http.StatusNotFound)
	case metadata:
		_, _ = fmt.Fprintf(w, `{"data":{"current_version":%d,"versions":{"%[1]d":{}}}}`, version)
	default:
		// The tokens' own affairs.
		_, _ = w.Write([]byte(`{"data":{"ttl":0}}`))
	}
}

// write puts a version there without a word about it.
func (e *enterprise) write(path string, version int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.versions[path] = version
}

// tell says that a path has a version, to whoever listens.
func (e *enterprise) tell(id, path string, version int) {
	e.t.Helper()
	frame := fmt.Sprintf(`{"id":%q,"source":"https://vaultproject.io/","specversion":"1.0","type":"*","data":{"event":{"id":%[1]q,"metadata":{"current_version":"%[3]d","data_path":"secret/data/%[2]s",
		"modified":"true","oldest_version":"0","operation":"data-write","path":"secret/data/%[2]s"}},"event_type":"kv-v2/data-write","plugin_info":{"mount_path":"secret/","plugin":"kv"}},
		"datacontentype":"application/cloudevents","time":"2026-11-12T15:19:49.394915-07:00"}`, id, path, version)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		e.t.Fatal("nobody listens")
	}
	check(e.t, e.conn.Write(e.t.Context(), websocket.MessageText, []byte(frame)))
}

// seal ends the stream and refuses everything, until it is ended.
func (e *enterprise) seal(sealed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sealed = sealed
	if sealed && e.conn != nil {
		_ = e.conn.CloseNow()
		e.conn = nil
	}
}

func (e *enterprise) listened() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conn != nil
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	err := keyheraldtest.Until(t.Context(), time.Minute, func() error {
		if !is() {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

// An event of the stream goes the way of every notification, and what happened while the stream was closed is found.
func TestAnEventStreamIsHeardLikeANotification(t *testing.T) {
	ctx := t.Context()
	server := &enterprise{t: t, versions: map[string]int{"keyherald/bob/backup-key": 1}}
	hs := httptest.NewServer(server)
	t.Cleanup(hs.Close)
	r := newRoom(t)
	r.write(t, "metadata.token", "the-token-for-metadata")
	r.write(t, "events.token", "the-token-for-events")
	text, _, _ := strings.Cut(r.read(t, "config.yaml"), "kms: {corporate")
	r.write(t, "config.yaml", text+`
kms:
  vault:
    type: vault
    url: `+hs.URL+`
    check_path: keyherald/bob/backup-key
    auth: {method: token, token_file: metadata.token}
    reconcile: {interval: 24h, path: "keyherald/{user}/backup-key"}
    events:
      auth: {method: token, token_file: events.token}
      mapping: {pattern: "keyherald/(?P<user>[a-z]+)/backup-key", user: "@{user}:example.org"}
`)
	c, err := loadConfig(filepath.Join(r.dir, "config.yaml"))
	check(t, err)
	db, err := openDatabase(ctx, c)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	check(t, db.PutDevice(ctx, postgres.Device{ID: uuid.New(), UserID: "@bob:example.org", DeviceID: "A", IdentityKey: "i", SigningKey: "s", MasterKey: "m", EnrolledAt: time.Now()}))
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x"})
	check(t, err)
	metrics := prometheus.NewRegistry()
	notifications, err := intake.New(c.intake(), intake.Deps{Recorder: engine, Log: zerolog.Nop(), Metrics: metrics})
	check(t, err)
	streams, err := newStreams(c, notifications, zerolog.Nop(), metrics)
	check(t, err)
	s := streams["vault"]
	// The database does not take the first word of it.
	keep, refuse := s.keep, true
	s.keep = func(ctx context.Context, kms string, heard intake.Heard) error {
		if refuse {
			refuse = false
			return errors.New("the database is not there")
		}
		return keep(ctx, kms, heard)
	}
	latency, err := newLatencies(metrics)
	check(t, err)
	reconcilers, err := newReconcilers(ctx, c, engine, streams, latency.kms, metrics)
	check(t, err)
	running, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { reconcilers[0].Run(running) })
	t.Cleanup(func() { stop(); parts.Wait() })

	rotations := func(user id.UserID) (found []string) {
		t.Helper()
		all, err := db.Rotations(ctx, user, false)
		check(t, err)
		for _, r := range all {
			found = append(found, r.Source+" "+r.KMS.Name+" "+r.KMS.Path+" "+r.KMS.Version)
		}
		return found
	}
	// Both looks of the beginning are over, so that Bob's version 1 is known.
	until(t, "the stream and the looks", func() bool {
		seen, err := db.Seen(ctx, []postgres.Place{{UserID: "@bob:example.org", Secret: "m.megolm_backup.v1", KMS: "vault", Path: "keyherald/bob/backup-key"}})
		check(t, err)
		return server.listened() && len(seen) == 1
	})
	server.tell("e1", "keyherald/alice/backup-key", 2)
	server.tell("e1", "keyherald/alice/backup-key", 2)
	server.tell("e2", "databases/orders", 7)
	server.tell("e3", "keyherald/alice/backup-key", 3)
	want := []string{"vault-events vault keyherald/alice/backup-key 3", "vault-events vault keyherald/alice/backup-key 2"}
	until(t, "what the stream told", func() bool { return len(rotations("@alice:example.org")) == 2 })
	if got := rotations("@alice:example.org"); !slices.Equal(got, want) || refuse {
		t.Errorf("the rotations are %v, want %v", got, want)
	}
	metric := func(name string) float64 {
		t.Helper()
		families, err := metrics.Gather()
		check(t, err)
		for _, f := range families {
			if f.GetName() == name {
				return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		t.Fatalf("there is no metric %s", name)
		return 0
	}
	if n := metric("keyherald_event_stream_open"); n != 1 || s.problem() != nil {
		t.Errorf("the stream is open: %v, %v", n, s.problem())
	}
	counts := map[string]int{}
	log, err := db.Log(ctx, "", 100)
	check(t, err)
	for _, line := range log {
		if line.Actor == "source:vault-events" {
			counts[line.Action]++
		}
	}
	if counts["notification.accepted"] != 2 || counts["notification.ignored"] != 2 || counts["rotation.superseded"] != 1 {
		t.Errorf("the log has %v", counts)
	}

	// While it is closed nobody tells of Bob's key.
	server.seal(true)
	until(t, "the stream to be known as closed", func() bool { return s.problem() != nil && metric("keyherald_event_stream_open") == 0 })
	server.write("keyherald/bob/backup-key", 2)
	server.seal(false)
	until(t, "the change that nobody told of", func() bool {
		return slices.Equal(rotations("@bob:example.org"), []string{"reconcile vault keyherald/bob/backup-key 2"})
	})
	if n := metric("keyherald_event_stream_openings_total"); n != 2 || metric("keyherald_event_stream_failures_total") < 1 || s.problem() != nil {
		t.Errorf("it was opened %v times, and its problem is %v", n, s.problem())
	}
	server.tell("e4", "keyherald/bob/backup-key", 2)
	server.tell("e5", "keyherald/bob/backup-key", 3)
	until(t, "the next event", func() bool { return len(rotations("@bob:example.org")) == 2 })

	// Nobody can speak for the stream from outside.
	if answer := post(t, notifications, "vault-events"); answer != http.StatusNotFound {
		t.Errorf("a request to the stream's name was answered %d", answer)
	}
	stop()
	parts.Wait()
	if n := metric("keyherald_event_stream_open"); n != 0 || s.problem() != nil {
		t.Errorf("after the end it is open: %v, %v", n, s.problem())
	}
}

func post(t *testing.T, notifications *intake.Handler, source string) int {
	t.Helper()
	web := echo.New()
	notifications.Register(web)
	answer := httptest.NewRecorder()
	web.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/notify/"+source, strings.NewReader("{}")))
	return answer.Code
}
