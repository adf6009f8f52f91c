package enforce_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/postgres"
)

// faulty has the company's enforcer stand on a database whose writes pass the recorder.
func (c *company) faulty(t *testing.T, recorder *faults.Recorder) {
	t.Helper()
	connector, err := pq.NewConnector(c.database.WriterURL)
	check(t, err)
	db, err := postgres.OpenWith(t.Context(), sql.OpenDB(recorder.Connector("PostgreSQL", connector)), c.database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	c.on(t, db, "never")
}

// act is something that is done to a campaign and repeated until it succeeds, as whoever asked for it does.
type act struct {
	name string
	do   func(t *testing.T, c *company, started postgres.Campaign, request enforce.CampaignRequest) error
}

// Every write of a start, a step and an abort fails once, before and after it took effect. Whoever repeats it finds one
// campaign, whose users have one rotation each, and a log that tells of each effect once.
func TestACampaignsWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	t.Parallel()
	for _, a := range []act{
		{"start", func(t *testing.T, c *company, _ postgres.Campaign, request enforce.CampaignRequest) error {
			_, _, err := c.enforcer.StartCampaign(t.Context(), request, initiator)
			return err
		}},
		{"step", func(t *testing.T, c *company, _ postgres.Campaign, _ enforce.CampaignRequest) error {
			return c.enforcer.StepCampaigns(t.Context())
		}},
		{"abort", func(t *testing.T, c *company, started postgres.Campaign, _ enforce.CampaignRequest) error {
			_, err := c.enforcer.AbortCampaign(t.Context(), started.ID, true, second)
			if err != nil && c.progress(t, started.ID).State == campaign.Aborted {
				// It had taken effect, and whoever asks again is told so.
				return nil
			}
			return err
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			recorder := &faults.Recorder{}
			points := tryAct(t, a, recorder, faults.Fault{})
			table := faults.Table(points)
			if len(table) < 3 {
				t.Fatalf("only these writes were found: %v", points)
			}
			for _, fault := range table {
				t.Run(fault.String(), func(t *testing.T) {
					tryAct(t, a, recorder, fault)
					if !recorder.Fired() {
						t.Error("it did not come to this write")
					}
				})
			}
		})
	}
}

// tryAct does one act of a campaign of a fresh company with a fault, does it again where it failed, goes on to the end and
// looks at what came of it.
func tryAct(t *testing.T, a act, recorder *faults.Recorder, fault faults.Fault) []faults.Point {
	t.Helper()
	c := newCompany(t, "never")
	c.people(t, 12)
	joined := c.change(t, user(0), "1")
	request := enforce.CampaignRequest{Parameters: everybody(), IdempotencyKey: "once"}
	request.Parameters.Waves, request.Parameters.Rate, request.Parameters.Exclude = []int{50, 100}, 5, lost(user(0), user(5))
	var started postgres.Campaign
	if a.name != "start" {
		var err error
		started, _, err = c.enforcer.StartCampaign(t.Context(), request, initiator)
		check(t, err)
		if a.name == "abort" {
			c.pass(t, 1)
		}
	}
	c.faulty(t, recorder)
	c.clock.Advance(time.Minute)
	recorder.Arm(fault, nil)
	err := a.do(t, c, started, request)
	points := recorder.Points()
	if failed := err != nil; failed != recorder.Fired() && a.name != "abort" {
		t.Errorf("it failed with %v, and the fault fired: %t", err, recorder.Fired())
	}
	fired := recorder.Fired()
	if err != nil {
		check(t, a.do(t, c, started, request))
	}
	started, fresh, err := c.enforcer.StartCampaign(t.Context(), request, initiator)
	if err != nil || fresh {
		t.Fatalf("started once more: %v, another: %t", err, fresh)
	}
	c.pass(t, 2)
	c.finish(t, started.ID, nil)
	c.pass(t, 2)
	c.finish(t, started.ID, nil)
	c.step(t)
	c.consistent(t, started, a.name == "abort", joined.String())
	if fault.Label != "" && !fired {
		t.Errorf("the fault did not fire; the writes were %v", points)
	}
	return points
}

// consistent looks at users, rotations and log of a campaign that has ended.
func (c *company) consistent(t *testing.T, started postgres.Campaign, aborted bool, joined string) {
	t.Helper()
	p := c.progress(t, started.ID)
	if want := map[bool]campaign.State{true: campaign.Aborted, false: campaign.Finished}[aborted]; p.State != want {
		t.Errorf("in the end it is %s: %+v", p.State, p.Counts)
	}
	asked := 0
	for _, u := range c.users(t, started.ID, "") {
		rotations, err := c.db.Rotations(t.Context(), u.UserID, false)
		check(t, err)
		begun := u.State != campaign.NotStarted
		if !begun && len(rotations) == 1 && rotations[0].ID.String() == joined {
			continue
		}
		if len(rotations) > 1 || (len(rotations) == 1) != begun || begun && rotations[0].ID != u.Rotation {
			t.Errorf("%s is %s, and has %d rotations", u.UserID, u.State, len(rotations))
		}
		if begun && !u.Joined {
			asked++
		}
	}
	told := c.told(t)
	count := func(action string) int { return told[action+" accepted"] }
	if count("campaign.started") != 1 || count("rotation.asked") != asked || count("campaign.finished")+count("campaign.aborted") != 1 {
		t.Errorf("the log tells of %d starts, %d rotations of %d, %d ends", count("campaign.started"), count("rotation.asked"), asked, count("campaign.finished")+count("campaign.aborted"))
	}
	if excluded := c.excluded(t, user(0), user(5)); len(excluded) != 2 || count("exclusion.set") != 2 {
		t.Errorf("devices of %v are excluded, and the log tells of %d", excluded, count("exclusion.set"))
	}
	if aborted && p.Counts.Cancelled != count("rotation.cancelled") {
		t.Errorf("%d are cancelled, and the log tells of %d", p.Counts.Cancelled, count("rotation.cancelled"))
	}
	if waves := count("campaign.wave_started"); !aborted && (waves != 2 || count("campaign.wave_passed") != 2) {
		t.Errorf("the log tells of %d waves that began, %d that passed", waves, count("campaign.wave_passed"))
	}
}
