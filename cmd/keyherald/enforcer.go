package main

import (
	"context"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

func newEnforcer(c config, db *postgres.DB, engine *relay.Engine, notices *notice.Notices, log zerolog.Logger) (*enforce.Enforcer, error) {
	approval, err := campaign.ParseApproval(c.Campaigns.Approval)
	if err != nil {
		return nil, fmt.Errorf("campaigns.approval: %w", err)
	}
	return enforce.New(enforce.Config{DB: db, Engine: engine, StatusInterval: c.StatusInterval, Approval: approval, Log: log,
		Moved: func(ctx context.Context, c postgres.Campaign, all campaign.Counts) error {
			return tellCampaign(ctx, notices, c, all)
		}})
}
