// Package campaign is how a company is moved: whom a campaign is for, in which waves, when a wave has passed and when
// nobody may go on, how fast, and when it is likely to end. It is pure: the rules are tables, and everybody else asks them.
//
// A campaign's users are fixed when it is started, and so is each one's wave. A wave's users get their rotations at the
// rate that is allowed; what became of them is read from the rotations. A wave that has passed makes room for the next.
package campaign

import (
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/rotation"
)

// Kind is what a campaign does with its users.
type Kind string

// The kinds: each user's managed device makes a new key; or the rotations go on that the storm limit holds.
const (
	Rotate  Kind = "rotate"
	Release Kind = "release"
)

// State is where a campaign stands.
type State string

// The states of a campaign. The last three are ends; users that are under way then are followed until they are done.
const (
	AwaitingApproval State = "awaiting_approval"
	Running          State = "running"
	Paused           State = "paused"
	Finished         State = "finished"
	Stopped          State = "stopped"
	Aborted          State = "aborted"
)

// transitions are the moves that exist; Allowed asks this table.
var transitions = map[State][]State{
	AwaitingApproval: {Running, Aborted},
	Running:          {Paused, Finished, Stopped, Aborted},
	// A change of what was approved needs another approval.
	Paused: {Running, AwaitingApproval, Aborted},
}

// Allowed reports whether a campaign may move from one state to another.
func Allowed(from, to State) bool { return slices.Contains(transitions[from], to) }

// Ended reports whether no user is begun any more.
func (s State) Ended() bool { return s == Finished || s == Stopped || s == Aborted }

// Device is a device of a user.
type Device struct {
	UserID   id.UserID   `json:"user_id"`
	DeviceID id.DeviceID `json:"device_id"`
}

// Parameters are what a campaign was asked to be, and what an approval is for.
type Parameters struct {
	Kind Kind `json:"kind"`
	Who  Who  `json:"who"`
	// KMS and Path are where the keys are; in the path {user} is the localpart of the user's Matrix id. Both empty is where
	// each key was rotated last.
	KMS  string `json:"kms,omitempty"`
	Path string `json:"path,omitempty"`
	// KeyReason is what the devices are told of why: empty for a plain change.
	KeyReason rotation.Reason `json:"key_reason,omitempty"`
	// Exclude are devices that get no key by this campaign or later, until that is lifted.
	Exclude []Device `json:"exclude,omitempty"`
	// Waves are the percents of the users that have begun once each wave has; they grow, and the last is 100.
	Waves []int `json:"waves"`
	// PassPercent is how many percent of a wave must be done for it to pass.
	PassPercent int `json:"pass_percent"`
	// MaxWait is how long a wave is waited for after its last user has begun; then it passes if no more than MaxWaiting percent
	// of it are still waited for.
	MaxWait    time.Duration `json:"max_wait"`
	MaxWaiting int           `json:"max_waiting"`
	// MaxFailures is above how many percent of those that came to an end a campaign stops: failed ÷ (done + failed).
	MaxFailures int `json:"max_failures"`
	// Rate is how many users begin in a minute at most. Where the homeserver takes longer than MaxLatency for a message,
	// it is that many times fewer.
	Rate       int           `json:"rate"`
	MaxLatency time.Duration `json:"max_latency"`
	// Reason and Ticket are the admin's, for the audit log.
	Reason string `json:"reason"`
	Ticket string `json:"ticket,omitempty"`
}

// MinSettled is how many users must have come to an end before a failure rate says anything.
const MinSettled = 20

// ApprovalLife is how long an approval may be asked for, and how long it is good for what begins under it.
const ApprovalLife = 24 * time.Hour

// Defaults are the parameters of a campaign of which nothing was said. What was said is put over them, so that a 0 that was
// said stays one.
func Defaults() Parameters {
	return Parameters{Kind: Rotate, Waves: []int{1, 10, 100}, PassPercent: 95, MaxWait: 24 * time.Hour, MaxWaiting: 20, MaxFailures: 10, Rate: 120, MaxLatency: time.Second}
}
