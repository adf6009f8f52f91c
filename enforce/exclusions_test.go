package enforce_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// lost are a device of each of these users, to be excluded.
func lost(users ...id.UserID) (devices []campaign.Device) {
	for _, u := range users {
		devices = append(devices, campaign.Device{UserID: u, DeviceID: "LOST"})
	}
	return devices
}

// excluded are the users whose devices are.
func (c *company) excluded(t *testing.T, users ...id.UserID) []id.UserID {
	t.Helper()
	all, err := c.db.Excluded(t.Context(), users)
	check(t, err)
	return slices.Sorted(maps.Keys(all))
}

// A stolen device gets no key from the first wave on: that of a user whose turn comes late, that of one whose rotation is open
// already, and that of one who is left out. An admin who lifts it is not overruled when the turn comes.
func TestDevicesAreExcludedOfAllUsersWhenTheFirstWaveBegins(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "required")
	ctx := t.Context()
	c.people(t, 4)
	c.onRoster(t, "@unenrolled:example.org")
	_, err := c.db.Exec(ctx, `UPDATE roster SET exempt_reason = 'on leave', exempt_until = $2 WHERE user_id = $1`, user(1), c.clock.Now().Add(time.Hour))
	check(t, err)
	open := c.change(t, user(2), "1")
	check(t, c.engine.Exclude(ctx, user(3), "LOST", second))
	all := []id.UserID{"@unenrolled:example.org", user(0), user(1), user(2), user(3)}
	p := everybody()
	p.Waves, p.Exclude = []int{100}, append(lost(all...), lost(user(0))...)
	started := c.start(t, p)
	c.step(t)
	if got := c.excluded(t, all...); len(got) != 1 {
		t.Errorf("before it is approved %v are excluded", got)
	}
	_, err = c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	check(t, c.engine.Freeze(ctx, initiator))
	c.step(t)
	if got := c.excluded(t, all...); !slices.Equal(got, all) || c.progress(t, started.ID).Counts.Pending != len(all) {
		t.Errorf("before anybody's turn %v are excluded", got)
	}
	if told := c.told(t); told["exclusion.set accepted"] != len(all) {
		t.Errorf("the log has %v", told)
	}
	check(t, c.engine.Include(ctx, user(0), "LOST", second))
	check(t, c.engine.Thaw(ctx, initiator))
	c.pass(t, 2)
	if users := c.users(t, started.ID, campaign.Waiting); len(users) != 3 || !slices.ContainsFunc(users, func(u postgres.CampaignUser) bool { return u.Rotation == open }) {
		t.Errorf("under way are %+v", users)
	}
	if got := c.excluded(t, all...); slices.Contains(got, user(0)) || len(got) != 4 {
		t.Errorf("after everybody's turn %v are excluded", got)
	}
}

