package enforce_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/postgres"
)

func TestPeopleAreToldOnceACampaignRestsAndInTheTransactionOfThat(t *testing.T) {
	c := newCompany(t, "required")
	c.people(t, 3)
	var told []campaign.State
	var refuse error
	var err error
	c.enforcer, err = enforce.New(enforce.Config{DB: c.db, Engine: c.engine, Now: c.clock.Now, Log: zerolog.Nop(),
		Moved: func(_ context.Context, moved postgres.Campaign, _ campaign.Counts) error {
			told = append(told, moved.State)
			return refuse
		}})
	check(t, err)
	ctx := t.Context()
	started := c.start(t, everybody())
	_, err = c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	_, err = c.enforcer.PauseCampaign(ctx, started.ID, initiator)
	check(t, err)
	// Of a paused one nothing is told but what it comes to.
	_, err = c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, third)
	check(t, err)
	_, err = c.enforcer.ResumeCampaign(ctx, started.ID, initiator)
	check(t, err)
	refuse = errors.New("the notice cannot be kept")
	if _, err := c.enforcer.AbortCampaign(ctx, started.ID, false, initiator); !errors.Is(err, refuse) {
		t.Errorf("aborting says %v", err)
	}
	if now, _, err := c.db.Campaign(ctx, started.ID); err != nil || now.State != campaign.Running {
		t.Errorf("the campaign is %s though nobody could be told (%v)", now.State, err)
	}
	refuse = nil
	_, err = c.enforcer.AbortCampaign(ctx, started.ID, false, initiator)
	check(t, err)
	if want := []campaign.State{campaign.Paused, campaign.Aborted, campaign.Aborted}; !slices.Equal(told, want) {
		t.Errorf("told of %v, and not of %v", told, want)
	}
}
