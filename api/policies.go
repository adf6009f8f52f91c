package api

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
)

// Policy is a version of the company's policy. Lists leave the document out.
type Policy struct {
	Version   int64           `json:"version"`
	SHA256    string          `json:"sha256"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy string          `json:"created_by"`
	Reason    string          `json:"reason"`
	Document  json.RawMessage `json:"document,omitempty"`
}

func policyOf(v postgres.PolicyVersion) Policy {
	return Policy{v.Version, hex.EncodeToString(v.SHA256[:]), v.CreatedAt.UTC(), v.CreatedBy, v.Reason, nil}
}

func listPolicies(c *call) (answer, error) {
	q := c.query()
	var f postgres.PolicyFilter
	limit, filters := q.page(&f.Before)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.Limit = limit + 1
	rows, err := c.deps.DB.PolicyVersions(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, policyOf, func(v postgres.PolicyVersion) any { return v.Version })
	return ok(page), err
}

// versionTag is the ETag of a policy: If-Match with it replaces that version alone.
func versionTag(version int64) string { return fmt.Sprintf("%q", strconv.FormatInt(version, 10)) }

func getPolicy(c *call) (answer, error) {
	q := c.query()
	var moment time.Time
	if text := q.text("at"); text != "" {
		var err error
		if moment, err = period.Instant(text, c.deps.Now(), true); err != nil {
			q.fail("at", err.Error())
		}
	}
	if err := q.end(); err != nil {
		return answer{}, err
	}
	version, there, err := c.deps.Enforcer.PolicyAt(c.ctx, moment)
	if err != nil {
		return answer{}, err
	}
	if !there {
		detail := "there is no policy: PUT /policies/current (`keyherald policy apply FILE --reason …`) makes one"
		if !moment.IsZero() {
			detail = "there was no policy at " + moment.UTC().Format(time.RFC3339)
		}
		return answer{}, &Problem{Status: statusOf[refusal.NotFound], Code: CodeNotFound, Detail: detail}
	}
	view := policyOf(version)
	view.Document = version.Document
	a := ok(view)
	a.header = map[string]string{"ETag": versionTag(version.Version)}
	return a, nil
}

// PolicyRequest is a policy that is to take the place of the present one.
type PolicyRequest struct {
	Document json.RawMessage `json:"document"`
	Reason   string          `json:"reason"`
}

// PolicyApplied is the policy that is in force, with what is worth a look.
type PolicyApplied struct {
	Policy
	Warnings []Finding `json:"warnings"`
}

// Finding is something that is wrong with a policy, or worth a look.
type Finding struct {
	Refused bool   `json:"refused"`
	Key     string `json:"key"`
	Text    string `json:"text"`
}

func findingsOf(found []policy.Finding) []Finding {
	findings := make([]Finding, len(found))
	for i, f := range found {
		findings[i] = Finding{f.Refused, f.Key, f.Text}
	}
	return findings
}

func (c *call) policyIn(raw json.RawMessage) (policy.Document, error) {
	if len(raw) == 0 {
		return policy.Document{}, invalid("document is missing: it is the policy, as policy.example.yaml has it")
	}
	document, err := policy.ParseJSON(raw)
	if err != nil {
		return document, invalid("%v", err)
	}
	return document, nil
}

// putPolicy makes a document the policy from now on. With If-Match it is refused where that is not the newest version.
func putPolicy(c *call) (answer, error) {
	var asked PolicyRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	request := enforce.PolicyRequest{Reason: asked.Reason}
	if match := c.echo.Request().Header.Get("If-Match"); match != "" {
		version, err := strconv.ParseInt(strings.Trim(match, `"`), 10, 64)
		if err != nil || version < 1 {
			return answer{}, malformed("If-Match is no ETag of a policy's: write the version that yours is made from")
		}
		request.Replaces = version
	}
	var err error
	if request.Document, err = c.policyIn(asked.Document); err != nil {
		return answer{}, err
	}
	version, warnings, err := c.deps.Enforcer.ApplyPolicy(c.ctx, request, c.caller.actor)
	if err != nil {
		return answer{}, err
	}
	a := ok(PolicyApplied{policyOf(version), findingsOf(warnings)})
	a.header = map[string]string{"ETag": versionTag(version.Version)}
	return a, nil
}

