package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// filled is a route's address with things that are there.
func (s *server) filled(r api.Route) string {
	path := r.Path
	for name, value := range map[string]string{":user_id": "@alice:example.org", ":device_id": "MANAGED", ":name": "helpdesk", ":event_id": uuid.NewString(), ":campaign_id": uuid.NewString(), ":grant_id": uuid.NewString(),
		":reenrollment_id": uuid.NewString()} {
		path = strings.ReplaceAll(path, name, value)
	}
	if strings.Contains(path, ":rotation_id") {
		path = strings.ReplaceAll(path, ":rotation_id", s.rotation("@alice:example.org").String())
	}
	if r.OneUser {
		path += "?user_id=@alice:example.org"
	}
	return path + queries[r.Operation]
}

// queries are what routes need that need parameters.
var queries = map[string]string{"exportLog": "?format=csv", "getReport": "?since=7d&until=0d"}

// bodies are what routes need that need a body.
var bodies = map[string]string{
	"startRotation":    `{"user_id":"@alice:example.org","kms":"corporate","path":"keyherald/alice"}`,
	"releaseRotations": `{"all":true}`,
	"putRoster":        `{"entries":[{"user_id":"@alice:example.org"}]}`,
	"exemptUser":       `{"reason":"parental leave","until":"2099-12-31"}`,
	"startCampaign":    `{"who":{"all":true},"reason":"yearly"}`,
	"planCampaign":     `{"who":{"all":true},"reason":"yearly"}`,
	"putPolicy":        `{"document":{"rules":[{"name":"staff","who":{"all":true},"max_age":"30d"}]},"reason":"yearly"}`,
	"checkPolicy":      `{"document":{"rules":[]}}`,
	"changeCampaign":   `{"rate":10}`,
	"createCodes":      `{"user_ids":["@alice:example.org"]}`,
	"keepCodes":        `{"codes":[{"user_id":"@alice:example.org","sha256":"00"}],"expires_at":"2026-01-01T00:00:00Z"}`,
	"createGrant":      `{"users":"@*:example.org","proof":"x","max":1}`,
}

// Each role may call what the table says, and everything else is refused with an event, once a minute for each caller and
// route; nobody without credentials may call anything.
func TestEveryRouteWithEveryRole(t *testing.T) {
	moment := time.Now() // in which everything happens: what is refused is counted by the minute
	s := newServer(t, func(_ *api.Config, deps *api.Deps) { deps.Now = func() time.Time { return moment } })
	s.device("@alice:example.org", "MANAGED")
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", bodies["putRoster"]), http.StatusOK)
	started := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", campaignOfAll), http.StatusCreated)
	// Streams have no end to wait for: it is enough that they open.
	streams := map[string]string{"watchRotation": "/rotations/" + s.rotation("@carol:example.org").String() + "/events", "watchCampaign": "/campaigns/" + started.ID.String() + "/events", "watchLeaves": "/audit/leaves"}
	refused, opened := 0, 0
	for _, r := range api.Routes() {
		for _, role := range api.Roles {
			if r.Operation == "revokeToken" && role == "admin" {
				continue // below: it would end the other roles' turns
			}
			if path, endless := streams[r.Operation]; endless && slices.Contains(r.Roles, role) {
				s.watchPath(path, role, "") // ends the test where it does not open
				opened++
				continue
			}
			var body any
			if text, ok := bodies[r.Operation]; ok {
				body = text
			}
			got := s.as(role, r.Method, s.filled(r), body)
			may := len(r.Roles) == 0 || slices.Contains(r.Roles, role)
			if !may {
				refused++
			}
			switch {
			case may && (got.status >= 500 || slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusBadRequest, http.StatusTooManyRequests, http.StatusMethodNotAllowed}, got.status)):
				t.Errorf("%s may %s, and gets %d: %s", role, r.Operation, got.status, got.body)
			case !may && got.status != http.StatusForbidden:
				t.Errorf("%s may not %s, and gets %d", role, r.Operation, got.status)
			case !may && got.problem(t).Refusal != "wrong_role":
				t.Errorf("%s may not %s, and is told %s", role, r.Operation, got.body)
			}
		}
		if len(r.Roles) == 0 {
			continue
		}
		if got := s.with("", r.Method, s.filled(r), nil); got.status != http.StatusUnauthorized || !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("without credentials %s is answered with %d", r.Operation, got.status)
		}
	}
	if want := len(api.Roles) + 3 + 2; opened != want { // a rotation's, a campaign's and the log's
		t.Errorf("%d streams were opened and not %d", opened, want)
	}
	if lines := s.log("access.refused", "refused"); len(lines) != refused+1 {
		t.Errorf("%d calls of a wrong role and many of nobody make %d events", refused, len(lines))
	}
	if got := s.as("admin", http.MethodDelete, "/tokens/helpdesk", nil); got.status != http.StatusNoContent {
		t.Errorf("an admin revokes a token and gets %d: %s", got.status, got.body)
	}
	if got := s.as("helpdesk", http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized || got.problem(t).Refusal != "revoked" {
		t.Errorf("a revoked token gets %d: %s", got.status, got.body)
	}
}

