// Package enforce is the company's will at work: who must be covered (roster), what rules run by themselves (policies), and
// how a company is moved (campaigns). It asks relay for rotations, one transaction per step with its audit events, and
// leaves the rules to the pure rooms beside it. Rows are the truth: every step locks its row and looks again.
package enforce

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/roster"
)

// Config is what an Enforcer stands on.
type Config struct {
	DB     *postgres.DB
	Engine *relay.Engine
	// StatusInterval is how often managed devices send a status; default one hour, as theirs.
	StatusInterval time.Duration
	// MaxAges says how old keys may be; nil is as the policy says.
	MaxAges MaxAges
	// Moved, where it is there, is told in the transaction in which a campaign ended or goes on no more by itself.
	Moved func(ctx context.Context, c postgres.Campaign, all campaign.Counts) error
	// Approval says which campaigns a second admin must approve; the zero value is all of them.
	Approval campaign.ApprovalRule
	Now      func() time.Time
	Log      zerolog.Logger
}

// Enforcer holds no state of its own.
type Enforcer struct {
	db       *postgres.DB
	engine   *relay.Engine
	rules    roster.Config
	maxAges  MaxAges
	moved    func(ctx context.Context, c postgres.Campaign, all campaign.Counts) error
	approval campaign.ApprovalRule
	now      func() time.Time
	log      zerolog.Logger
}

// New makes an Enforcer.
func New(config Config) (*Enforcer, error) {
	if config.DB == nil || config.Engine == nil {
		return nil, errors.New("enforce: database and engine are needed")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	e := &Enforcer{db: config.DB, engine: config.Engine, rules: roster.Config{StatusInterval: config.StatusInterval}, maxAges: config.MaxAges, moved: config.Moved, approval: config.Approval, now: config.Now, log: config.Log}
	if e.maxAges == nil {
		e.maxAges = e.maxAgesByPolicy
	}
	return e, nil
}
