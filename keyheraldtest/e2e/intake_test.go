package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

const (
	signingSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	nextSecret    = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	foreignSecret = "whsec_eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg="
)

type post struct {
	secret, body, contentType, source string
	at                                time.Duration
	headers                           map[string]string
}

func cloudEvent(id, subject, version string) string {
	return `{"specversion":"1.0","type":"com.example.rotated","source":"/kms","id":"` + id + `","subject":"` + subject + `","datacontenttype":"application/json","data":{"version":` + version + `}}`
}

// intakeRoom is the real handler, recorder and database, without a homeserver.
type intakeRoom struct {
	database  *keyheraldtest.Database
	owner, db *postgres.DB
	arrivals  *relay.Arrivals
	web       *echo.Echo
	stop      func() // ends the recorder, and returns when it has
}

// newIntakeRoom makes one in which so many notifications may wait; 0 is the default.
func newIntakeRoom(t *testing.T, waiting int) *intakeRoom {
	t.Helper()
	_, owner, database := newDatabase(t)
	room := &intakeRoom{database: database, owner: owner}
	room.db, room.arrivals, room.stop = newReplica(t, database, waiting)
	kms := intake.Source{
		Keys:       []intake.Key{{ID: "old", Secret: signingSecret}, {ID: "new", Secret: nextSecret}},
		Mapping:    intake.Mapping{Pattern: "keyherald/(?P<user>[a-z]*)/backup-key", User: "@{user}:example.org", KMS: "dev"},
		Disclosure: &intake.Disclosure{Rotate: true, Readers: []string{"device/{user}"}},
	}
	proven := kms
	proven.Header = &intake.StaticHeader{Name: "X-Keyherald-Key", Keys: []intake.Key{{ID: "header", Secret: signingSecret}}}
	handler, err := intake.New(intake.Config{Sources: map[string]intake.Source{"kms": kms, "proven": proven}}, intake.Deps{Recorder: room.arrivals, Log: zerolog.Nop()})
	check(t, err)
	room.web = echo.New()
	handler.Register(room.web)
	return room
}

// newReplica is a server's recorder on its own connections.
func newReplica(t *testing.T, database *keyheraldtest.Database, waiting int) (*postgres.DB, *relay.Arrivals, func()) {
	t.Helper()
	db, err := postgres.Open(t.Context(), database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x"})
	check(t, err)
	arrivals := relay.NewArrivals(engine, waiting)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); arrivals.Run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return db, arrivals, stop
}

