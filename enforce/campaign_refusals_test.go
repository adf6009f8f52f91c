package enforce_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

func TestACampaignThatIsStartedTwiceWithOneKeyIsOne(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 3)
	request := enforce.CampaignRequest{Parameters: everybody(), IdempotencyKey: "monday"}
	first, fresh, err := c.enforcer.StartCampaign(t.Context(), request, initiator)
	check(t, err)
	if !fresh {
		t.Error("the first start is none")
	}
	c.onRoster(t, "@new:example.org")
	again, fresh, err := c.enforcer.StartCampaign(t.Context(), request, second)
	if err != nil || fresh || again.ID != first.ID {
		t.Errorf("started again: %v, %t, another: %t", err, fresh, again.ID != first.ID)
	}
	request.Parameters.Rate = 7
	if _, _, err := c.enforcer.StartCampaign(t.Context(), request, initiator); !refused(err, refusal.Conflict) {
		t.Errorf("the same key with other parameters gave %v", err)
	}
	if told := c.told(t); told["campaign.started accepted"] != 1 || told["campaign.started refused"] != 1 {
		t.Errorf("the log has %v", told)
	}
}

func TestWhatIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 3)
	for name, change := range map[string]func(p *campaign.Parameters){
		"nobody is said":                  func(p *campaign.Parameters) { p.Who = campaign.Who{} },
		"a glob that matches nobody":      func(p *campaign.Parameters) { p.Who = campaign.Who{Globs: []string{"@nobody*:example.org"}} },
		"a user who is not on the roster": func(p *campaign.Parameters) { p.Who = campaign.Who{Users: []id.UserID{user(0), "@eve:example.org"}} },
		"an exception for nobody":         func(p *campaign.Parameters) { p.Who.Except = []string{"@usr000:*"} },
		"everybody is excepted":           func(p *campaign.Parameters) { p.Who.Except = []string{"@*:*"} },
		"a device of somebody else": func(p *campaign.Parameters) {
			p.Who.Except, p.Exclude = []string{string(user(2))}, []campaign.Device{{UserID: user(0), DeviceID: "LOST"}, {UserID: user(2), DeviceID: "OTHER"}}
		},
		"waves that do not grow":      func(p *campaign.Parameters) { p.Waves = []int{10, 10, 100} },
		"waves that do not reach all": func(p *campaign.Parameters) { p.Waves = []int{10} },
		"no reason":                   func(p *campaign.Parameters) { p.Reason = "" },
		"a path without the user":     func(p *campaign.Parameters) { p.Path = "keyherald/key" },
		"a release of what is not held": func(p *campaign.Parameters) {
			*p = allHeld()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := everybody()
			change(&p)
			if _, _, err := c.enforcer.StartCampaign(t.Context(), enforce.CampaignRequest{Parameters: p}, initiator); !refused(err, refusal.Invalid) {
				t.Errorf("it gave %v", err)
			}
		})
	}
	if told := c.told(t); told["campaign.started refused"] != 11 {
		t.Errorf("the log has %v", told)
	}
}

func TestWhatTheStormLimitHoldsIsReleasedInWaves(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 23)
	held := map[id.UserID]bool{}
	for i := range 23 {
		r := c.rotation(t, c.change(t, user(i), "1"))
		held[user(i)] = r.Held
	}
	// A campaign that makes keys leaves them to this one.
	rotate := everybody()
	rotate.Waves = []int{100}
	other := c.start(t, rotate)
	c.pass(t, 1)
	if left := c.users(t, other.ID, campaign.LeftOut); len(left) != 20 || left[0].Cause != campaign.CauseHeld {
		t.Errorf("left out by the other campaign are %+v", left)
	}
	started := c.start(t, allHeld())
	if started.Users != 20 {
		t.Fatalf("it is for %d users, and %v are held", started.Users, held)
	}
	c.pass(t, 1)
	begun := c.users(t, started.ID, campaign.Waiting)
	if len(begun) != 2 {
		t.Fatalf("in the first wave: %+v", begun)
	}
	for _, u := range begun {
		if r := c.rotation(t, u.Rotation); r.Held || r.UserID != u.UserID {
			t.Errorf("the rotation of %s is held: %t", r.UserID, r.Held)
		}
	}
	c.finish(t, started.ID, nil)
	c.pass(t, 2)
	if n := len(c.users(t, started.ID, campaign.Waiting)); n != 18 {
		t.Errorf("in the second wave are %d", n)
	}
	if told := c.told(t); told["rotation.released accepted"] != 20 || told["rotation.asked accepted"] != 0 {
		t.Errorf("the log has %v", told)
	}
}

