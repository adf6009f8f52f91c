package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

const (
	// policyPerStep bounds what a step asks for, so that one is soon over.
	policyPerStep = 100
	// overduePerStep bounds the events of a step.
	overduePerStep = 500
	// reclaimInterval is how often a key is made for a user whose key backup somebody else replaces again and again.
	reclaimInterval = 24 * time.Hour
)

// decision is what is to be done about a user.
type decision struct {
	verdict policy.Verdict
	// rotate is why a rotation is to be opened now; empty is not.
	rotate rotation.Reason
	// overdue says that his key is overdue and that nobody was told.
	overdue bool
	// why is a sentence for people.
	why string
}

// decide is the whole rule of what a policy does about a user, for the step that acts and for whoever asks beforehand.
func decide(rule policy.Rule, r postgres.Ruled, now time.Time) decision {
	var d decision
	if now.Before(r.ExemptUntil) {
		d.why = fmt.Sprintf("nothing: he is exempt until %s", r.ExemptUntil.UTC().Format(time.RFC3339))
		return d
	}
	if r.Version == "" || r.Since.IsZero() {
		d.why = "nothing yet: no managed device said which key-backup version is current"
		return d
	}
	d.verdict = rule.Due(policy.Key{User: r.UserID, Created: r.Since, Asked: askedFor(r)}, now)
	d.overdue = d.verdict.Overdue && !r.OverdueTold
	drifted := rule.OnDrift == policy.DriftReclaim && r.Drift == protocol.DriftBackup
	_, placed := rule.Place(r.UserID)
	_, open := rule.Windows.Open(now)
	switch {
	case d.verdict.State == policy.LeftToKMS:
		d.why = "nothing: the KMS is to make the next key"
	case d.verdict.State == policy.Current && !drifted:
		d.why = "nothing: the key is young enough"
	case d.verdict.State == policy.Asked || !askedFor(r).IsZero():
		d.why = fmt.Sprintf("nothing more: it was asked for by rotation %s, which is %s; what that needs `keyherald rotations show` says", r.Asked.Rotation, r.Asked.State)
	case r.Open.Valid:
		d.why = fmt.Sprintf("nothing: rotation %s is under way", r.Open.UUID)
	case !r.Enrolled:
		d.why = "nothing: he has no managed device, so nobody could make a key"
	case !r.Placed && !placed:
		d.why = "nothing: it is not known where his key is in the KMS, since he had no rotation yet and the rule has no place"
	case drifted && now.Sub(r.ReclaimedAt) < reclaimInterval:
		d.why = fmt.Sprintf("nothing: his key backup was replaced again, and a key was made for that at %s already: once a day is enough", r.ReclaimedAt.UTC().Format(time.RFC3339))
	case drifted && !open:
		d.why = "a new key, since somebody else replaced his key backup, when a window opens"
	case drifted:
		d.rotate, d.why = rotation.ReasonDrift, "a new key now, since somebody else replaced his key backup"
	case d.verdict.State == policy.Waiting:
		d.why = "a new key when his turn is"
	default:
		d.rotate, d.why = rotation.ReasonPolicy, "a new key now"
	}
	return d
}

// askedFor is when the policy asked for the successor of the present key; zero where it may ask again: the rotation timed
// out since no device was there, and one was heard of since. What failed or was cancelled is for people.
func askedFor(r postgres.Ruled) time.Time {
	if r.Asked.State == rotation.TimedOut && r.LastSeen.After(r.Asked.EndedAt) {
		return time.Time{}
	}
	return r.Asked.At
}

// StepPolicy asks for the keys that are due by the policy, tells of those that are overdue, and lets go what waits for a
// window. One replica does it at a time, and each user is looked at again under the lock of what changes for him.
func (e *Enforcer) StepPolicy(ctx context.Context) (err error) {
	lock, err := e.db.TryLock(ctx, "policy step")
	if err != nil || lock == nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release(ctx)) }()
	version, ok, err := e.db.NewestPolicy(ctx)
	if err != nil {
		return err
	}
	p := &policy.Policy{}
	if ok {
		if p, err = version.Policy(); err != nil {
			return err
		}
	}
	released := e.releaseWindows(ctx, p)
	if len(p.Rules()) == 0 {
		return released
	}
	users, err := e.db.Ruled(ctx, nil)
	if err != nil {
		return errors.Join(released, err)
	}
	now := e.now()
	type candidate struct {
		user id.UserID
		rule policy.Rule
		due  time.Time
	}
	var due, overdue []candidate
	for _, r := range users {
		rule, ok := p.RuleFor(r.UserID)
		if !ok {
			continue
		}
		d := decide(rule, r, now)
		if d.rotate != rotation.ReasonChanged {
			due = append(due, candidate{r.UserID, rule, d.verdict.DueAt})
		}
		if d.overdue {
			overdue = append(overdue, candidate{r.UserID, rule, d.verdict.DueAt})
		}
	}
	// The oldest keys come first where not all can be rotated now.
	oldest := func(a, b candidate) int { return a.due.Compare(b.due) }
	slices.SortStableFunc(due, oldest)
	slices.SortStableFunc(overdue, oldest)
	all := released
	for _, c := range overdue[:min(len(overdue), overduePerStep)] {
		all = errors.Join(all, e.tellOverdue(ctx, c.user, c.rule))
	}
	room, err := e.policyRoom(ctx, now)
	if err != nil {
		return errors.Join(all, err)
	}
	for _, c := range due[:min(len(due), room)] {
		if err := lock.Held(ctx); err != nil {
			return errors.Join(all, err)
		}
		all = errors.Join(all, e.rotateByPolicy(ctx, c.user, c.rule))
	}
	if left := len(due) - room; left > 0 {
		e.log.Info().Int("users", left).Msg("Keys are due by the policy and wait, since as many were asked for within the hour as storm.limit has")
	}
	return all
}

