package campaign

import (
	"fmt"
	"strconv"
	"strings"
)

// ApprovalRule says which campaigns need a second admin's approval.
type ApprovalRule struct {
	never bool
	above int
}

// DefaultApproval is for campaigns of more than 20 users.
func DefaultApproval() ApprovalRule { return ApprovalRule{above: 20} }

// ParseApproval reads required, never, or "above N" (users).
func ParseApproval(text string) (ApprovalRule, error) {
	switch text {
	case "required":
		return ApprovalRule{}, nil
	case "never":
		return ApprovalRule{never: true}, nil
	}
	if number, ok := strings.CutPrefix(text, "above "); ok {
		if n, err := strconv.Atoi(number); err == nil && n >= 0 {
			return ApprovalRule{above: n}, nil
		}
	}
	return ApprovalRule{}, fmt.Errorf("%q says nothing about approval: write required, never, or above 20 (users)", text)
}

// String is the rule as ParseApproval reads it.
func (r ApprovalRule) String() string {
	switch {
	case r.never:
		return "never"
	case r.above == 0:
		return "required"
	}
	return "above " + strconv.Itoa(r.above)
}

// Needed reports whether a campaign of so many users needs approval.
func (r ApprovalRule) Needed(users int) bool { return !r.never && users > r.above }
