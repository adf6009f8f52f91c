package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/glob"
)

// Policy is a document that was checked.
type Policy struct{ rules []Rule }

// Rule is a statement that was checked.
type Rule struct {
	Name        string
	MaxAge      time.Duration
	Windows     Windows
	Jitter      time.Duration
	Grace       time.Duration
	Action      Action
	RotateAfter RotateAfter
	OnDrift     OnDrift

	place *Place
	all   bool
	globs []string
	users map[id.UserID]bool
}

// New is the policy of a document. The error is the first of what Check refuses.
func New(d Document) (*Policy, error) {
	p, findings := compile(d)
	for _, f := range findings {
		if f.Refused {
			return nil, f
		}
	}
	return p, nil
}

// Rules are the rules in their order.
func (p *Policy) Rules() []Rule { return p.rules }

// RuleFor is the rule of a user: the first in the document's order that is for him, and ok is false where none is.
func (p *Policy) RuleFor(user id.UserID) (rule Rule, ok bool) {
	for _, r := range p.rules {
		if r.isFor(user) {
			return r, true
		}
	}
	return Rule{}, false
}

func (r Rule) isFor(user id.UserID) bool {
	if r.all || r.users[user] {
		return true
	}
	for _, g := range r.globs {
		if glob.Match(g, string(user)) {
			return true
		}
	}
	return false
}

// Place is where the key of a user is who had no rotation yet; ok is false where the rule does not say.
func (r Rule) Place(user id.UserID) (place Place, ok bool) {
	if r.place == nil {
		return Place{}, false
	}
	return Place{r.place.KMS, strings.ReplaceAll(r.place.Path, "{user}", user.Localpart())}, true
}

// Key is a user's key, as the rules see it.
type Key struct {
	User    id.UserID
	Created time.Time
	// Asked is when the policy asked for this key's successor; zero where it did not.
	Asked time.Time
}

// State is how a key stands by its rule.
type State string

// The states: younger than its rule allows; older, and waiting for its turn; to be rotated now; asked for already; older,
// and the KMS is to make the next one.
const (
	Current   State = "current"
	Waiting   State = "waiting"
	Due       State = "due"
	Asked     State = "asked"
	LeftToKMS State = "left_to_kms"
)

// Verdict is what a rule says of a key.
type Verdict struct {
	State State
	// DueAt is when the key reaches its greatest age; OverdueAt is when the grace after that is over.
	DueAt, OverdueAt time.Time
	// OpensAt is when the key's turn is or was: a window is open then, and the user's part of the jitter has passed. Of one
	// that waits since its window closed before it was rotated, it is when the next one opens. It is zero where the KMS
	// makes the keys.
	OpensAt time.Time
	// Overdue says that the grace is over, whatever the state.
	Overdue bool
}

// Due says how a key stands at a time. It is the same for everybody who asks: the jitter is made of the user and the time
// at which the key is due.
func (r Rule) Due(key Key, now time.Time) Verdict {
	v := Verdict{State: Current, DueAt: key.Created.Add(r.MaxAge)}
	v.OverdueAt = v.DueAt.Add(r.Grace)
	v.Overdue = !now.Before(v.OverdueAt)
	old := !now.Before(v.DueAt)
	if r.Action == KMSGenerates {
		if old {
			v.State = LeftToKMS
		}
		return v
	}
	v.OpensAt = r.Windows.After(v.DueAt, r.jitter(key.User, v.DueAt))
	if !old {
		return v
	}
	_, open := r.Windows.Open(now)
	switch {
	case !key.Asked.IsZero():
		v.State = Asked
	case now.Before(v.OpensAt):
		v.State = Waiting
	case !open:
		v.State, v.OpensAt = Waiting, r.Windows.Next(now)
	default:
		v.State = Due
	}
	return v
}

// jitter is a user's part of the rule's jitter, in whole seconds and less than all of it.
func (r Rule) jitter(user id.UserID, due time.Time) time.Duration {
	seconds := uint64(r.Jitter / time.Second)
	if seconds == 0 {
		return 0
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(user+"\x00"), uint64(due.Unix())))
	return time.Duration(binary.BigEndian.Uint64(sum[:8])%seconds) * time.Second
}
