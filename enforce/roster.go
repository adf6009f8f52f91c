package enforce

import (
	"context"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/roster"
)

// A roster with which more users would leave than both of these is taken for a mistake, such as half a file.
const (
	mostLeave        = 20
	mostLeavePercent = 10
)

// Roster is a whole roster to be applied: who is not in it leaves.
type Roster struct {
	Entries []roster.Entry
	// AllowRemovals is how many users may leave where that are too many to be meant; 0 is none said.
	AllowRemovals int
}

// RosterChange is what applying a roster changed.
type RosterChange struct {
	Users           int `json:"users"`
	Added           int `json:"added"`
	Left            int `json:"left"`
	Exempted        int `json:"exempted"`
	ExemptionsEnded int `json:"exemptions_ended"`
	// Rotations, Devices and Codes are what ended for those who left.
	Rotations int `json:"rotations_cancelled"`
	Devices   int `json:"devices_revoked"`
	Codes     int `json:"codes_void"`
}

// ApplyRoster makes the roster what is given, all of it or nothing, in one transaction. Applying the same again changes
// nothing and is one event.
func (e *Enforcer) ApplyRoster(ctx context.Context, request Roster, actor audit.Actor) (RosterChange, error) {
	var change RosterChange
	event := audit.Event{Actor: actor, Action: audit.RosterApplied, Subject: audit.OfRoster(), Outcome: audit.Accepted}
	err := refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		change = RosterChange{Users: len(request.Entries)}
		wanted, err := entriesByUser(request.Entries)
		if err != nil {
			return err
		}
		if err := e.db.LockRoster(ctx); err != nil {
			return err
		}
		present, err := e.db.Roster(ctx, postgres.RosterFilter{})
		if err != nil {
			return err
		}
		leaving := make([]id.UserID, 0)
		before := make(map[id.UserID]roster.Entry, len(present))
		for _, row := range present {
			before[row.UserID] = row.Entry
			if _, stays := wanted[row.UserID]; !stays {
				leaving = append(leaving, row.UserID)
			}
		}
		if err := mayLeave(len(leaving), len(present), len(wanted), request.AllowRemovals); err != nil {
			return err
		}
		if err := e.leave(ctx, leaving, actor, &change); err != nil {
			return err
		}
		if err := e.put(ctx, request.Entries, before, actor, &change); err != nil {
			return err
		}
		event.Time, event.Detail = e.now(), audit.Detail{audit.Number("users", change.Users), audit.Number("added", change.Added), audit.Number("left", change.Left),
			audit.Number("exempted", change.Exempted), audit.Number("exemptions_ended", change.ExemptionsEnded)}
		return e.db.Append(ctx, event)
	})
	if err != nil {
		return RosterChange{}, err
	}
	return change, nil
}

// entriesByUser refuses what cannot stand on a roster.
func entriesByUser(entries []roster.Entry) (map[id.UserID]roster.Entry, error) {
	if len(entries) > roster.MostUsers {
		return nil, refusal.New(refusal.Invalid, audit.RefusedTooManyUsers, "the roster has %d users: it may have %d", len(entries), roster.MostUsers)
	}
	byUser := make(map[id.UserID]roster.Entry, len(entries))
	for _, entry := range entries {
		if err := entry.Check(); err != nil {
			return nil, refusal.New(refusal.Invalid, audit.RefusedEntry, "the roster cannot be applied: %w", err)
		}
		if _, twice := byUser[entry.UserID]; twice {
			return nil, refusal.New(refusal.Invalid, audit.RefusedEntry, "the roster cannot be applied: %s is on it twice", entry.UserID)
		}
		byUser[entry.UserID] = entry
	}
	return byUser, nil
}

// mayLeave refuses a roster with which so many would leave that it is more likely a mistake, unless their number was said.
func mayLeave(leaving, present, wanted, allowed int) error {
	tooMany := leaving > mostLeave && leaving*100 > present*mostLeavePercent
	if leaving <= allowed || !tooMany && (wanted > 0 || leaving == 0) {
		return nil
	}
	return refusal.New(refusal.Conflict, audit.RefusedTooManyLeave, "%d of %d users would leave the roster, their rotations be cancelled and their devices revoked, which cannot be taken back: "+
		"is the file whole? If it is meant, say so with --allow-removals %d (allow_removals in the API)", leaving, present, leaving)
}

// leave takes users off the roster and ends what is under way for them.
func (e *Enforcer) leave(ctx context.Context, users []id.UserID, actor audit.Actor, change *RosterChange) error {
	reason, err := audit.NewReason("the user left the roster")
	if err != nil {
		return fmt.Errorf("giving a reason: %w", err)
	}
	if len(users) == 0 {
		return nil
	}
	ended, err := e.engine.Leave(ctx, users, reason, actor)
	if err != nil {
		return err
	}
	events := make([]audit.Event, len(users))
	for i, user := range users {
		left := ended[user]
		change.count(left)
		events[i] = audit.Event{Time: e.now(), Actor: actor, Action: audit.RosterUserLeft, Subject: audit.OfUser(user), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.Number("rotations", left.Rotations), audit.Number("devices", left.Devices), audit.Number("codes", left.Codes)}}
	}
	if err := e.db.RemoveFromRoster(ctx, users); err != nil {
		return err
	}
	return e.db.Append(ctx, events...)
}

func (c *RosterChange) count(left relay.Left) {
	c.Left++
	c.Rotations += left.Rotations
	c.Devices += left.Devices
	c.Codes += left.Codes
}