// TestNotifications sends notifications to the real handler, recorder and database, in this order.
func TestNotifications(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 0)
	db, owner, web := room.db, room.owner, room.web

	good := cloudEvent("1", "keyherald/alice/backup-key", "1")
	tests := []struct {
		name   string
		post   post
		status int
	}{
		{"a new notification is accepted", post{body: good}, http.StatusAccepted},
		{"the same again is accepted and changes nothing", post{body: good}, http.StatusAccepted},
		{"the same id with another body is a conflict", post{body: cloudEvent("1", "keyherald/alice/backup-key", "2")}, http.StatusConflict},
		{"a second valid key is taken", post{body: cloudEvent("2", "keyherald/alice/backup-key", "2"), secret: nextSecret}, http.StatusAccepted},
		{"a binary CloudEvent is taken where its sender proves himself beside the signature", post{source: "proven", body: `{"version":"7"}`, contentType: "application/json", headers: map[string]string{
			"Ce-Specversion": "1.0", "Ce-Type": "x", "Ce-Source": "/kms", "Ce-Id": "b1", "Ce-Subject": "keyherald/bob/backup-key", "X-Keyherald-Key": signingSecret}}, http.StatusAccepted},
		{"a binary CloudEvent of which nobody signed the headers is refused", post{body: `{"version":"7"}`, contentType: "application/json", headers: map[string]string{
			"Ce-Specversion": "1.0", "Ce-Type": "x", "Ce-Source": "/kms", "Ce-Id": "b2", "Ce-Subject": "keyherald/bob/backup-key"}}, http.StatusUnsupportedMediaType},
		{"a forged signature is refused", post{body: good, secret: foreignSecret}, http.StatusUnauthorized},
		{"no signature is refused", post{body: good, secret: "none"}, http.StatusUnauthorized},
		{"a stale timestamp is refused", post{body: good, at: -6 * time.Minute}, http.StatusUnauthorized},
		{"a timestamp from the future is refused", post{body: good, at: 6 * time.Minute}, http.StatusUnauthorized},
		{"an oversized body is refused", post{body: strings.Repeat("x", intake.MaxBody+1)}, http.StatusRequestEntityTooLarge},
		{"a path that no mapping knows is accepted and counted", post{body: cloudEvent("3", "other/thing", "1")}, http.StatusAccepted},
		{"ours but without a version is kept as unusable", post{body: cloudEvent("4", "keyherald/alice/backup-key", `""`)}, http.StatusUnprocessableEntity},
		{"unusable again gets the same answer", post{body: cloudEvent("4", "keyherald/alice/backup-key", `""`)}, http.StatusUnprocessableEntity},
		{"a mapping to no user id is unusable", post{body: cloudEvent("5", "keyherald//backup-key", "1")}, http.StatusUnprocessableEntity},
		{"a batch is refused", post{body: "[" + good + "]", contentType: "application/cloudevents-batch+json"}, http.StatusUnsupportedMediaType},
		{"a JSON key given twice is refused", post{body: strings.Replace(good, `"id":"1"`, `"id":"1","id":"2"`, 1)}, http.StatusBadRequest},
		{"deep nesting is refused", post{body: strings.Repeat("[", 100) + strings.Repeat("]", 100)}, http.StatusBadRequest},
		{"a NUL that no database takes is refused", post{body: cloudEvent("6", `keyherald/\u0000/backup-key`, "1")}, http.StatusBadRequest},
		{"an id that no index takes is refused", post{body: cloudEvent(strings.Repeat("x", 1025), "keyherald/alice/backup-key", "1")}, http.StatusBadRequest},
		{"an attribute that is no text is refused", post{source: "proven", body: `{}`, contentType: "application/json", headers: map[string]string{
			"Ce-Specversion": "1.0", "Ce-Type": "x", "Ce-Source": "/kms", "Ce-Id": "\xff", "Ce-Subject": "keyherald/bob/backup-key", "X-Keyherald-Key": signingSecret}}, http.StatusBadRequest},
		{"an unknown source is not found", post{body: good, source: "nobody"}, http.StatusNotFound},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if answer := send(t, web, test.post); answer.Code != test.status {
				t.Errorf("got %d %s, want %d", answer.Code, answer.Body, test.status)
			}
		})
	}
	rotations, err := db.Rotations(ctx, "", false)
	check(t, err)
	if len(rotations) != 3 {
		t.Errorf("%d rotations came of it, want 3", len(rotations))
	}
	counts := map[string]int{}
	lines, err := db.Log(ctx, "", 1000)
	check(t, err)
	for _, line := range lines {
		counts[line.Action]++
	}
	for action, want := range map[string]int{"notification.accepted": 3, "notification.unusable": 2, "rotation.superseded": 1} {
		if counts[action] != want {
			t.Errorf("%d events %s, want %d", counts[action], action, want)
		}
	}
	// A minute may end in between: then there is another event for the first of the next.
	for _, why := range []string{"same_id_with_another_body", "wrong_signature", "not_signed", "stale", "too_large", "unsupported_media_type", "malformed", "unknown_source"} {
		if !slices.ContainsFunc(lines, func(l postgres.LogLine) bool {
			return l.Action == "notification.refused" && l.Outcome == "refused" && strings.Contains(string(l.Detail), `"refusal": "`+why+`"`)
		}) {
			t.Errorf("the log does not say that something was refused: %s", why)
		}
	}
	for _, kind := range []string{"unmapped", "repeated"} {
		if !slices.ContainsFunc(lines, func(l postgres.LogLine) bool {
			return l.Action == "notification.ignored" && strings.Contains(string(l.Detail), `"kind": "`+kind+`"`)
		}) {
			t.Errorf("the log does not say that something was ignored: %s", kind)
		}
	}

	t.Run("the writer cannot change the log", func(t *testing.T) {
		for _, statement := range []string{"UPDATE audit_event SET body = ''", "DELETE FROM audit_detail", "TRUNCATE audit_event CASCADE"} {
			if _, err := db.Exec(ctx, statement); err == nil {
				t.Errorf("the writer could: %s", statement)
			}
			if _, err := owner.Exec(ctx, statement); err == nil || !strings.Contains(err.Error(), "append-only") {
				t.Errorf("the triggers let the owner: %s: %v", statement, err)
			}
		}
	})
	t.Run("a database that is down is our fault and asks to come again", func(t *testing.T) {
		check(t, db.Close())
		answer := send(t, web, post{body: cloudEvent("9", "keyherald/alice/backup-key", "9")})
		if answer.Code != http.StatusServiceUnavailable || answer.Header().Get("Retry-After") == "" {
			t.Errorf("got %d with Retry-After %q", answer.Code, answer.Header().Get("Retry-After"))
		}
	})
}

func send(t *testing.T, web *echo.Echo, p post) *httptest.ResponseRecorder {
	t.Helper()
	if p.source == "" {
		p.source = "kms"
	}
	if p.contentType == "" {
		p.contentType = "application/cloudevents+json"
	}
	req := httptest.NewRequest(http.MethodPost, "/notify/"+p.source, strings.NewReader(p.body))
	req.Header.Set("Content-Type", p.contentType)
	for name, value := range p.headers {
		req.Header.Set(name, value)
	}
	if p.secret != "none" {
		if p.secret == "" {
			p.secret = signingSecret
		}
		at := time.Now().Add(p.at)
		signature, err := intake.Sign(p.secret, "msg", at, []byte(p.body))
		check(t, err)
		req.Header.Set("Webhook-Id", "msg")
		req.Header.Set("Webhook-Timestamp", strconv.FormatInt(at.Unix(), 10))
		req.Header.Set("Webhook-Signature", "v1,bm90aGluZw== "+signature)
	}
	answer := httptest.NewRecorder()
	web.ServeHTTP(answer, req)
	return answer
}
