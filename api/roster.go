package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/period"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/roster"
)

// maxRoster is the limit of a roster's body, in bytes, as that of its file.
const maxRoster = 64 << 20

// RosterUser is a user of the roster.
type RosterUser struct {
	UserID       id.UserID  `json:"user_id"`
	AddedAt      time.Time  `json:"added_at"`
	AddedBy      string     `json:"added_by"`
	ExemptReason string     `json:"exempt_reason,omitempty"`
	ExemptUntil  *time.Time `json:"exempt_until,omitempty"`
}

func rosterUserOf(r postgres.RosterRow) RosterUser {
	return RosterUser{r.UserID, r.AddedAt, r.AddedBy, r.Exemption.Reason, optional(r.Exemption.Until)}
}

// getRoster is a page of the roster; or all of it as CSV, with an ETag for who replaces it.
func getRoster(c *call) (answer, error) {
	if c.accepts("text/csv") {
		return c.rosterCSV()
	}
	q := c.query()
	var after id.UserID
	limit, filters := q.page(&after)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	rows, err := c.deps.DB.Roster(c.ctx, postgres.RosterFilter{After: after, Limit: limit + 1})
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, rosterUserOf, func(r postgres.RosterRow) any { return r.UserID })
	return ok(page), err
}

func (c *call) rosterCSV() (answer, error) {
	if err := c.query().end(); err != nil {
		return answer{}, err
	}
	entries, tag, err := c.wholeRoster(c.ctx)
	if err != nil {
		return answer{}, err
	}
	var out bytes.Buffer
	if err := roster.WriteCSV(&out, entries); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, raw: out.Bytes(), kind: "text/csv; charset=utf-8", header: map[string]string{"ETag": tag}}, nil
}

// wholeRoster reads everybody; the tag is of what they are.
func (c *call) wholeRoster(ctx context.Context) ([]roster.Entry, string, error) {
	rows, err := c.deps.DB.Roster(ctx, postgres.RosterFilter{})
	if err != nil {
		return nil, "", err
	}
	entries, sum := make([]roster.Entry, len(rows)), sha256.New()
	for i, r := range rows {
		entries[i] = r.Entry
		_, _ = fmt.Fprintf(sum, "%q %q %d\n", r.UserID, r.Exemption.Reason, r.Exemption.Until.UnixMilli())
	}
	return entries, `"` + hex.EncodeToString(sum.Sum(nil)[:16]) + `"`, nil
}

// RosterRequest is a whole roster. AllowRemovals is how many users may leave, where that are too many to be meant.
type RosterRequest struct {
	Entries       []roster.Entry `json:"entries"`
	AllowRemovals int            `json:"allow_removals,omitempty"`
}

// putRoster makes the roster what the body says, all of it or nothing. With If-Match it is refused where the roster is
// another one by now.
func putRoster(c *call) (answer, error) {
	request, err := c.rosterRequest()
	if err != nil {
		return answer{}, err
	}
	var change enforce.RosterChange
	apply := func(ctx context.Context) (err error) {
		change, err = c.deps.Enforcer.ApplyRoster(ctx, enforce.Roster{Entries: request.Entries, AllowRemovals: request.AllowRemovals}, c.caller.actor)
		return err
	}
	match := c.echo.Request().Header.Get("If-Match")
	if match == "" {
		err = apply(c.ctx)
		return ok(change), err
	}
	// The lock is the one that applying takes: nobody changes the roster between the look and the change.
	var refused error
	err = c.deps.DB.Txn(c.ctx, func(ctx context.Context) error {
		if err := c.deps.DB.LockRoster(ctx); err != nil {
			return err
		}
		_, tag, err := c.wholeRoster(ctx)
		if err != nil {
			return err
		}
		if match != tag && match != "*" {
			return &Problem{Status: http.StatusPreconditionFailed, Code: CodePrecondition, Detail: "the roster was changed since it was read: read it again"}
		}
		// The event of a refusal commits with this transaction.
		refused = apply(postgres.KeepRefusals(ctx))
		if isRefusal(refused) {
			return nil
		}
		return refused
	})
	return ok(change), errors.Join(err, refused)
}

