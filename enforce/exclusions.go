package enforce

import (
	"context"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// checkExclusions refuses devices whose users the campaign is not for: nothing that it does would be about them.
func checkExclusions(p campaign.Parameters, meant campaign.Meant) error {
	is := make(map[id.UserID]bool, len(meant.Users)+len(meant.NotThere))
	for _, user := range meant.Users {
		is[user] = true
	}
	for _, user := range meant.NotThere {
		is[user] = true // told of as such
	}
	var others []id.UserID
	for _, d := range p.Exclude {
		if !is[d.UserID] {
			others = append(others, id.UserID(string(d.UserID)+"/"+string(d.DeviceID)))
		}
	}
	if len(others) == 0 {
		return nil
	}
	return refusal.New(refusal.Invalid, audit.RefusedNotThere, "devices of users whom the campaign is not for: %s: exclude them by themselves (keyherald devices exclude)", some(others))
}

// CampaignExclusions says of the devices that a campaign excludes since when, and which of them get a key all the same.
func (e *Enforcer) CampaignExclusions(ctx context.Context, c postgres.Campaign) ([]postgres.Exclusion, error) {
	if len(c.Parameters.Exclude) == 0 {
		return nil, nil
	}
	users := make([]id.UserID, len(c.Parameters.Exclude))
	for i, d := range c.Parameters.Exclude {
		users[i] = d.UserID
	}
	rotations, err := e.db.CampaignRotations(ctx, c.ID, users)
	if err != nil {
		return nil, err
	}
	return e.db.Exclusions(ctx, c.Parameters.Exclude, rotations)
}

// DeviceExclusion says of one device since when it is excluded, and whether it gets a key all the same: by the newest rotation
// of its user.
func (e *Enforcer) DeviceExclusion(ctx context.Context, d campaign.Device) (postgres.Exclusion, error) {
	user, _, err := e.db.User(ctx, d.UserID)
	if err != nil {
		return postgres.Exclusion{}, err
	}
	exclusions, err := e.db.Exclusions(ctx, []campaign.Device{d}, map[id.UserID]uuid.UUID{d.UserID: user.Newest.ID})
	if err != nil || len(exclusions) == 0 {
		return postgres.Exclusion{Device: d}, err
	}
	return exclusions[0], nil
}

// planExclusions adds to a plan which devices it excludes, and which of them are within reach of the rotations that would be
// followed.
func (e *Enforcer) planExclusions(ctx context.Context, plan *CampaignPlan) error {
	if len(plan.Parameters.Exclude) == 0 {
		return nil
	}
	places, followed := make(map[id.UserID]int, len(plan.Users)), map[id.UserID]uuid.UUID{}
	for i, u := range plan.Users {
		places[u.UserID] = i
		if u.Begin == campaign.BeginJoin {
			followed[u.UserID] = u.Rotation
		}
	}
	exclusions, err := e.db.Exclusions(ctx, plan.Parameters.Exclude, followed)
	if err != nil {
		return err
	}
	for _, x := range exclusions {
		if i, there := places[x.UserID]; there {
			plan.Users[i].Exclude = append(plan.Users[i].Exclude, x)
		}
	}
	return nil
}
