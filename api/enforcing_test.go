package api_test

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/roster"
)

const csv = "user_id,exempt_reason,exempt_until\n@alice:example.org,,\n@bob:example.org,parental leave,2099-12-31\n"

func TestARosterIsReplacedWholeOrNotAtAll(t *testing.T) {
	s := newServer(t)
	put := func(body string, headers ...string) answer {
		return s.as("admin", http.MethodPut, "/roster", body, append([]string{"Content-Type", "text/csv"}, headers...)...)
	}
	if change := into[enforce.RosterChange](t, put(csv), http.StatusOK); change.Added != 2 || change.Exempted != 1 {
		t.Errorf("it changed %+v", change)
	}
	wrong := put("user_id\n@alice:example.org\nbob\n")
	if p := wrong.problem(t); wrong.status != http.StatusUnprocessableEntity || !strings.Contains(p.Detail, "line 3") || !strings.Contains(p.Detail, "nothing was applied") {
		t.Errorf("a bad line is answered with %d: %s", wrong.status, wrong.body)
	}
	whole := s.as("auditor", http.MethodGet, "/roster", nil, "Accept", "text/csv")
	if string(whole.body) != strings.Replace(csv, "2099-12-31", "2100-01-01T00:00:00Z", 1) || whole.header.Get("ETag") == "" {
		t.Errorf("the roster reads %s, %s", whole.body, whole.header.Get("ETag"))
	}
	tag := whole.header.Get("ETag")
	into[struct{}](t, s.as("admin", http.MethodPut, "/roster/@carol:example.org", nil), http.StatusNoContent)
	if got := put(csv, "If-Match", tag); got.status != http.StatusPreconditionFailed {
		t.Errorf("a roster that was changed meanwhile is replaced: %d", got.status)
	}
	fresh := s.as("auditor", http.MethodGet, "/roster", nil, "Accept", "text/csv").header.Get("ETag")
	if change := into[enforce.RosterChange](t, put(csv, "If-Match", fresh, "Idempotency-Key", "r1"), http.StatusOK); change.Left != 1 {
		t.Errorf("it changed %+v", change)
	}
	// Everybody would leave: that is refused, told, and leaves the roster.
	fresh = s.as("auditor", http.MethodGet, "/roster", nil, "Accept", "text/csv").header.Get("ETag")
	if got := put("user_id\n", "If-Match", fresh); got.status != http.StatusConflict || got.problem(t).Refusal != "too_many_would_leave" {
		t.Errorf("an empty roster is answered with %d: %s", got.status, got.body)
	}
	if lines := s.log("roster.applied", "refused"); len(lines) != 1 {
		t.Errorf("the log has %v", lines)
	}
	if got := s.as("admin", http.MethodPut, "/roster?allow_removals=2", "user_id\n", "Content-Type", "text/csv"); got.status != http.StatusOK {
		t.Errorf("with the number it is answered with %d: %s", got.status, got.body)
	}
	var many strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&many, `{"user_id":"@user%d:example.org"},`, i)
	}
	if change := into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", `{"entries":[`+strings.TrimSuffix(many.String(), ",")+`]}`), http.StatusOK); change.Added != 3000 {
		t.Errorf("it changed %+v", change)
	}
	if all := walk[api.RosterUser](t, s, "operator", "/roster", 1000, nil); len(all) != 3000 {
		t.Errorf("the roster has %d", len(all))
	}
}

