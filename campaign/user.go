package campaign

import (
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// UserState is where a user of a campaign stands.
type UserState string

// The states: his turn has not come; he has begun and his device has not said anything (it may be offline); it works; he is
// done; somebody must do something; it came to nothing; he was not rotated and why is told; his rotation was cancelled; the
// campaign ended before his turn.
const (
	Pending        UserState = "pending"
	Waiting        UserState = "waiting"
	Working        UserState = "working"
	Done           UserState = "done"
	NeedsAttention UserState = "needs_attention"
	Failed         UserState = "failed"
	LeftOut        UserState = "left_out"
	Cancelled      UserState = "cancelled"
	NotStarted     UserState = "not_started"
)

// UserStates are all of them.
func UserStates() []UserState {
	return []UserState{Pending, Waiting, Working, Done, NeedsAttention, Failed, LeftOut, Cancelled, NotStarted}
}

// Open reports whether the user's rotation may still move, so that it is looked at.
func (s UserState) Open() bool {
	return s == Waiting || s == Working || s == NeedsAttention || s == Failed || s == Cancelled
}

// Cause is why a user stands where he does, beside the causes of rotations (docs/attention.md).
type Cause string

// The causes why a user is not rotated, or what his rotation came to.
const (
	CauseNotEnrolled  Cause = "not_enrolled"
	CauseExempt       Cause = "exempt"
	CauseNotOnRoster  Cause = "not_on_roster"
	CauseExcluded     Cause = "excluded"
	CauseUnknownPlace Cause = "unknown_place"
	CauseHeld         Cause = "held"
	CauseNotHeld      Cause = "not_held"
	CauseTimedOut     Cause = "timed_out"
	CauseCancelled    Cause = "cancelled"
)

// nextActions say who does what about a cause.
var nextActions = map[Cause]string{
	CauseNotEnrolled:  "admin: enroll a managed device of this user (keyherald enroll), then start a campaign for him",
	CauseExempt:       "nobody: he is exempt; the roster says until when",
	CauseNotOnRoster:  "admin: put him on the roster if he is to be covered (keyherald roster)",
	CauseExcluded:     "nobody: the campaign leaves him out, as it was asked to",
	CauseUnknownPlace: "admin: he had no rotation yet, so it is not known where his key is: start a campaign for him that names the KMS and the path (--kms, --path)",
	CauseHeld:         "admin: his rotation is held; see why (keyherald rotations list --open), then release or cancel it",
	CauseNotHeld:      "nobody: nothing of his is held any more",
	CauseTimedOut:     "operator: his device did not answer for 30 days: see whether keyherald-device runs, then retry",
	CauseCancelled:    "nobody: his rotation was cancelled; keyherald rotations retry takes it up again",
}

// NextAction says who does what about it; empty for what is none of a campaign's causes.
func (c Cause) NextAction() string { return nextActions[c] }

// Standing is where a user stands, why, and who does what about it.
type Standing struct {
	State      UserState
	Cause      Cause
	NextAction string
}

// StandingOf reads a user's standing from his rotation; a superseded one is asked of its successor. nextAction is the
// rotation's own.
func StandingOf(facts rotation.Facts, held bool, nextAction string) Standing {
	switch facts.State {
	case rotation.Done:
		return Standing{State: Done}
	case rotation.Failed:
		return Standing{Failed, Cause(facts.Failure), rotation.NextAction(facts.Failure)}
	case rotation.TimedOut:
		return Standing{Failed, CauseTimedOut, CauseTimedOut.NextAction()}
	case rotation.Cancelled, rotation.Superseded:
		return Standing{Cancelled, CauseCancelled, CauseCancelled.NextAction()}
	case rotation.WaitingForEnrollment:
		return Standing{NeedsAttention, CauseNotEnrolled, nextAction}
	}
	switch {
	case facts.Attention != "":
		if nextAction == "" {
			nextAction = rotation.NextAction(facts.Attention)
		}
		return Standing{NeedsAttention, Cause(facts.Attention), nextAction}
	case held:
		return Standing{Waiting, CauseHeld, nextAction}
	case facts.Stage == protocol.Stage(""):
		return Standing{State: Waiting}
	}
	return Standing{State: Working}
}

// Candidate is a user whose turn has come, as the rule sees him.
type Candidate struct {
	OnRoster, Exempt bool
	// Enrolled is whether he has a managed device.
	Enrolled bool
	// Open is whether he has a rotation that has not ended, and Held whether that waits for an admin.
	Open, Held bool
	// Place is whether it is known where his key is.
	Place bool
}

// Begin is what becomes of a user whose turn has come.
type Begin string

// What may become of him: his rotation is opened, the one that is open already is followed, or what is held is released; or
// he is left out.
const (
	BeginOpen    Begin = "open"
	BeginJoin    Begin = "join"
	BeginRelease Begin = "release"
	BeginLeave   Begin = "leave_out"
)

// Turn says what becomes of a user whose turn has come, and if he is left out, why.
func Turn(kind Kind, c Candidate) (Begin, Cause) {
	if kind == Release {
		switch {
		case c.Held:
			return BeginRelease, ""
		case c.Open:
			return BeginJoin, ""
		}
		return BeginLeave, CauseNotHeld
	}
	switch {
	case !c.OnRoster:
		return BeginLeave, CauseNotOnRoster
	case c.Exempt:
		return BeginLeave, CauseExempt
	case c.Held:
		return BeginLeave, CauseHeld
	case !c.Enrolled:
		return BeginLeave, CauseNotEnrolled
	case c.Open:
		return BeginJoin, ""
	case !c.Place:
		return BeginLeave, CauseUnknownPlace
	}
	return BeginOpen, ""
}