// put writes the entries that are new or have another exemption than before.
func (e *Enforcer) put(ctx context.Context, entries []roster.Entry, before map[id.UserID]roster.Entry, actor audit.Actor, change *RosterChange) error {
	var changed []roster.Entry
	var events []audit.Event
	now := e.now()
	tell := func(action audit.Action, user id.UserID, detail audit.Detail) {
		events = append(events, audit.Event{Time: now, Actor: actor, Action: action, Subject: audit.OfUser(user), Outcome: audit.Accepted, Detail: detail})
	}
	for _, entry := range entries {
		old, there := before[entry.UserID]
		if there && old.Exemption.Same(entry.Exemption) {
			continue
		}
		changed = append(changed, entry)
		if !there {
			change.Added++
			tell(audit.RosterUserAdded, entry.UserID, nil)
		}
		switch {
		case !entry.Exemption.None():
			reason, err := audit.NewReason(entry.Exemption.Reason)
			if err != nil {
				return refusal.New(refusal.Invalid, audit.RefusedEntry, "the exemption of %s: %w", entry.UserID, err)
			}
			change.Exempted++
			tell(audit.RosterExempted, entry.UserID, audit.Detail{audit.Text("reason", reason), audit.Time("until", entry.Exemption.Until)})
		case there:
			change.ExemptionsEnded++
			tell(audit.RosterExemptionEnded, entry.UserID, nil)
		}
	}
	if err := e.db.PutRoster(ctx, changed, actor.String(), now); err != nil {
		return err
	}
	return e.db.Append(ctx, events...)
}

// AddToRoster puts one user on the roster.
func (e *Enforcer) AddToRoster(ctx context.Context, entry roster.Entry, actor audit.Actor) error {
	return e.changeUser(ctx, entry.UserID, audit.RosterUserAdded, actor, func(ctx context.Context, _ roster.Entry, there bool) error {
		if err := entry.Check(); err != nil {
			return refusal.New(refusal.Invalid, audit.RefusedEntry, "it cannot stand on the roster: %w", err)
		}
		if there {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "%s is on the roster already", entry.UserID)
		}
		if n, err := e.db.RosterSize(ctx); err != nil {
			return err
		} else if n >= roster.MostUsers {
			return refusal.New(refusal.Conflict, audit.RefusedTooManyUsers, "the roster has %d users, and may have no more", n)
		}
		return e.put(ctx, []roster.Entry{entry}, nil, actor, &RosterChange{})
	})
}

// RemoveFromRoster takes one user off the roster and ends what is under way for him, as ApplyRoster does.
func (e *Enforcer) RemoveFromRoster(ctx context.Context, user id.UserID, actor audit.Actor) (RosterChange, error) {
	var change RosterChange
	err := e.changeUser(ctx, user, audit.RosterUserLeft, actor, func(ctx context.Context, _ roster.Entry, there bool) error {
		if !there {
			return notOnRoster(user)
		}
		change = RosterChange{}
		return e.leave(ctx, []id.UserID{user}, actor, &change)
	})
	return change, err
}

// Exempt lets a user of the roster out of the count until a time, with a reason; another exemption takes the place of the
// one he has. It ends by itself.
func (e *Enforcer) Exempt(ctx context.Context, user id.UserID, reason string, until time.Time, actor audit.Actor) error {
	return e.changeUser(ctx, user, audit.RosterExempted, actor, func(ctx context.Context, entry roster.Entry, there bool) error {
		if !there {
			return notOnRoster(user)
		}
		if _, err := refusal.Reason(reason); err != nil {
			return err
		}
		if !until.After(e.now()) {
			return refusal.New(refusal.Invalid, audit.RefusedEndsInThePast, "the exemption would end at %s, which is over: write a later end", until.UTC().Format(time.RFC3339))
		}
		fresh := roster.Entry{UserID: user, Exemption: roster.Exemption{Reason: reason, Until: until}}
		if err := fresh.Check(); err != nil {
			return refusal.New(refusal.Invalid, audit.RefusedEntry, "%w", err)
		}
		if fresh.Exemption.Same(entry.Exemption) {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "%s is exempt in these words until then already", user)
		}
		return e.put(ctx, []roster.Entry{fresh}, map[id.UserID]roster.Entry{user: entry}, actor, &RosterChange{})
	})
}

// Include takes the exemption of a user back.
func (e *Enforcer) Include(ctx context.Context, user id.UserID, actor audit.Actor) error {
	return e.changeUser(ctx, user, audit.RosterExemptionEnded, actor, func(ctx context.Context, entry roster.Entry, there bool) error {
		if !there {
			return notOnRoster(user)
		}
		if entry.Exemption.None() {
			return refusal.New(refusal.Conflict, audit.RefusedNotExempt, "%s has no exemption", user)
		}
		return e.put(ctx, []roster.Entry{{UserID: user}}, map[id.UserID]roster.Entry{user: entry}, actor, &RosterChange{})
	})
}

func notOnRoster(user id.UserID) error {
	return refusal.New(refusal.NotFound, audit.RefusedNotOnRoster, "%s is not on the roster: `keyherald roster list` shows who is", user)
}

// changeUser does something about one user while nobody else changes the roster. entry is his, where he is there.
func (e *Enforcer) changeUser(ctx context.Context, user id.UserID, action audit.Action, actor audit.Actor, do func(ctx context.Context, entry roster.Entry, there bool) error) error {
	event := audit.Event{Actor: actor, Action: action, Subject: audit.OfUser(user)}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		if err := e.db.LockRoster(ctx); err != nil {
			return err
		}
		rows, err := e.db.Roster(ctx, postgres.RosterFilter{Users: []id.UserID{user}})
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(rows, func(r postgres.RosterRow) bool { return r.UserID == user }); i >= 0 {
			return do(ctx, rows[i].Entry, true)
		}
		return do(ctx, roster.Entry{}, false)
	})
}