func TestTheKeyAndTheDevicesHearWhatTheCampaignWasAskedFor(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 1)
	p := everybody()
	p.Waves, p.KeyReason = []int{100}, rotation.ReasonCompromise
	started := c.start(t, p)
	c.pass(t, 1)
	r := c.rotation(t, c.users(t, started.ID, campaign.Waiting)[0].Rotation)
	if r.Reason != rotation.ReasonCompromise || r.Source != postgres.SourceCampaign || r.KMS.Path != "keyherald/user000/key" {
		t.Errorf("the rotation is of %q, for %q, at %s", r.Source, r.Reason, r.KMS.Path)
	}
}

func TestADeclaredRestorePausesCampaigns(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 3)
	started := c.start(t, everybody())
	c.pass(t, 1)
	_, err := c.engine.Restore(t.Context(), "FRESH", "the disk broke", second)
	check(t, err)
	c.pass(t, 1)
	if p := c.progress(t, started.ID); p.State != campaign.Paused || p.StateCause != string(audit.CauseRestored) {
		t.Errorf("after a restore it is %s (%s)", p.State, p.StateCause)
	}
	if told := c.told(t); told["campaign.paused accepted"] != 1 {
		t.Errorf("the log has %v", told)
	}
	_, err = c.enforcer.ResumeCampaign(t.Context(), started.ID, second)
	check(t, err)
}

// A campaign's step locks the campaign first and its users' rotations then; a restore that did it the other way round would
// have one of the two fail for a deadlock.
func TestARestoreWaitsForACampaignsStepWithoutHoldingRotations(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 3)
	started := c.start(t, everybody())
	c.pass(t, 1)
	moving := c.users(t, started.ID, campaign.Waiting)[0].Rotation
	c.report(t, moving, working)
	ctx := t.Context()
	restored := make(chan error, 1)
	check(t, c.db.Txn(ctx, func(ctx context.Context) error {
		if _, _, err := c.db.LockCampaign(ctx, started.ID); err != nil {
			return err
		}
		go func() {
			_, err := c.engine.Restore(t.Context(), "FRESH", "the disk broke", second)
			restored <- err
		}()
		err := keyheraldtest.Until(ctx, time.Minute, func() error {
			var waiting int
			err := c.db.QueryRow(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
			if err == nil && waiting == 0 {
				err = errors.New("the restore does not wait yet")
			}
			return err
		})
		if err != nil {
			return err
		}
		_, _, err = c.db.LockRotation(ctx, moving)
		return err
	}))
	check(t, <-restored)
}

// The company's own will is no storm, and does not use up what is let through of one.
func TestACampaignIsNoStorm(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 30)
	p := everybody()
	p.Waves, p.Who = []int{100}, campaign.Who{Globs: []string{"@user00*:example.org"}}
	started := c.start(t, p)
	c.pass(t, 1)
	for _, u := range c.users(t, started.ID, campaign.Waiting) {
		if c.rotation(t, u.Rotation).Held {
			t.Errorf("the rotation of %s is held", u.UserID)
		}
	}
	for i := range 4 {
		if held := c.rotation(t, c.change(t, user(20+i), "1")).Held; held != (i == 3) {
			t.Errorf("change %d is held: %t", i+1, held)
		}
	}
}

func TestARotationThatIsOvertakenIsFollowed(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 1)
	first := c.change(t, user(0), "1")
	started := c.start(t, everybody())
	c.pass(t, 1)
	next := c.change(t, user(0), "2")
	c.step(t)
	if users := c.users(t, started.ID, campaign.Waiting); len(users) != 1 || users[0].Rotation != next || next == first {
		t.Errorf("after a newer version: %+v", users)
	}
	c.report(t, next, doneFacts)
	c.step(t)
	if p := c.progress(t, started.ID); p.Counts.Done != 1 {
		t.Errorf("when that is done: %+v", p.Counts)
	}
}