func TestComplianceIsToldWithBothNumbersAndByUser(t *testing.T) {
	s := newServer(t)
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", csv, "Content-Type", "text/csv"), http.StatusOK)
	got := into[api.Compliance](t, s.as("auditor", http.MethodGet, "/compliance?users=true", nil), http.StatusOK)
	if got.Current != 0 || got.Of != 1 || got.Roster != 2 || len(got.Users) != 2 || got.States["exempt"] != 1 {
		t.Errorf("it is %+v", got)
	}
	if of := into[api.Compliance](t, s.as("auditor", http.MethodGet, "/compliance?at=0s", nil), http.StatusOK); of.Roster != 2 {
		t.Errorf("by the log it is %+v", of)
	}
	// A key that is too old is counted, though its device is silent.
	into[api.PolicyApplied](t, s.as("admin", http.MethodPut, "/policies/current", `{"document":{"rules":[{"name":"staff","who":{"all":true},"max_age":"30d"}]},"reason":"monthly"}`), http.StatusOK)
	key := s.device("@alice:example.org", "MANAGED")
	check(t, s.db.SawDevice(t.Context(), key, s.clock.Now().Add(-48*time.Hour), []byte(`{"backup_version":"1","holds_key":true}`)))
	check(t, s.db.CreatedKeyVersion(t.Context(), "@alice:example.org", "1", "k", s.clock.Now().Add(-90*24*time.Hour)))
	if old := into[api.Compliance](t, s.as("auditor", http.MethodGet, "/compliance", nil), http.StatusOK); old.PastMaxAge != 1 || old.States["unknown"] != 1 || old.States["overdue"] != 0 {
		t.Errorf("with an old key it is %+v", old)
	}
	one := into[api.Page[map[string]any]](t, s.as("helpdesk", http.MethodGet, "/compliance/users?user_id=@alice:example.org", nil), http.StatusOK)
	if len(one.Items) != 1 || one.Items[0]["state"] != "unknown" || one.Items[0]["past_max_age"] != true || one.Items[0]["next_action"] == "" {
		t.Errorf("alice is %+v", one)
	}
	if none := walk[map[string]any](t, s, "operator", "/compliance/users?state=current", 10, nil); len(none) != 0 {
		t.Errorf("current are %v", none)
	}
	into[api.RosterExemption](t, s.as("admin", http.MethodPut, "/roster/@alice:example.org/exemption", `{"reason":"leave","until":"2099-01-01"}`), http.StatusOK)
	into[struct{}](t, s.as("admin", http.MethodDelete, "/roster/@alice:example.org/exemption", nil), http.StatusNoContent)
	if got := s.as("admin", http.MethodDelete, "/roster/@nobody:example.org", nil); got.status < 400 {
		t.Errorf("who is not on it leaves: %d", got.status)
	}
}