func TestHelpdeskSeesOneUserAtATime(t *testing.T) {
	s := newServer(t)
	paths := []string{"/rotations?open=true"}
	var operations []string
	for _, r := range api.Routes() {
		if r.OneUser {
			paths, operations = append(paths, r.Path), append(operations, r.Operation)
		}
	}
	if got := strings.Join(operations, " "); got != "listDevices listRotations listStandings" {
		t.Errorf("the lists of several users' things are %s", got)
	}
	for _, path := range paths {
		if got := s.as("helpdesk", http.MethodGet, path, nil); got.status != http.StatusForbidden || got.problem(t).Refusal != "one_user_at_a_time" {
			t.Errorf("%s is answered with %d: %s", path, got.status, got.body)
		}
		if got := s.as("operator", http.MethodGet, path, nil); got.status != http.StatusOK {
			t.Errorf("%s is answered to an operator with %d", path, got.status)
		}
	}
}

func TestRefusedCallsAreCountedByTheMinute(t *testing.T) {
	s := newServer(t)
	s.clock.Stand() // the minute must not end in between
	for range 5 {
		s.as("auditor", http.MethodPut, "/freeze", nil)
		s.with("Bearer kht1.wrong", http.MethodGet, "/status", nil)
	}
	if lines := s.log("access.refused", "refused"); len(lines) != 2 {
		t.Fatalf("two kinds within a minute make %d events at once", len(lines))
	}
	s.clock.Advance(time.Minute)
	s.end() // in order: what was counted is told
	check(t, keyheraldtest.Until(t.Context(), time.Minute, func() error {
		if n := len(s.log("access.refused", "refused")); n != 4 {
			return fmt.Errorf("there are %d events", n)
		}
		return nil
	}))
	counts := map[string]int{}
	for _, line := range s.log("access.refused", "refused") {
		counts[line.Actor+string(line.Detail)]++
		if strings.Contains(string(line.Detail), "kht1") {
			t.Errorf("a token is in the log: %s", line.Detail)
		}
	}
	if len(counts) != 4 {
		t.Errorf("they are %v", counts)
	}
}

func TestTokensEnd(t *testing.T) {
	s := newServer(t)
	if got := s.as("admin", http.MethodGet, "/whoami", nil); into[api.Whoami](t, got, http.StatusOK).Actor != "admin:token:admin" {
		t.Errorf("the caller is %s", got.body)
	}
	tokens := into[api.Page[api.Token]](t, s.as("admin", http.MethodGet, "/tokens", nil), http.StatusOK)
	if len(tokens.Items) != 4 || tokens.Items[0].Name != "admin" || tokens.Items[0].LastUsedAt == nil || tokens.Items[1].LastUsedAt != nil {
		t.Errorf("the tokens are %+v", tokens)
	}
	for _, authorization := range []string{"", "Basic YTpi", "Bearer", "Bearer ", "Bearer kht1.", "Bearer kht1." + strings.Repeat("A", 43), s.tokens["admin"], "Bearer " + s.tokens["admin"] + "x", "Bearer eyJ.eyJ.x"} {
		if got := s.with(authorization, http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized {
			t.Errorf("%q gets %d", authorization, got.status)
		}
	}
	s.clock.Advance(time.Hour)
	if got := s.as("admin", http.MethodGet, "/whoami", nil); got.status != http.StatusUnauthorized || got.problem(t).Refusal != "expired" {
		t.Errorf("an expired token gets %d: %s", got.status, got.body)
	}
}

func TestWhoCallsTooOftenIsToldToWait(t *testing.T) {
	s := newServer(t, func(c *api.Config, _ *api.Deps) { c.Rate = api.RateConfig{PerCaller: 0.1, FailuresPerAddress: 0.1} })
	s.clock.Stand()
	statuses := map[int]int{}
	for range 4 {
		got := s.as("admin", http.MethodGet, "/whoami", nil)
		statuses[got.status]++
		if got.status == http.StatusTooManyRequests && got.header.Get("Retry-After") != "11" {
			t.Errorf("it is to wait %q", got.header.Get("Retry-After"))
		}
	}
	if statuses[http.StatusOK] != 2 || statuses[http.StatusTooManyRequests] != 2 {
		t.Errorf("one caller: %v", statuses)
	}
	if got := s.as("operator", http.MethodGet, "/whoami", nil); got.status != http.StatusOK {
		t.Errorf("another caller gets %d", got.status)
	}
	for range 2 {
		s.with("Bearer kht1.x", http.MethodGet, "/whoami", nil)
	}
	if got := s.as("auditor", http.MethodGet, "/whoami", nil); got.status != http.StatusTooManyRequests {
		t.Errorf("from an address that failed too often even the right credentials get %d", got.status)
	}
	s.clock.Advance(10 * time.Second)
	if got := s.as("auditor", http.MethodGet, "/whoami", nil); got.status != http.StatusOK {
		t.Errorf("a while later they get %d", got.status)
	}
}
