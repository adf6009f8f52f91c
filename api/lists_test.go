package api_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/postgres"
)

// walk goes through all pages; between runs between two of them.
func walk[T any](t *testing.T, s *server, role api.Role, path string, limit int, between func(page int)) (all []T) {
	t.Helper()
	cursor := ""
	for n := 0; ; n++ {
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		got := into[api.Page[T]](t, s.as(role, http.MethodGet, fmt.Sprintf("%s%slimit=%d&cursor=%s", path, separator, limit, url.QueryEscape(cursor)), nil), http.StatusOK)
		if len(got.Items) > limit {
			t.Fatalf("a page has %d", len(got.Items))
		}
		all = append(all, got.Items...)
		if cursor = got.NextCursor; cursor == "" {
			return all
		}
		if between != nil {
			between(n)
		}
	}
}

// Whatever comes meanwhile, what was there is on one page, once.
func TestPagesWhileOthersAreInserted(t *testing.T) {
	s := newServer(t)
	rotations, devices, users := map[string]int{}, map[string]int{}, map[string]int{}
	for i := range 23 {
		user := id.NewUserID(fmt.Sprintf("user%02d", i*2), "example.org")
		rotations[s.rotation(user).String()] = 0
		s.device(user, "MANAGED")
		devices[user.String()], users[user.String()] = 0, 0
	}
	more := 0
	insert := func(int) {
		more++
		for _, user := range []id.UserID{id.NewUserID(fmt.Sprintf("user%02d", more*3), "example.org"), id.NewUserID(fmt.Sprintf("a%d", more), "example.org"), id.NewUserID(fmt.Sprintf("z%d", more), "example.org")} {
			s.rotation(user)
			s.device(user, id.DeviceID(fmt.Sprint("MORE", more)))
		}
	}
	for _, r := range walk[api.Rotation](t, s, "operator", "/rotations", 4, insert) {
		if n, was := rotations[r.ID.String()]; was {
			rotations[r.ID.String()] = n + 1
		}
	}
	for _, d := range walk[api.Device](t, s, "operator", "/devices", 4, insert) {
		if n, was := devices[d.UserID.String()]; was && d.DeviceID == "MANAGED" {
			devices[d.UserID.String()] = n + 1
		}
	}
	seen := map[id.UserID]bool{}
	for _, u := range walk[api.User](t, s, "operator", "/users", 4, insert) {
		if seen[u.UserID] {
			t.Errorf("%s is there twice", u.UserID)
		}
		seen[u.UserID] = true
		if n, was := users[u.UserID.String()]; was {
			users[u.UserID.String()] = n + 1
		}
	}
	for what, counts := range map[string]map[string]int{"rotation": rotations, "device": devices, "user": users} {
		for name, n := range counts {
			if n != 1 {
				t.Errorf("the %s of %s was on %d pages", what, name, n)
			}
		}
	}
	events := walk[reader.Event](t, s, "auditor", "/audit/events?action=rotation.asked", 7, nil)
	if len(events) < 23 || events[0].Time < events[len(events)-1].Time {
		t.Errorf("the log shows %d", len(events))
	}
	if reads := s.log("audit.read", "accepted"); len(reads) != (len(events)+6)/7 || reads[0].Actor != "admin:token:auditor" {
		t.Errorf("%d pages left %d events", (len(events)+6)/7, len(reads))
	}
}

func TestTokensComeInPagesByTheirNames(t *testing.T) {
	s := newServer(t)
	names := []string{"admin", "auditor", "helpdesk", "operator"}
	for i := range 7 {
		name := fmt.Sprintf("ci-%d", i)
		s.token(name, "auditor")
		names = append(names, name)
	}
	slices.Sort(names)
	var listed []string
	for _, token := range walk[api.Token](t, s, "admin", "/tokens", 3, func(page int) { s.token(fmt.Sprintf("a%d", page), "auditor") }) {
		listed = append(listed, token.Name) // what comes meanwhile has a name before all others
	}
	if !slices.Equal(listed, names) {
		t.Errorf("the pages have %q and not %q", listed, names)
	}
	for _, path := range []string{"/tokens?limit=0", "/tokens?cursor=x", "/tokens?role=admin"} {
		if got := s.as("admin", http.MethodGet, path, nil); got.status != http.StatusBadRequest {
			t.Errorf("%s gets %d: %s", path, got.status, got.body)
		}
	}
}