// What is under way is not called back: the plan and the campaign say which device gets its key all the same.
func TestADeviceWithinReachOfARotationThatIsFollowedIsNamed(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	ctx := t.Context()
	c.onRoster(t, user(0))
	c.onRoster(t, user(1))
	c.onRoster(t, user(2))
	device := c.enroll(t, user(0))
	c.enroll(t, user(1))
	c.enroll(t, user(2))
	told, untold := c.change(t, user(0), "1"), c.change(t, user(1), "1")
	check(t, c.db.InsertAttempts(ctx, []postgres.Attempt{{RotationID: told, Number: 1, Device: device, Sequence: 1}}, c.clock.Now()))
	p := everybody()
	p.Waves, p.Exclude = []int{100}, lost(user(0), user(1), user(2))
	reaches := func(exclusions []postgres.Exclusion) map[id.UserID]campaign.Reach {
		reaches := map[id.UserID]campaign.Reach{}
		for _, x := range exclusions {
			reaches[x.UserID] = x.Reach
			if within := x.Reach != campaign.OutOfReach; within != (x.Rotation == told) || within != (x.Reach.NextAction(x.UserID) != "") {
				t.Errorf("of %s it says %+v", x.UserID, x)
			}
		}
		return reaches
	}
	plan, err := c.enforcer.PlanCampaign(ctx, p)
	check(t, err)
	var planned []postgres.Exclusion
	for _, u := range plan.Users {
		planned = append(planned, u.Exclude...)
	}
	within := func(reach campaign.Reach) map[id.UserID]campaign.Reach {
		return map[id.UserID]campaign.Reach{user(0): reach, user(1): campaign.OutOfReach, user(2): campaign.OutOfReach}
	}
	if got := reaches(planned); !maps.Equal(got, within(campaign.MayGetKey)) {
		t.Errorf("the plan says %v", got)
	}
	c.clock.Advance(time.Second)
	started := c.start(t, p)
	c.pass(t, 1)
	now := func() map[id.UserID]campaign.Reach {
		exclusions, err := c.enforcer.CampaignExclusions(ctx, started)
		check(t, err)
		for _, x := range exclusions {
			alone, err := c.enforcer.DeviceExclusion(ctx, x.Device)
			if check(t, err); alone != x {
				t.Errorf("by itself it is %+v, and in the campaign %+v", alone, x)
			}
		}
		return reaches(exclusions)
	}
	// The other rotations are triggered after the exclusion.
	for _, u := range c.users(t, started.ID, campaign.Waiting) {
		if u.Rotation != told {
			check(t, c.db.InsertAttempts(ctx, []postgres.Attempt{{RotationID: u.Rotation, Number: 1, Device: device, Sequence: 1}}, c.clock.Now().Add(time.Second)))
		}
	}
	if got := now(); !maps.Equal(got, within(campaign.MayGetKey)) {
		t.Errorf("once it runs it says %v", got)
	}
	check(t, c.db.PutDelivery(ctx, told, protocol.Delivery{DeviceID: "LOST", Outcome: protocol.OutcomeSent}, c.clock.Now()))
	check(t, c.db.PutDelivery(ctx, untold, protocol.Delivery{DeviceID: "LOST", Outcome: protocol.OutcomeSkippedExcluded}, c.clock.Now()))
	c.finish(t, started.ID, nil)
	c.step(t)
	if got := now(); !maps.Equal(got, within(campaign.GotKey)) {
		t.Errorf("after the push it says %v", got)
	}
}

func TestADeviceOfSomebodyElseIsNamedAndRefused(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 2)
	p := everybody()
	p.Who, p.Exclude = campaign.Who{Users: []id.UserID{user(0)}}, lost(user(0), user(1))
	_, planned := c.enforcer.PlanCampaign(t.Context(), p)
	_, _, started := c.enforcer.StartCampaign(t.Context(), enforce.CampaignRequest{Parameters: p}, initiator)
	for what, err := range map[string]error{"plan": planned, "start": started} {
		code, why, _ := refusal.Of(err)
		if code != refusal.Invalid || why != audit.RefusedNotThere || !strings.Contains(err.Error(), string(user(1))+"/LOST") || strings.Contains(err.Error(), string(user(0))) {
			t.Errorf("the %s gave %v (%s, %s)", what, err, code, why)
		}
	}
	// Who is not there at all is told of as such by the plan.
	p.Who.Users, p.Exclude = []id.UserID{user(0), "@nobody:example.org"}, lost("@nobody:example.org")
	if plan, err := c.enforcer.PlanCampaign(t.Context(), p); err != nil || len(plan.NotThere) != 1 || slices.ContainsFunc(plan.Users, func(u enforce.PlannedUser) bool { return len(u.Exclude) > 0 }) {
		t.Errorf("the plan is %+v, %v", plan, err)
	}
	if got := c.excluded(t, user(0), user(1)); len(got) != 0 {
		t.Errorf("%v are excluded all the same", got)
	}
}