// CheckRequest is a policy to be looked at.
type CheckRequest struct {
	Document json.RawMessage `json:"document"`
}

func checkPolicy(c *call) (answer, error) {
	var asked CheckRequest
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	document, err := c.policyIn(asked.Document)
	if err != nil {
		return answer{}, err
	}
	findings, err := c.deps.Enforcer.CheckPolicy(c.ctx, document)
	return ok(Page[Finding]{Items: findingsOf(findings)}), err
}

// Explanation is which rule applies to a user, and when.
type Explanation struct {
	UserID   id.UserID `json:"user_id"`
	OnRoster bool      `json:"on_roster"`
	// Version is the policy's; 0 where there is none. Rule is nil where none is for him.
	Version int64 `json:"version"`
	Rule    *Rule `json:"rule,omitempty"`
	// Key is nil where its age is not known.
	Key *KeyStanding `json:"key,omitempty"`
	// Then is what the server does about it, and when, as a sentence.
	Then string `json:"then"`
}

// Rule is a rule of the policy.
type Rule struct {
	Name        string   `json:"name"`
	Action      string   `json:"action"`
	MaxAge      string   `json:"max_age"`
	Grace       string   `json:"grace"`
	Jitter      string   `json:"jitter"`
	RotateAfter string   `json:"rotate_after"`
	OnDrift     string   `json:"on_drift"`
	Windows     string   `json:"windows"`
	TimeZones   []string `json:"time_zones"`
}

// KeyStanding is how a user's key stands by his rule.
type KeyStanding struct {
	Version   string       `json:"version"`
	Since     time.Time    `json:"since"`
	OnlySeen  bool         `json:"only_seen,omitempty"`
	State     policy.State `json:"state"`
	DueAt     time.Time    `json:"due_at"`
	OpensAt   *time.Time   `json:"opens_at,omitempty"`
	OverdueAt time.Time    `json:"overdue_at"`
	Overdue   bool         `json:"overdue,omitempty"`
}

// ExplanationOf is an explanation as callers see it.
func ExplanationOf(x enforce.Explanation) Explanation {
	view := Explanation{UserID: x.UserID, OnRoster: x.OnRoster, Version: x.Version, Then: x.Then}
	if r := x.Rule; r != nil {
		view.Rule = &Rule{Name: r.Name, Action: string(r.Action), MaxAge: fmt.Sprint(policy.Span(r.MaxAge)), Grace: fmt.Sprint(policy.Span(r.Grace)), Jitter: fmt.Sprint(policy.Span(r.Jitter)),
			RotateAfter: fmt.Sprint(r.RotateAfter), OnDrift: fmt.Sprint(r.OnDrift), Windows: r.Windows.String(), TimeZones: []string{}}
		for _, zone := range r.Windows.Zones() {
			view.Rule.TimeZones = append(view.Rule.TimeZones, zone.String())
		}
	}
	if v := x.Verdict; v.State != "" {
		view.Key = &KeyStanding{Version: x.Ruled.Version, Since: x.Ruled.Since, OnlySeen: x.Ruled.OnlySeen, State: v.State, DueAt: v.DueAt, OpensAt: optional(v.OpensAt), OverdueAt: v.OverdueAt, Overdue: v.Overdue}
	}
	return view
}

func explainPolicy(c *call) (answer, error) {
	user, err := c.user()
	if err != nil {
		return answer{}, err
	}
	x, err := c.deps.Enforcer.ExplainPolicy(c.ctx, user)
	return answer{status: http.StatusOK, body: ExplanationOf(x)}, err
}