func (c *call) rosterRequest() (request RosterRequest, err error) {
	kind, _, err := mime.ParseMediaType(c.echo.Request().Header.Get("Content-Type"))
	if err != nil || kind != "text/csv" {
		if len(c.body) == 0 {
			return request, malformed("the roster is missing: send text/csv, or application/json with entries")
		}
		return request, errors.Join(c.into(&request), c.query().end())
	}
	q := c.query()
	if text := q.text("allow_removals"); text != "" {
		if request.AllowRemovals, err = strconv.Atoi(text); err != nil || request.AllowRemovals < 0 {
			q.fail("allow_removals", "write how many users may leave")
		}
	}
	if err := q.end(); err != nil {
		return request, err
	}
	if request.Entries, err = roster.ParseCSV(bytes.NewReader(c.body)); err != nil {
		return request, invalid("%v; nothing was applied", err)
	}
	return request, nil
}

// Exemption lets a user out of the count.
type Exemption struct {
	Reason string `json:"reason"`
	// Until is a time, or a day, which is in it.
	Until string `json:"until"`
}

func (e Exemption) end() (time.Time, error) {
	end, err := roster.Until(e.Until)
	if err != nil {
		return end, invalid("until: %v", err)
	}
	return end, nil
}

func addToRoster(c *call) (answer, error) {
	user, err := c.user()
	if err == nil {
		err = c.none()
	}
	if err != nil {
		return answer{}, err
	}
	return done(), c.deps.Enforcer.AddToRoster(c.ctx, roster.Entry{UserID: user}, c.caller.actor)
}

func removeFromRoster(c *call) (answer, error) {
	user, err := c.user()
	if err == nil {
		err = c.none()
	}
	if err != nil {
		return answer{}, err
	}
	change, err := c.deps.Enforcer.RemoveFromRoster(c.ctx, user, c.caller.actor)
	return ok(change), err
}

func exemptUser(c *call) (answer, error) {
	user, err := c.user()
	if err != nil {
		return answer{}, err
	}
	var asked Exemption
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	end, err := asked.end()
	if err != nil {
		return answer{}, err
	}
	err = c.deps.Enforcer.Exempt(c.ctx, user, asked.Reason, end, c.caller.actor)
	return ok(RosterExemption{end, asked.Reason}), err
}

// RosterExemption is an exemption as it stands.
type RosterExemption struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

func endExemption(c *call) (answer, error) {
	user, err := c.user()
	if err == nil {
		err = c.none()
	}
	if err != nil {
		return answer{}, err
	}
	return done(), c.deps.Enforcer.Include(c.ctx, user, c.caller.actor)
}

// Compliance is the compliance of a moment. Users are all of the roster, where they were asked for.
type Compliance struct {
	At      time.Time            `json:"at"`
	Current int                  `json:"current"`
	Of      int                  `json:"of"`
	Roster  int                  `json:"roster"`
	States  map[roster.State]int `json:"states"`
	// PastMaxAge are how many have a key that is older than their policy allows, in whatever state they are, but for who is
	// exempt.
	PastMaxAge int               `json:"past_max_age"`
	Users      []roster.Standing `json:"users,omitempty"`
}

func getCompliance(c *call) (answer, error) {
	q := c.query()
	moment, then, withUsers := c.deps.Now(), q.text("at"), q.flag("users")
	if then != "" {
		at, err := period.Instant(then, moment, true)
		if err != nil {
			q.fail("at", err.Error())
		}
		moment = at
	}
	if err := q.end(); err != nil {
		return answer{}, err
	}
	var counts roster.Compliance
	var standings []roster.Standing
	var err error
	if then == "" {
		counts, standings, err = c.deps.Enforcer.Compliance(c.ctx)
	} else {
		counts, standings, err = c.deps.Enforcer.ComplianceAt(c.ctx, moment, audit.LogName(c.deps.Reader.LogName()), c.caller.actor)
	}
	if err != nil {
		return answer{}, err
	}
	current, of := counts.Current()
	view := Compliance{At: moment.UTC(), Current: current, Of: of, Roster: counts.Roster, States: counts.States, PastMaxAge: counts.PastMaxAge}
	if view.States == nil {
		view.States = map[roster.State]int{}
	}
	if withUsers {
		view.Users = standings
	}
	return ok(view), nil
}

// listStandings is a page of where users of the roster stand.
func listStandings(c *call) (answer, error) {
	q := c.query()
	filter := enforce.StandingFilter{}
	if user := q.user("user_id"); user != "" {
		filter.Users = []id.UserID{user}
	}
	if state := word(q, "state", roster.States()...); state != "" {
		filter.States = []roster.State{state}
	}
	limit, filters := q.page(&filter.After)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	filter.Limit = limit + 1
	standings, err := c.deps.Enforcer.Standings(c.ctx, filter)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(standings, limit, filters, func(s roster.Standing) roster.Standing { return s }, func(s roster.Standing) any { return s.UserID })
	return ok(page), err
}
