package relay

import (
	"context"

	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// policy is the company's policy of now; nil where there is none.
func (e *Engine) policy(ctx context.Context) (*policy.Policy, error) {
	version, ok, err := e.db.NewestPolicy(ctx)
	if err != nil || !ok {
		return nil, err
	}
	return version.Policy()
}

// holdRead says what the rotation of a key that was read is held for: an admin's release where it was read again, and what
// the user's rule says (rotate_after), which has no say in whether a source heeds reads.
func (o *opening) holdRead(fresh *postgres.Rotation, again bool) (hold rotation.Hold, nextAction string) {
	release := "(keyherald rotations release " + fresh.ID.String() + ")"
	if again {
		return rotation.HoldReadAgain, "admin: the key was read again within an hour of a rotation for the same reason: see by whom (keyherald audit list), and release it once that has ended " +
			release + ", or cancel it"
	}
	if o.policy == nil {
		return rotation.HoldNone, ""
	}
	rule, ok := o.policy.RuleFor(fresh.UserID)
	if !ok {
		return rotation.HoldNone, ""
	}
	switch _, open := rule.Windows.Open(o.now); {
	case rule.RotateAfter == policy.AfterNothing:
		return rotation.HoldPolicy, "admin: somebody else read the key, and the policy's rule " + rule.Name + " leaves that to people: make a new version in the KMS, or release it so that the device makes one " +
			release + ", or cancel it"
	case rule.RotateAfter == policy.AfterDisclosureInWindow && !open:
		return rotation.HoldWindow, "none: it goes on when a window of the policy's rule " + rule.Name + " opens; an admin may release it before " + release
	}
	return rotation.HoldNone, ""
}
