package enforce

import (
	"context"
	"errors"
)

// Step does what is due by itself. It may run on any replica, any time: each part does nothing where another replica is at
// it, and is safe to repeat.
func (e *Enforcer) Step(ctx context.Context) error {
	return errors.Join(e.policyStep(ctx))
}
