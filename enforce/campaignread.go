package enforce

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// CampaignProgress is how far a campaign has come. Its users are listed by postgres.DB.CampaignUsers.
type CampaignProgress struct {
	postgres.Campaign
	Waves     []postgres.CampaignWave
	Counts    campaign.Counts
	Approvals []postgres.CampaignApproval
	// RateNow is how many users may begin in a minute, as the homeserver is now.
	RateNow int
	Pace    campaign.Pace
	// Estimate is of a running campaign alone.
	Estimate campaign.Estimate
}

// CampaignProgress reads how far a campaign has come; where there is none it is refused (not found).
func (e *Enforcer) CampaignProgress(ctx context.Context, key uuid.UUID) (p CampaignProgress, err error) {
	var ok bool
	if p.Campaign, ok, err = e.db.Campaign(ctx, key); err != nil {
		return p, err
	} else if !ok {
		return p, refusal.New(refusal.NotFound, audit.RefusedUnknownCampaign, "there is no campaign %s: `keyherald campaign list` shows them", key)
	}
	if p.Waves, err = e.db.CampaignWaves(ctx, key); err != nil {
		return p, err
	}
	if p.Approvals, err = e.db.Approvals(ctx, key); err != nil {
		return p, err
	}
	if p.Pace, err = e.db.CampaignPace(ctx, key); err != nil {
		return p, err
	}
	now := e.now()
	if p.RateNow, err = e.rate(ctx, p.Parameters, now); err != nil {
		return p, err
	}
	p.Counts = Total(p.Waves)
	if p.State != campaign.Running {
		return p, nil
	}
	counts := make([]campaign.Counts, len(p.Waves))
	for i, w := range p.Waves {
		counts[i] = w.Counts
	}
	var opened time.Duration
	if !p.WaveOpenedAt.IsZero() {
		opened = now.Sub(p.WaveOpenedAt)
	}
	p.Estimate = campaign.EndOf(p.Parameters, max(p.Wave, 1), counts, p.RateNow, p.Pace, opened, now)
	return p, nil
}
