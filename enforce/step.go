package enforce

import (
	"context"
	"errors"
	"time"
)

// StepInterval is how often Step should be called: a campaign moves as fast as that.
const StepInterval = 5 * time.Second

// Step does what is due by itself. It may run on any replica, any time: each part does nothing where another replica is at
// it, and is safe to repeat.
func (e *Enforcer) Step(ctx context.Context) error {
	return errors.Join(e.policyStep(ctx), e.StepCampaigns(ctx))
}
