package api_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyherald/keyherald/api"
)

const asked = `{"user_id":"@alice:example.org","kms":"corporate","path":"keyherald/alice"}`

func TestAWriteThatComesAgainHasOneEffectAndOneAnswer(t *testing.T) {
	s := newServer(t)
	var first api.Rotation
	for i := range 3 {
		got := s.as("admin", http.MethodPost, "/rotations", asked, "Idempotency-Key", "k1")
		view := into[api.Rotation](t, got, http.StatusCreated)
		if i == 0 {
			first = view
		}
		if view.ID != first.ID || (got.header.Get("Idempotency-Replayed") == "true") != (i > 0) {
			t.Errorf("number %d is answered with %s", i, got.body)
		}
	}
	if lines := s.log("rotation.asked", "accepted"); len(lines) != 1 {
		t.Errorf("%d rotations were asked for", len(lines))
	}
	// Another key, or another caller with the same one, is another request.
	for _, again := range []answer{s.as("admin", http.MethodPost, "/rotations", asked, "Idempotency-Key", "k2"),
		s.with("Bearer "+s.token("second", "admin"), http.MethodPost, "/rotations", asked, "Idempotency-Key", "k1")} {
		if into[api.Rotation](t, again, http.StatusCreated); again.header.Get("Idempotency-Replayed") != "" {
			t.Error("another request got the answer of the first")
		}
	}
	if lines := s.log("rotation.asked", "accepted"); len(lines) != 3 {
		t.Errorf("three requests made %d events", len(lines))
	}
	other := s.as("admin", http.MethodPost, "/rotations", strings.Replace(asked, "alice", "bob", 2), "Idempotency-Key", "k1")
	if other.status != http.StatusUnprocessableEntity || other.problem(t).Code != api.CodeKeyReused {
		t.Errorf("another body with the same key gets %d: %s", other.status, other.body)
	}
	if other := s.as("admin", http.MethodPut, "/freeze", nil, "Idempotency-Key", "k1"); other.problem(t).Code != api.CodeKeyReused {
		t.Errorf("another route with the same key gets %d: %s", other.status, other.body)
	}
	if got := s.as("admin", http.MethodPut, "/freeze", nil, "Idempotency-Key", "a b"); got.status != http.StatusBadRequest {
		t.Errorf("an unusable key gets %d", got.status)
	}
	s.clock.Advance(25 * time.Hour)
	third := s.with("Bearer "+s.token("third", "admin"), http.MethodPut, "/freeze", nil, "Idempotency-Key", "k1")
	if third.status != http.StatusOK {
		t.Errorf("got %d", third.status)
	}
}

func TestWritesAtTheSameTimeHaveOneEffect(t *testing.T) {
	s := newServer(t)
	ids := make([]string, 8)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			ids[i] = into[api.Rotation](t, s.as("admin", http.MethodPost, "/rotations", asked, "Idempotency-Key", "k1"), http.StatusCreated).ID.String()
		})
	}
	all.Wait()
	for _, got := range ids {
		if got != ids[0] {
			t.Errorf("%s and %s", got, ids[0])
		}
	}
	if lines := s.log("rotation.asked", "accepted"); len(lines) != 1 {
		t.Errorf("%d rotations were asked for", len(lines))
	}
}

// What is refused is told in the log, changes nothing, and may be tried again with the same key.
func TestARefusalWithAKeyIsToldAndLeavesTheKey(t *testing.T) {
	s := newServer(t)
	key := s.rotation("@alice:example.org")
	s.ended(key, "done")
	for range 2 {
		got := s.as("operator", http.MethodPost, "/rotations/"+key.String()+"/cancel", nil, "Idempotency-Key", "k1")
		if got.status != http.StatusConflict || got.problem(t).Refusal != "ended" {
			t.Fatalf("got %d: %s", got.status, got.body)
		}
	}
	lines := s.log("rotation.cancelled", "refused")
	if len(lines) != 2 || lines[0].Actor != "admin:token:operator" {
		t.Errorf("the log has %v", lines)
	}
	s.ended(key, "working")
	if got := s.as("operator", http.MethodPost, "/rotations/"+key.String()+"/cancel", nil, "Idempotency-Key", "k1"); into[api.Rotation](t, got, http.StatusOK).State != "cancelled" {
		t.Errorf("then it is answered with %s", got.body)
	}
}

func TestACodeIsShownOnceAndKeptNowhere(t *testing.T) {
	s := newServer(t)
	code := into[api.NewCode](t, s.as("helpdesk", http.MethodPost, "/users/@alice:example.org/codes", nil, "Idempotency-Key", "k1"), http.StatusCreated).Code
	again := s.as("helpdesk", http.MethodPost, "/users/@alice:example.org/codes", nil, "Idempotency-Key", "k1")
	if again.status != http.StatusConflict || again.problem(t).Code != api.CodeAnsweredBefore {
		t.Errorf("again it is answered with %d: %s", again.status, again.body)
	}
	if lines := s.log("enrollment_code.created", "accepted"); len(lines) != 1 {
		t.Errorf("%d codes were made", len(lines))
	}
	var found int
	check(t, s.db.QueryRow(context.Background(), `SELECT COUNT(*) FROM api_answer WHERE position(convert_to($1, 'UTF8') IN COALESCE(body, '')) > 0 OR body IS NOT NULL`, code).Scan(&found))
	if found != 0 {
		t.Error("the code's answer is kept")
	}
}