// An approval is for a hash, and the hash of what is shown is that hash: nothing of it stays hidden.
func TestWhoApprovesACampaignSeesAllThatTheApprovalIsFor(t *testing.T) {
	s := newServer(t)
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", csv+"@carol:example.org,,\n", "Content-Type", "text/csv"), http.StatusOK)
	started := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", `{"who":{"globs":["@c*:example.org"],"users":["@alice:example.org"],"except":["@bob:*"]},"kms":"corporate",
		"path":"keyherald/{user}","key_reason":"compromise","exclude":[{"user_id":"@alice:example.org","device_id":"STOLEN"}],"waves":[40,100],"pass_percent":90,"max_wait_seconds":5400,"max_waiting":7,
		"max_failures":3,"rate":11,"max_latency_ms":1500,"reason":"a laptop was stolen","ticket":"SEC-1"}`), http.StatusCreated)
	seen := into[api.CampaignProgress](t, s.as("auditor", http.MethodGet, "/campaigns/"+started.ID.String(), nil), http.StatusOK)
	if x := seen.Exclusions; len(x) != 1 || x[0].UserID != "@alice:example.org" || x[0].DeviceID != "STOLEN" || x[0].ExcludedAt != nil || x[0].Reach != campaign.OutOfReach {
		t.Errorf("it excludes %+v", x)
	}
	users := walk[api.CampaignUser](t, s, "auditor", "/campaigns/"+started.ID.String()+"/users", 1, nil)
	wait, err := time.ParseDuration(seen.MaxWait)
	check(t, err)
	latency, err := time.ParseDuration(seen.MaxLatency)
	check(t, err)
	of := seen.Parameters
	p := campaign.Parameters{Kind: seen.Kind, Who: campaign.Who(of.Who), KMS: of.KMS, Path: of.Path, KeyReason: of.KeyReason, Exclude: of.Exclude, Waves: seen.Waves, PassPercent: seen.PassPercent,
		MaxWait: wait, MaxWaiting: seen.MaxWaiting, MaxFailures: seen.MaxFailures, Rate: seen.Rate, MaxLatency: latency, Reason: seen.Reason, Ticket: seen.Ticket}
	for i := range reflect.TypeFor[campaign.Parameters]().NumField() {
		if field := reflect.ValueOf(p).Field(i); field.IsZero() {
			t.Errorf("%s is not shown", reflect.TypeFor[campaign.Parameters]().Field(i).Name)
		}
	}
	ids := make([]id.UserID, len(users))
	for i, u := range users {
		ids[i] = u.UserID
	}
	hash, err := campaign.HashOf(p, ids)
	if err != nil || hash != started.Hash || len(ids) != 2 {
		t.Errorf("what is shown, for %v, has the hash %s, and the campaign %s (%v)", ids, hash, started.Hash, err)
	}
}

func TestAUsersViewHasHisStandingWhereHeIsOnTheRoster(t *testing.T) {
	s := newServer(t)
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", csv, "Content-Type", "text/csv"), http.StatusOK)
	s.device("@alice:example.org", "MANAGED")
	open := s.rotation("@alice:example.org")
	s.device("@guest:example.org", "MANAGED")
	want := map[id.UserID]roster.Standing{}
	for _, standing := range walk[roster.Standing](t, s, "operator", "/compliance/users", 10, nil) {
		want[standing.UserID] = standing
	}
	if alice := want["@alice:example.org"]; len(want) != 2 || alice.State != roster.InProgress || alice.Rotation != open || want["@bob:example.org"].State != roster.Exempt {
		t.Fatalf("alice stands at %+v", alice)
	}
	is := func(u api.User) {
		t.Helper()
		standing, on := want[u.UserID]
		switch {
		case on != (u.Standing != nil) || on != u.OnRoster:
			t.Errorf("%s stands at %+v", u.UserID, u.Standing)
		case on && *u.Standing != standing:
			t.Errorf("%s stands at %+v, and in the roster's list at %+v", u.UserID, *u.Standing, standing)
		}
	}
	listed := walk[api.User](t, s, "auditor", "/users?standing=true", 2, nil)
	if len(listed) != 3 {
		t.Errorf("%d are listed", len(listed))
	}
	for _, u := range listed {
		is(u)
		is(into[api.User](t, s.as("helpdesk", http.MethodGet, "/users/"+u.UserID.String(), nil), http.StatusOK))
	}
	for _, u := range walk[api.User](t, s, "auditor", "/users", 2, nil) {
		if u.Standing != nil {
			t.Errorf("%s has a standing that nobody asked for", u.UserID)
		}
	}
}

const campaignOfAll = `{"who":{"all":true},"kms":"corporate","path":"keyherald/{user}","reason":"yearly rotation","rate":60}`

func TestACampaignIsPlannedStartedApprovedByAnotherAndAborted(t *testing.T) {
	s := newServer(t)
	var people strings.Builder
	people.WriteString("user_id\n")
	for i := range 30 {
		fmt.Fprintf(&people, "@user%02d:example.org\n", i)
	}
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", people.String(), "Content-Type", "text/csv"), http.StatusOK)
	plan := into[api.CampaignPlan](t, s.as("operator", http.MethodPost, "/campaigns/plan", campaignOfAll), http.StatusOK)
	if len(plan.Users) != 30 || !plan.NeedsApproval || plan.Users[0].Cause != "not_enrolled" {
		t.Errorf("the plan is %+v", plan)
	}
	if plan.Frozen {
		t.Error("the plan says that triggers are frozen")
	}
	into[api.Freeze](t, s.as("operator", http.MethodPut, "/freeze", nil), http.StatusOK)
	if frozen := into[api.CampaignPlan](t, s.as("operator", http.MethodPost, "/campaigns/plan", campaignOfAll), http.StatusOK); !frozen.Frozen || frozen.Hash != plan.Hash {
		t.Errorf("while triggers are frozen the plan is %+v", frozen)
	}
	into[struct{}](t, s.as("operator", http.MethodDelete, "/freeze", nil), http.StatusNoContent)
	if lines := s.log("campaign.started", "accepted"); len(lines) != 0 {
		t.Error("a plan started something")
	}
	first := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", campaignOfAll, "Idempotency-Key", "c1"), http.StatusCreated)
	again := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", campaignOfAll, "Idempotency-Key", "c1"), http.StatusCreated)
	if first.ID != again.ID || first.State != "awaiting_approval" || first.Hash != plan.Hash || first.StartedBy != "admin:token:admin" {
		t.Errorf("it is %+v", first)
	}
	if lines := s.log("campaign.started", "accepted"); len(lines) != 1 {
		t.Errorf("%d campaigns were started", len(lines))
	}
	path := "/campaigns/" + first.ID.String()
	approve := fmt.Sprintf(`{"hash":%q}`, first.Hash)
	if own := s.as("admin", http.MethodPost, path+"/approve", approve); own.status < 400 || own.problem(t).Refusal != "by_who_asked_for_it" {
		t.Errorf("who started it approves it: %d %s", own.status, own.body)
	}
	second := "Bearer " + s.token("second", "admin")
	if other := s.with(second, http.MethodPost, path+"/approve", `{"hash":"x"}`); other.status < 400 {
		t.Errorf("another hash is approved: %d", other.status)
	}
	if approved := into[api.Campaign](t, s.with(second, http.MethodPost, path+"/approve", approve), http.StatusOK); approved.State != "running" {
		t.Errorf("approved it is %+v", approved)
	}
	into[api.Campaign](t, s.as("operator", http.MethodPost, path+"/pause", nil), http.StatusOK)
	if changed := into[api.Campaign](t, s.as("admin", http.MethodPatch, path, `{"rate":30,"max_wait_seconds":60}`), http.StatusOK); changed.Rate != 30 || changed.MaxWait != "1m0s" || changed.State != "awaiting_approval" {
		t.Errorf("changed it is %+v", changed)
	}
	// Somebody else has changed it since this was read: neither is overwritten, and the refusal is told.
	read := `"` + string(first.Hash) + `"`
	if got := s.as("admin", http.MethodPatch, path, `{"rate":50}`, "If-Match", read, "Idempotency-Key", "p1"); got.status != http.StatusPreconditionFailed || got.problem(t).Code != api.CodePrecondition || got.problem(t).Refusal != "another_hash" {
		t.Errorf("a campaign that was changed meanwhile is answered with %d: %s", got.status, got.body)
	}
	if lines := s.log("campaign.changed", "refused"); len(lines) != 1 {
		t.Errorf("the log has %v", lines)
	}
	now := s.as("auditor", http.MethodGet, path, nil)
	if got := into[api.CampaignProgress](t, now, http.StatusOK); got.Rate != 30 {
		t.Errorf("its rate is %d", got.Rate)
	}
	again50 := s.as("admin", http.MethodPatch, path, `{"rate":50}`, "If-Match", now.header.Get("ETag"), "Idempotency-Key", "p1")
	if changed := into[api.Campaign](t, again50, http.StatusOK); changed.Rate != 50 || again50.header.Get("ETag") != `"`+string(changed.Hash)+`"` {
		t.Errorf("it is %+v, with the tag %s", changed, again50.header.Get("ETag"))
	}
	if changed := into[api.Campaign](t, s.as("admin", http.MethodPatch, path, `{"rate":30}`, "If-Match", "*"), http.StatusOK); changed.Rate != 30 {
		t.Errorf("it is %+v", changed)
	}
	events := s.watchPath(path+"/events", "operator", "")
	if e, _ := next(t, events); e.event != "progress" || !strings.Contains(e.data, `"awaiting_approval"`) {
		t.Errorf("the stream begins with %v", e)
	}
	into[api.Campaign](t, s.as("operator", http.MethodPost, path+"/abort", `{"cancel_running":true}`), http.StatusOK)
	if e, _ := next(t, events); e.event != "progress" || !strings.Contains(e.data, `"aborted"`) {
		t.Errorf("it goes on with %v", e)
	}
	if e, _ := next(t, events); e.event != "end" {
		t.Errorf("it ends with %v", e)
	}
	progress := into[api.CampaignProgress](t, s.as("auditor", http.MethodGet, path, nil), http.StatusOK)
	if progress.Counts.NotStarted != 30 || len(progress.Approvals) != 1 || progress.Approvals[0].VoidedAt == nil {
		t.Errorf("in the end it is %+v", progress)
	}
	if users := walk[api.CampaignUser](t, s, "auditor", path+"/users?state=not_started", 7, nil); len(users) != 30 {
		t.Errorf("%d had not begun", len(users))
	}
	if list := walk[api.Campaign](t, s, "auditor", "/campaigns?state=aborted", 7, nil); len(list) != 1 {
		t.Errorf("there are %v", list)
	}
}

func TestCodesOfManyAreShownOnce(t *testing.T) {
	s := newServer(t)
	got := into[api.Page[api.UserCode]](t, s.as("admin", http.MethodPost, "/codes", `{"user_ids":["@alice:example.org","@bob:example.org"]}`, "Idempotency-Key", "k"), http.StatusCreated)
	if len(got.Items) != 2 || got.Items[0].Code == got.Items[1].Code {
		t.Error("there are not two codes")
	}
	if again := s.as("admin", http.MethodPost, "/codes", `{"user_ids":["@alice:example.org","@bob:example.org"]}`, "Idempotency-Key", "k"); again.problem(t).Code != api.CodeAnsweredBefore {
		t.Errorf("again: %d", again.status)
	}
	if got := s.as("admin", http.MethodPost, "/codes", `{"user_ids":[]}`); got.status != http.StatusUnprocessableEntity {
		t.Errorf("for nobody: %d", got.status)
	}
}

func TestAPolicyIsCheckedAppliedAndExplained(t *testing.T) {
	s := newServer(t)
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", csv, "Content-Type", "text/csv"), http.StatusOK)
	const rule = `{"rules":[{"name":"staff","who":{"all":true},"max_age":"30d"}]}`
	if got := s.as("auditor", http.MethodGet, "/policies/current", nil); got.status != http.StatusNotFound {
		t.Errorf("without one it is answered with %d", got.status)
	}
	wrong := `{"document":{"rules":[{"name":"staff","who":{"all":true},"max_age":"3h","windows":[{"days":["mon"],"hours":"01:00-02:00"}]}]},"reason":"x"}`
	if got := s.as("admin", http.MethodPut, "/policies/current", wrong); got.status != http.StatusUnprocessableEntity || !strings.Contains(got.problem(t).Detail, "rules[0]") {
		t.Errorf("one that contradicts itself gets %d: %s", got.status, got.body)
	}
	nobody := `{"document":{"rules":[{"name":"staff","who":{"users":["@nobody:example.org"]},"max_age":"30d"}]}}`
	if got := into[api.Page[api.Finding]](t, s.as("operator", http.MethodPost, "/policies/check", nobody), http.StatusOK); len(got.Items) == 0 {
		t.Error("a rule that reaches nobody has no warning")
	}
	first := s.as("admin", http.MethodPut, "/policies/current", `{"document":`+rule+`,"reason":"yearly"}`, "Idempotency-Key", "p1")
	if applied := into[api.PolicyApplied](t, first, http.StatusOK); applied.Version != 1 || applied.CreatedBy != "admin:token:admin" || first.header.Get("ETag") != `"1"` {
		t.Errorf("it is %+v", applied)
	}
	stricter := `{"document":` + strings.Replace(rule, "30d", "20d", 1) + `,"reason":"stricter"}`
	into[api.PolicyApplied](t, s.as("admin", http.MethodPut, "/policies/current", stricter, "If-Match", `"1"`), http.StatusOK)
	if got := s.as("admin", http.MethodPut, "/policies/current", stricter, "If-Match", `"1"`); got.status != http.StatusPreconditionFailed || got.problem(t).Code != api.CodePrecondition {
		t.Errorf("an older version is replaced: %d", got.status)
	}
	if now := into[api.Policy](t, s.as("auditor", http.MethodGet, "/policies/current", nil), http.StatusOK); now.Version != 2 || !strings.Contains(string(now.Document), "20d") {
		t.Errorf("now it is %+v", now)
	}
	if all := walk[api.Policy](t, s, "auditor", "/policies", 1, nil); len(all) != 2 || all[0].Version != 2 {
		t.Errorf("there are %+v", all)
	}
	x := into[api.Explanation](t, s.as("helpdesk", http.MethodGet, "/users/@alice:example.org/policy", nil), http.StatusOK)
	if x.Version != 2 || x.Rule == nil || x.Rule.MaxAge != "20d" || x.Then == "" {
		t.Errorf("alice's is %+v", x)
	}
}

func TestCodesThatTheCallerMadeAreKeptByTheirHashes(t *testing.T) {
	s := newServer(t)
	bot := into[api.Bot](t, s.as("helpdesk", http.MethodGet, "/bot", nil), http.StatusOK)
	code, err := protocol.NewCode(bot.UserID, bot.MasterKey)
	check(t, err)
	hash := code.Hash()
	keep := func(sum string, life time.Duration) answer {
		return s.as("admin", http.MethodPost, "/codes/keep", fmt.Sprintf(`{"codes":[{"user_id":"@alice:example.org","sha256":%q}],"expires_at":%q}`, sum, s.clock.Now().Add(life).UTC().Format(time.RFC3339)))
	}
	if got := into[api.Kept](t, keep(hex.EncodeToString(hash[:]), time.Hour), http.StatusCreated); got.Kept != 1 {
		t.Errorf("kept are %d", got.Kept)
	}
	if open, err := s.db.HasOpenCode(t.Context(), "@alice:example.org", s.clock.Now()); err != nil || !open {
		t.Errorf("there is no open code (%v)", err)
	}
	if again := keep(hex.EncodeToString(hash[:]), time.Hour); again.status != http.StatusConflict || again.problem(t).Refusal != "already_so" {
		t.Errorf("again: %d %s", again.status, again.body)
	}
	for _, wrong := range []answer{keep("00", time.Hour), keep(strings.Repeat("0", 64), -time.Hour), keep(strings.Repeat("0", 64), 31*24*time.Hour)} {
		if wrong.status != http.StatusUnprocessableEntity {
			t.Errorf("got %d: %s", wrong.status, wrong.body)
		}
	}
}

func TestABoundOfNothingIsHeededAndNonsenseRefused(t *testing.T) {
	s := newServer(t)
	into[enforce.RosterChange](t, s.as("admin", http.MethodPut, "/roster", csv, "Content-Type", "text/csv"), http.StatusOK)
	with := func(bounds string) string {
		return strings.TrimSuffix(campaignOfAll, "}") + bounds + "}"
	}
	if c := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", campaignOfAll), http.StatusCreated); c.MaxFailures != 10 || c.MaxWaiting != 20 || c.PassPercent != 95 || c.MaxWait != "24h0m0s" || c.MaxLatency != "1s" {
		t.Errorf("with nothing said it is %+v", c)
	}
	if c := into[api.Campaign](t, s.as("admin", http.MethodPost, "/campaigns", with(`,"max_failures":0,"max_waiting":0`)), http.StatusCreated); c.MaxFailures != 0 || c.MaxWaiting != 0 || c.PassPercent != 95 {
		t.Errorf("with no failure and nobody waiting allowed it is %+v", c)
	}
	for bounds, want := range map[string]string{
		`,"pass_percent":0`:       "write 1 to 100",
		`,"max_failures":-1`:      "write 0 to 100",
		`,"max_waiting":101`:      "write 0 to 100",
		`,"max_wait_seconds":0`:   "is waited for 0s",
		`,"max_wait_seconds":-60`: "is waited for -1m0s",
		`,"max_latency_ms":0`:     "may take 0s",
		`,"max_latency_ms":-5`:    "may take -5ms",
	} {
		for _, path := range []string{"/campaigns", "/campaigns/plan"} {
			if got := s.as("admin", http.MethodPost, path, with(bounds)); got.status != http.StatusUnprocessableEntity || got.problem(t).Refusal != "unusable_parameters" || !strings.Contains(got.problem(t).Detail, want) {
				t.Errorf("%s of %s is answered with %d: %s", path, bounds, got.status, got.body)
			}
		}
	}
	if got := s.as("admin", http.MethodPost, "/campaigns", strings.Replace(campaignOfAll, `"rate":60`, `"rate":0`, 1)); got.status != http.StatusUnprocessableEntity || !strings.Contains(got.problem(t).Detail, "0 users a minute") {
		t.Errorf("a rate of 0 is answered with %d: %s", got.status, got.body)
	}
}
