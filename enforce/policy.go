package enforce

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
)

// PolicyRequest is a policy that is to take the place of the present one, as a whole.
type PolicyRequest struct {
	Document policy.Document
	Reason   string
	// Replaces is the version that whoever asks has seen last; where it is not the newest any more he is refused. Zero does
	// not ask.
	Replaces int64
}

// ErrPolicy means that a policy contradicts itself; the error says every reason.
var ErrPolicy = errors.New("the policy cannot be applied")

// CheckPolicy says everything that is wrong with a document, or worth a look, beside the roster of now.
func (e *Enforcer) CheckPolicy(ctx context.Context, document policy.Document) ([]policy.Finding, error) {
	roster, err := e.db.RosterUsers(ctx)
	if err != nil {
		return nil, err
	}
	return policy.Check(document, roster, e.now()), nil
}

// ApplyPolicy makes a document the company's policy from now on, and returns its version with the warnings about it. One
// that contradicts itself is refused; so is one that is the present policy already.
func (e *Enforcer) ApplyPolicy(ctx context.Context, request PolicyRequest, actor audit.Actor) (version postgres.PolicyVersion, warnings []policy.Finding, err error) {
	event := audit.Event{Actor: actor, Action: audit.PolicyChanged, Subject: audit.OfPolicy(), Outcome: audit.Accepted}
	err = refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		reason, err := refusal.Reason(request.Reason)
		if err != nil {
			return err
		}
		if err := e.db.LockPolicy(ctx); err != nil {
			return err
		}
		event.Time = e.now()
		if warnings, err = e.CheckPolicy(ctx, request.Document); err != nil {
			return err
		}
		if refusing := policy.Refusing(warnings); len(refusing) > 0 {
			why := []error{ErrPolicy}
			for _, f := range refusing {
				why = append(why, f)
			}
			return refusal.New(refusal.Invalid, audit.RefusedPolicy, "%w", errors.Join(why...))
		}
		before, found, err := e.db.NewestPolicy(ctx)
		if err != nil {
			return err
		}
		version = postgres.PolicyVersion{Version: before.Version + 1, CreatedAt: event.Time, CreatedBy: actor.String(), Reason: request.Reason}
		if version.Document, err = request.Document.JSON(); err != nil {
			return err
		}
		version.SHA256 = sha256.Sum256(version.Document)
		switch {
		case request.Replaces != 0 && request.Replaces != before.Version:
			return refusal.New(refusal.Changed, audit.RefusedNotTheNewest, "version %d of the policy is not the newest, which is %d: look at that one first", request.Replaces, before.Version)
		case found && before.SHA256 == version.SHA256:
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "version %d of the policy says the same already", before.Version)
		}
		if err := e.db.PutPolicy(ctx, version); err != nil {
			return err
		}
		event.Detail = audit.Detail{audit.Text("reason", reason), audit.Number("version", version.Version), audit.Number("rules", len(request.Document.Rules)),
			audit.ID("document_sha256", audit.PolicyHash(hex.EncodeToString(version.SHA256[:sha256.Size/2])))}
		return e.db.Append(ctx, event)
	})
	return version, warnings, err
}

// PolicyAt is the policy of a time, of now for a zero one; ok is false where there was none.
func (e *Enforcer) PolicyAt(ctx context.Context, at time.Time) (version postgres.PolicyVersion, ok bool, err error) {
	if at.IsZero() {
		return e.db.NewestPolicy(ctx)
	}
	return e.db.PolicyAt(ctx, at)
}

// maxAgesByPolicy says how old the key of each user may be, with the grace, by the policy of a time; 0 is no bound.
func (e *Enforcer) maxAgesByPolicy(ctx context.Context, at time.Time) (func(id.UserID) time.Duration, error) {
	version, ok, err := e.db.PolicyAt(ctx, at)
	if err != nil || !ok {
		return func(id.UserID) time.Duration { return 0 }, err
	}
	p, err := version.Policy()
	if err != nil {
		return nil, err
	}
	return func(user id.UserID) time.Duration {
		rule, _ := p.RuleFor(user)
		return rule.MaxAge + rule.Grace
	}, nil
}

// Explanation is which rule a user has, and when it comes to what.
type Explanation struct {
	UserID id.UserID
	// Version is the policy's; zero where there is none.
	Version int64
	// Rule is nil where no rule is for him.
	Rule *policy.Rule
	// Ruled is what is known of him; OnRoster says whether he is on the roster, and else nothing is.
	Ruled    postgres.Ruled
	OnRoster bool
	// Verdict is what the rule says of his key; its State is empty where the key's age is not known.
	Verdict policy.Verdict
	// Then is what the server does about it, and when, as a sentence.
	Then string
}

// ExplainPolicy says which rule applies to a user and when. It looks with the same eyes as the step that acts.
func (e *Enforcer) ExplainPolicy(ctx context.Context, user id.UserID) (Explanation, error) {
	x := Explanation{UserID: user}
	if _, _, err := user.Parse(); err != nil {
		return x, refusal.New(refusal.Invalid, audit.RefusedNoUserID, "%q is not a Matrix user id (@name:server)", user)
	}
	version, ok, err := e.db.NewestPolicy(ctx)
	if err != nil {
		return x, err
	} else if !ok {
		x.Then = "nothing: there is no policy"
		return x, nil
	}
	x.Version = version.Version
	p, err := version.Policy()
	if err != nil {
		return x, err
	}
	if rule, ok := p.RuleFor(user); ok {
		x.Rule = &rule
	}
	ruled, err := e.db.Ruled(ctx, []id.UserID{user})
	if err != nil {
		return x, err
	}
	switch {
	case len(ruled) == 0:
		x.Then = "nothing: he is not on the roster, and the policy rotates nobody else"
		return x, nil
	case x.Rule == nil:
		x.Ruled, x.OnRoster, x.Then = ruled[0], true, "nothing: no rule is for him"
		return x, nil
	}
	x.Ruled, x.OnRoster = ruled[0], true
	d := decide(*x.Rule, x.Ruled, e.now())
	x.Verdict, x.Then = d.verdict, d.why
	if frozen, is, err := e.db.Frozen(ctx, false); err != nil {
		return x, err
	} else if is {
		x.Then += fmt.Sprintf("; but all triggers are frozen since %s, and the policy asks for nothing meanwhile", frozen.At.UTC().Format(time.RFC3339))
	}
	return x, nil
}
