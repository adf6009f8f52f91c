package enforce

import "time"

// How often the steps should be called. A campaign moves as fast as its step, and a policy counts in days while its step
// looks at everybody. Both may run on any replica, any time: each does nothing where another replica is at it, and is
// safe to repeat.
const (
	CampaignInterval = 5 * time.Second
	PolicyInterval   = 30 * time.Second
)