// policyRoom is how many keys a step may ask for. The policy has the bound of a storm for itself: it cannot bring down
// a homeserver, a broken clock in the table of key versions is noticed before everybody was rotated, and what the KMS
// changes meanwhile is neither held for it nor let through.
func (e *Enforcer) policyRoom(ctx context.Context, now time.Time) (int, error) {
	if _, frozen, err := e.db.Frozen(ctx, false); err != nil || frozen {
		return 0, err
	}
	limit := e.engine.Storm()
	if limit.Off() {
		return policyPerStep, nil
	}
	enrolled, err := e.db.EnrolledUsers(ctx)
	if err != nil {
		return 0, err
	}
	asked, err := e.db.PolicyAsked(ctx, now.Add(-rotation.StormWindow))
	if err != nil {
		return 0, err
	}
	return max(0, min(policyPerStep, limit.Most(enrolled)-asked)), nil
}

// rotateByPolicy opens a user's rotation if it is due still. Rotation, what was asked and events commit together.
func (e *Enforcer) rotateByPolicy(ctx context.Context, user id.UserID, rule policy.Rule) error {
	err := e.db.Txn(ctx, func(ctx context.Context) error {
		// Whatever opens a rotation of this user takes the same lock.
		if err := e.db.LockArrivals(ctx, nil, []id.UserID{user}); err != nil {
			return err
		}
		ruled, err := e.db.Ruled(ctx, []id.UserID{user})
		if err != nil || len(ruled) == 0 {
			return err
		}
		now := e.now()
		d := decide(rule, ruled[0], now)
		if d.rotate == rotation.ReasonChanged {
			return nil
		}
		request := relay.RotateRequest{UserID: user, Reason: d.rotate, Source: postgres.SourcePolicy}
		if d.rotate == rotation.ReasonPolicy {
			request.DueAt = d.verdict.DueAt
		}
		if place, ok := rule.Place(user); ok && !ruled[0].Placed {
			request.KMS, request.Path = place.KMS, place.Path
		}
		opened, err := e.engine.Rotate(ctx, request, audit.ByPolicy(audit.RuleName(rule.Name)))
		if err != nil {
			return err
		}
		return e.db.PutPolicyAsked(ctx, user, ruled[0].Version, opened, d.rotate, now)
	})
	if err != nil {
		return fmt.Errorf("rotating the key of %s by the policy: %w", user, err)
	}
	return nil
}

func (e *Enforcer) tellOverdue(ctx context.Context, user id.UserID, rule policy.Rule) error {
	return e.db.Txn(ctx, func(ctx context.Context) error {
		ruled, err := e.db.Ruled(ctx, []id.UserID{user})
		if err != nil || len(ruled) == 0 {
			return err
		}
		now := e.now()
		d := decide(rule, ruled[0], now)
		if !d.overdue {
			return nil
		}
		if first, err := e.db.PutPolicyOverdue(ctx, user, ruled[0].Version, now); err != nil || !first {
			return err
		}
		return e.db.Append(ctx, audit.Event{Time: now, Actor: audit.ByPolicy(audit.RuleName(rule.Name)), Action: audit.PolicyOverdue, Subject: audit.OfUser(user), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("backup_version", id.KeyBackupVersion(ruled[0].Version)), audit.Time("key_since", ruled[0].Since),
				audit.Time("due_at", d.verdict.DueAt), audit.Time("overdue_at", d.verdict.OverdueAt)}})
	})
}

// releaseWindows lets go the rotations of disclosed keys whose window is open now, or that no rule has wait any more.
func (e *Enforcer) releaseWindows(ctx context.Context, p *policy.Policy) error {
	held, err := e.db.HeldFor(ctx, rotation.HoldWindow)
	if err != nil || len(held) == 0 {
		return err
	}
	var all error
	for _, r := range held {
		rule, ok := p.RuleFor(r.UserID)
		_, open := rule.Windows.Open(e.now())
		if ok && (rule.RotateAfter == policy.AfterNothing || rule.RotateAfter == policy.AfterDisclosureInWindow && !open) {
			continue
		}
		all = errors.Join(all, e.engine.ReleaseHeld(ctx, r.ID, rotation.HoldWindow))
	}
	return all
}