func TestFilters(t *testing.T) {
	s := newServer(t)
	done, open := s.rotation("@alice:example.org"), s.rotation("@bob:example.org")
	s.ended(done, "done")
	for path, want := range map[string][]uuid.UUID{"/rotations?state=done": {done}, "/rotations?open=true": {open}, "/rotations?user_id=@bob:example.org": {open}, "/rotations?held=true": {}, "/rotations?needs_attention=true": {},
		"/rotations?open=false": {open, done}} {
		got := walk[api.Rotation](t, s, "auditor", path, 10, nil)
		if len(got) != len(want) {
			t.Errorf("%s has %d", path, len(got))
			continue
		}
		for i := range got {
			if got[i].ID != want[i] {
				t.Errorf("%s has %s", path, got[i].ID)
			}
		}
	}
	page := into[api.Page[api.Rotation]](t, s.as("auditor", http.MethodGet, "/rotations?limit=1", nil), http.StatusOK)
	for _, path := range []string{"/rotations?state=dead", "/rotations?open=yes", "/rotations?user_id=bob", "/rotations?limit=0", "/rotations?limit=1001", "/rotations?limit=x", "/rotations?cursor=x", "/rotations?who=bob",
		"/rotations?open=true&open=true", "/rotations?open=true&cursor=" + page.NextCursor, "/users?user_id=x", "/audit/events?action=x", "/audit/events?since=x", "/audit/events?rotation=x", "/audit/events?outcome=X"} {
		if got := s.as("admin", http.MethodGet, path, nil); got.status != http.StatusBadRequest || got.problem(t).Code != api.CodeMalformed {
			t.Errorf("%s gets %d: %s", path, got.status, got.body)
		}
	}
}

func TestBodiesAreReadStrictly(t *testing.T) {
	s := newServer(t)
	for _, test := range []struct {
		name, body, kind string
		status           int
		pointer          string
	}{
		{"a member that nobody knows", `{"user_id":"@a:b","who":1}`, "application/json", 400, "/who"},
		{"a member in another case", `{"User_ID":"@a:b"}`, "application/json", 400, "/User_ID"},
		{"a member twice", `{"user_id":"@a:b","user_id":"@c:d"}`, "application/json", 400, ""},
		{"another kind of value", `{"user_id":7}`, "application/json", 400, "/user_id"},
		{"no JSON", `{`, "application/json", 400, ""},
		{"something behind it", `{}{}`, "application/json", 400, ""},
		{"a list", `[]`, "application/json", 400, ""},
		{"another media type", `{}`, "text/plain", 415, ""},
		{"too much", `{"user_id":"` + strings.Repeat("a", 70_000) + `"}`, "application/json", 413, ""},
		{"nobody", `{}`, "application/json", 422, ""},
		{"a reason that is none", `{"user_id":"@a:b","reason":"bored"}`, "application/json", 422, ""},
		{"half a place", `{"user_id":"@a:b","kms":"x"}`, "application/json", 422, ""},
		{"an unknown place", `{"user_id":"@a:b"}`, "application/json", 409, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.as("admin", http.MethodPost, "/rotations", test.body, "Content-Type", test.kind)
			if got.status != test.status || got.problem(t).Pointer != test.pointer {
				t.Errorf("got %d: %s", got.status, got.body)
			}
		})
	}
}

