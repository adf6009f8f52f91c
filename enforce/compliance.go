package enforce

import (
	"context"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/roster"
)

// MaxAges says how old the key of each user may be, with every grace in it, by the rules of a time; 0 is no bound.
type MaxAges func(ctx context.Context, at time.Time) (func(id.UserID) time.Duration, error)

// toldOnce is for how long a status that says nothing new is not in the audit log.
const toldOnce = 24 * time.Hour

// StandingFilter chooses users of the roster, in the order of user ids: who comes after After, at most Limit (0 for all), in
// one of States (none for all), of Users alone unless it is nil.
type StandingFilter struct {
	After  id.UserID
	Limit  int
	States []roster.State
	Users  []id.UserID
}

// standingsPage is how many users are read at once where those in some states are looked for.
const standingsPage = 1000

// Standings says where users of the roster stand now.
func (e *Enforcer) Standings(ctx context.Context, filter StandingFilter) ([]roster.Standing, error) {
	now := e.now()
	maxAge, err := e.maxAges(ctx, now)
	if err != nil {
		return nil, err
	}
	page := postgres.RosterFilter{After: filter.After, Limit: filter.Limit, Users: filter.Users}
	if filter.Limit > 0 && len(filter.States) > 0 {
		page.Limit = max(filter.Limit, standingsPage)
	}
	var standings []roster.Standing
	for {
		facts, err := e.db.Coverage(ctx, page)
		if err != nil {
			return nil, err
		}
		for _, f := range facts {
			standing := e.rules.Classify(f, maxAge(f.Entry.UserID), now)
			if len(filter.States) > 0 && !slices.Contains(filter.States, standing.State) {
				continue
			}
			standings = append(standings, standing)
			if len(standings) == filter.Limit {
				return standings, nil
			}
		}
		if page.Limit == 0 || len(facts) < page.Limit {
			return standings, nil
		}
		page.After = facts[len(facts)-1].Entry.UserID
	}
}

// Compliance counts the roster as it stands, and says where each user does, in the order of user ids.
func (e *Enforcer) Compliance(ctx context.Context) (roster.Compliance, []roster.Standing, error) {
	standings, err := e.Standings(ctx, StandingFilter{})
	return count(standings), standings, err
}

// ComplianceAt is Compliance at an earlier time: the roster, devices, rotations and statuses of then, as the audit log tells
// of them, and the policies of then. A status that says nothing new is told once a day, so a device is silent a day later
// than now. Reading the log is an event.
func (e *Enforcer) ComplianceAt(ctx context.Context, at time.Time, log audit.LogName, actor audit.Actor) (roster.Compliance, []roster.Standing, error) {
	now := e.now()
	if at.After(now) {
		return roster.Compliance{}, nil, refusal.New(refusal.Invalid, audit.RefusedEntry, "%s is not over yet: leave it out for now", at.UTC().Format(time.RFC3339))
	}
	maxAge, err := e.maxAges(ctx, at)
	if err != nil {
		return roster.Compliance{}, nil, err
	}
	err = e.db.Append(ctx, audit.Event{Time: now, Actor: actor, Action: audit.LogRead, Subject: audit.OfLog(log), Outcome: audit.Accepted,
		Detail: audit.Detail{audit.Word("command", audit.CommandCompliance), audit.Time("until", at)}})
	if err != nil {
		return roster.Compliance{}, nil, err
	}
	facts, err := e.db.CoverageAt(ctx, at)
	if err != nil {
		return roster.Compliance{}, nil, err
	}
	rules := e.rules
	rules.ToldOnce = toldOnce
	standings := make([]roster.Standing, len(facts))
	for i, f := range facts {
		standings[i] = rules.Classify(f, maxAge(f.Entry.UserID), at)
	}
	return count(standings), standings, nil
}

func count(standings []roster.Standing) roster.Compliance {
	var c roster.Compliance
	for _, s := range standings {
		c.Add(s)
	}
	return c
}
