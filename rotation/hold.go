package rotation

// Hold is what a rotation that is held waits for.
type Hold string

// The holds: an admin's release after a storm of changes, or where the key that was made for a disclosed one was read as
// well, or where the user's policy leaves a disclosed key to people; the window of that policy; or the audit log being
// signed again.
const (
	HoldNone        Hold = ""
	HoldStorm       Hold = "storm"
	HoldReadAgain   Hold = "read_again"
	HoldLogUnsigned Hold = "log_unsigned"
	HoldPolicy      Hold = "policy"
	HoldWindow      Hold = "window"
)

// Reason is why a key was rotated.
type Reason string

// The reasons that are told apart: a plain change, a key that somebody else may have, one that is as old as its policy
// allows, and a key backup that somebody else replaced.
const (
	ReasonChanged    Reason = ""
	ReasonCompromise Reason = "compromise"
	ReasonDisclosed  Reason = "disclosed"
	ReasonPolicy     Reason = "policy"
	ReasonDrift      Reason = "drift"
)

// Urgent reports whether a rotation goes on where others wait for the audit log to be signed: what it leaves undone is
// worse than what an unsigned log leaves unproved.
func (r Reason) Urgent() bool { return r == ReasonCompromise || r == ReasonDisclosed }