func TestWhatIsNotThereIsAProblem(t *testing.T) {
	s := newServer(t)
	unknown := uuid.NewString()
	for path, status := range map[string]int{"/rotations/" + unknown: 404, "/rotations/x": 404, "/users/@nobody:example.org": 404, "/users/nobody": 422, "/audit/events/" + unknown: 404, "/nothing": 404, "/users/%40nobody%3Aexample.org": 404} {
		if got := s.as("admin", http.MethodGet, path, nil); got.status != status || got.problem(t).Detail == "" || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s gets %d: %s", path, got.status, got.body)
		}
	}
	if got := s.as("admin", http.MethodPatch, "/freeze", nil); got.status != http.StatusMethodNotAllowed || got.problem(t).Code != api.CodeMethod {
		t.Errorf("another method gets %d: %s", got.status, got.body)
	}
}

func TestAdminsFreezeReleaseRevokeAndExclude(t *testing.T) {
	s := newServer(t)
	s.device("@alice:example.org", "MANAGED")
	if f := into[api.Freeze](t, s.as("operator", http.MethodPut, "/freeze", nil), http.StatusOK); !f.Frozen || f.By != "admin:token:operator" {
		t.Errorf("it is %+v", f)
	}
	if got := s.as("operator", http.MethodPut, "/freeze", nil); got.problem(t).Refusal != "already_so" {
		t.Errorf("again: %s", got.body)
	}
	if status := into[api.Status](t, s.as("helpdesk", http.MethodGet, "/status", nil), http.StatusOK); !status.Freeze.Frozen || status.Devices["enrolled"] != 1 {
		t.Errorf("the status is %+v", status)
	}
	into[struct{}](t, s.as("operator", http.MethodDelete, "/freeze", nil), http.StatusNoContent)
	if x := into[api.Exclusion](t, s.as("admin", http.MethodPut, "/users/@alice:example.org/exclusions/PHONE", nil), http.StatusOK); x.DeviceID != "PHONE" || x.ExcludedAt == nil || x.Reach != campaign.OutOfReach {
		t.Errorf("the exclusion is %+v", x)
	}
	if user := into[api.User](t, s.as("helpdesk", http.MethodGet, "/users/@alice:example.org", nil), http.StatusOK); len(user.Excluded) != 1 || len(user.Devices) != 1 || user.Devices[0].Status == nil {
		t.Errorf("the user is %+v", user)
	}
	into[struct{}](t, s.as("admin", http.MethodDelete, "/users/@alice:example.org/exclusions/PHONE", nil), http.StatusNoContent)
	if got := s.as("admin", http.MethodDelete, "/users/@alice:example.org/exclusions/PHONE", nil); got.status != http.StatusConflict {
		t.Errorf("again: %d", got.status)
	}
	revoke := "/users/@alice:example.org/devices/MANAGED/revoke"
	into[api.Revoked](t, s.as("admin", http.MethodPost, revoke, `{"reason":"lost, OPS-1"}`), http.StatusOK)
	if got := s.as("admin", http.MethodPost, revoke, nil); got.status != http.StatusConflict {
		t.Errorf("again: %d", got.status)
	}
	if got := s.as("admin", http.MethodPost, "/users/@alice:example.org/devices/OTHER/revoke", nil); got.status != http.StatusNotFound {
		t.Errorf("another: %d", got.status)
	}
	if got := s.as("operator", http.MethodPost, "/rotations/release", `{"all":true}`); into[api.Released](t, got, http.StatusOK).Released != 0 {
		t.Errorf("released: %s", got.body)
	}
	if got := s.as("operator", http.MethodPost, "/rotations/release", `{"rotations":["`+uuid.NewString()+`"]}`); got.status != http.StatusConflict {
		t.Errorf("released: %d", got.status)
	}
	auditor, err := postgres.Open(t.Context(), s.database.AuditorURL)
	check(t, err)
	defer func() { _ = auditor.Close() }()
	var of int
	check(t, auditor.QueryRow(t.Context(), `SELECT COUNT(*) FROM auditor.admin_actions WHERE who = 'token:admin' AND sentence LIKE 'token:admin %'`).Scan(&of))
	if of < 5 {
		t.Errorf("auditors see %d acts of the admin", of)
	}
}
