package api

import (
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/postgres"
)

// CampaignExclusion is a device that a campaign excludes. ExcludedAt is missing where it is not, or not any more. Reach is
// whether it gets a key all the same, by the rotation that is named: one that was triggered before the exclusion.
type CampaignExclusion struct {
	campaign.Device
	ExcludedAt *time.Time     `json:"excluded_at,omitempty"`
	Reach      campaign.Reach `json:"reach,omitempty"`
	Rotation   *uuid.UUID     `json:"rotation,omitempty"`
	NextAction string         `json:"next_action,omitempty"`
}

func exclusionsOf(exclusions []postgres.Exclusion) []CampaignExclusion {
	var views []CampaignExclusion
	for _, x := range exclusions {
		view := CampaignExclusion{Device: x.Device, ExcludedAt: optional(x.Since), Reach: x.Reach, NextAction: x.Reach.NextAction(x.UserID)}
		if x.Rotation != uuid.Nil {
			view.Rotation = &x.Rotation
		}
		views = append(views, view)
	}
	return views
}
