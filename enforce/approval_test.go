package enforce_test

import (
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

type postgresUser = postgres.CampaignUser

func TestACampaignNeedsASecondAdminsApproval(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "above 2")
	ctx := t.Context()
	c.people(t, 3)
	started := c.start(t, everybody())
	c.pass(t, 2)
	if p := c.progress(t, started.ID); p.State != campaign.AwaitingApproval || p.Counts.Pending != 3 {
		t.Fatalf("unapproved it is %s: %+v", p.State, p.Counts)
	}
	if _, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, initiator); !refused(err, refusal.Forbidden) {
		t.Errorf("approving one's own gave %v", err)
	}
	if _, err := c.enforcer.ApproveCampaign(ctx, started.ID, "another", second); !refused(err, refusal.Conflict) {
		t.Errorf("approving something else gave %v", err)
	}
	if _, err := c.enforcer.ResumeCampaign(ctx, started.ID, second); !refused(err, refusal.Conflict) {
		t.Errorf("resuming what was not approved gave %v", err)
	}
	approved, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	if approved.State != campaign.Running {
		t.Errorf("approved it is %s", approved.State)
	}
	c.pass(t, 1)
	if p := c.progress(t, started.ID); p.Counts.Waiting != 1 || p.Wave != 1 || len(p.Approvals) != 1 {
		t.Errorf("approved: %+v in wave %d", p.Counts, p.Wave)
	}
	if told := c.told(t); told["campaign.approved refused"] != 2 || told["campaign.approved accepted"] != 1 {
		t.Errorf("the log has %v", told)
	}
}

func TestAnyChangeVoidsTheApproval(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "required")
	ctx := t.Context()
	c.people(t, 30)
	started := c.start(t, everybody())
	_, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	c.pass(t, 1)
	rate := 600
	if _, err := c.enforcer.ChangeCampaign(ctx, started.ID, enforce.CampaignChange{Rate: &rate}, second); !refused(err, refusal.Conflict) {
		t.Errorf("changing a running one gave %v", err)
	}
	_, err = c.enforcer.PauseCampaign(ctx, started.ID, second)
	check(t, err)
	changed, err := c.enforcer.ChangeCampaign(ctx, started.ID, enforce.CampaignChange{Rate: &rate}, second)
	check(t, err)
	if changed.Hash == started.Hash || changed.State != campaign.AwaitingApproval {
		t.Fatalf("changed it is %s, and has the same hash: %t", changed.State, changed.Hash == started.Hash)
	}
	// Neither who started it nor who changed it, nor for what it was.
	for name, try := range map[string]func() error{
		"the initiator": func() error {
			_, err := c.enforcer.ApproveCampaign(ctx, started.ID, changed.Hash, initiator)
			return err
		},
		"who changed it": func() error {
			_, err := c.enforcer.ApproveCampaign(ctx, started.ID, changed.Hash, second)
			return err
		},
		"for the old hash": func() error {
			_, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, third)
			return err
		},
	} {
		if err := try(); err == nil {
			t.Errorf("approved by %s", name)
		}
	}
	_, err = c.enforcer.ApproveCampaign(ctx, started.ID, changed.Hash, third)
	check(t, err)
	c.pass(t, 1)
	p := c.progress(t, started.ID)
	if p.State != campaign.Running || len(p.Approvals) != 2 || p.Approvals[0].VoidedAt.IsZero() || !p.Approvals[1].VoidedAt.IsZero() {
		t.Errorf("approved anew it is %s: %+v", p.State, p.Approvals)
	}
	if told := c.told(t); told["campaign.approval_voided accepted"] != 1 || told["campaign.changed accepted"] != 1 {
		t.Errorf("the log has %v", told)
	}
}

func TestAnApprovalIsGoodForADay(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "required")
	ctx := t.Context()
	c.people(t, 30)
	late := c.start(t, everybody())
	c.clock.Advance(campaign.ApprovalLife + time.Minute)
	if _, err := c.enforcer.ApproveCampaign(ctx, late.ID, late.Hash, second); !refused(err, refusal.Conflict) {
		t.Errorf("approving after a day gave %v", err)
	}
	c.step(t)
	if p := c.progress(t, late.ID); p.State != campaign.Aborted || p.Counts.NotStarted != 30 {
		t.Errorf("a day later it is %s: %+v", p.State, p.Counts)
	}
	started := c.start(t, everybody())
	_, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	_, err = c.enforcer.PauseCampaign(ctx, started.ID, initiator)
	check(t, err)
	_, err = c.enforcer.ResumeCampaign(ctx, started.ID, initiator)
	check(t, err)
	_, err = c.enforcer.PauseCampaign(ctx, started.ID, initiator)
	check(t, err)
	c.clock.Advance(campaign.ApprovalLife + time.Minute)
	if _, err := c.enforcer.ResumeCampaign(ctx, started.ID, initiator); !refused(err, refusal.Conflict) {
		t.Errorf("resuming by an approval of yesterday gave %v", err)
	}
	_, err = c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	resumed, err := c.enforcer.ResumeCampaign(ctx, started.ID, initiator)
	if err != nil || resumed.State != campaign.Running {
		t.Errorf("approved anew it is %s: %v", resumed.State, err)
	}
}

// The wave that is under way goes on, the next one waits for a fresh approval, and then the campaign ends as any.
func TestAWaveThatBeginsAfterADayNeedsAFreshApproval(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "required")
	ctx := t.Context()
	c.people(t, 30)
	started := c.start(t, everybody())
	_, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	c.pass(t, 1)
	c.clock.Advance(campaign.ApprovalLife + time.Minute)
	c.finish(t, started.ID, nil)
	c.pass(t, 2)
	p := c.progress(t, started.ID)
	if p.State != campaign.Paused || p.StateCause != "approval_expired" || p.Wave != 1 || p.Counts.Done == 0 || p.Counts.UnderWay() != 0 {
		t.Fatalf("after a day it is %s (%s) in wave %d: %+v", p.State, p.StateCause, p.Wave, p.Counts)
	}
	if _, err := c.enforcer.ResumeCampaign(ctx, started.ID, initiator); !refused(err, refusal.Conflict) {
		t.Errorf("resuming it unapproved gave %v", err)
	}
	_, err = c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	_, err = c.enforcer.ResumeCampaign(ctx, started.ID, initiator)
	check(t, err)
	c.pass(t, 1)
	if p := c.progress(t, started.ID); p.State != campaign.Running || p.Wave != 2 || p.Counts.UnderWay() == 0 {
		t.Errorf("approved anew it is %s in wave %d: %+v", p.State, p.Wave, p.Counts)
	}
	if told := c.told(t); told["campaign.wave_passed accepted"] != 1 {
		t.Errorf("the log has %v", told)
	}
}

// At his identity provider somebody may be able to change what he is called.
func TestNobodyApprovesHisOwnCampaignUnderAnotherName(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "required")
	ctx := t.Context()
	c.people(t, 3)
	const issuer = "https://sso.example.org"
	mallory := audit.ByPerson(issuer, "4711", "mallory")
	started, _, err := c.enforcer.StartCampaign(ctx, enforce.CampaignRequest{Parameters: everybody()}, mallory)
	check(t, err)
	for _, name := range []audit.PersonName{"mallory", "alice", "", "a b"} {
		if _, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, audit.ByPerson(issuer, "4711", name)); !refused(err, refusal.Forbidden) {
			t.Errorf("called %q he approves it: %v", name, err)
		}
	}
	if _, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, audit.ByPerson(issuer, "4712", "mallory")); err != nil {
		t.Errorf("his namesake may not: %v", err)
	}
	_, err = c.enforcer.PauseCampaign(ctx, started.ID, second)
	check(t, err)
	rate := 7
	changed, err := c.enforcer.ChangeCampaign(ctx, started.ID, enforce.CampaignChange{Rate: &rate}, audit.ByPerson(issuer, "4713", "eve"))
	check(t, err)
	if _, err := c.enforcer.ApproveCampaign(ctx, started.ID, changed.Hash, audit.ByPerson(issuer, "4713", "bob")); !refused(err, refusal.Forbidden) {
		t.Errorf("who changed it approves it under another name: %v", err)
	}
}

func TestACompanyIsNotMovedInPartsThatNeedNoApproval(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "above 2")
	c.people(t, 5)
	part := func(users ...id.UserID) campaign.Parameters {
		p := everybody()
		p.Who = campaign.Who{Users: users}
		return p
	}
	first := c.start(t, part(user(0), user(1)))
	plan, err := c.enforcer.PlanCampaign(t.Context(), part(user(2)))
	check(t, err)
	second := c.start(t, part(user(2)))
	if first.NeedsApproval || !plan.NeedsApproval || !second.NeedsApproval {
		t.Errorf("two users need approval: %t; a third one on the same day: %t, by the plan %t", first.NeedsApproval, second.NeedsApproval, plan.NeedsApproval)
	}
	c.clock.Advance(campaign.ApprovalLife + time.Minute)
	if third := c.start(t, part(user(3))); third.NeedsApproval {
		t.Error("a day later it does, too")
	}
}

// Whoever writes to the database writes no users into what was approved.
func TestAnApprovalDoesNotHoldForWhatWasAlteredInTheDatabase(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "required")
	ctx := t.Context()
	c.people(t, 30)
	started := c.start(t, everybody())
	_, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, second)
	check(t, err)
	_, err = c.db.Exec(ctx, `INSERT INTO campaign_user (campaign, user_id, wave, turn, state) VALUES ($1, '@ceo:example.org', 1, 0, 'pending')`, started.ID)
	check(t, err)
	c.pass(t, 2)
	if p := c.progress(t, started.ID); p.State != campaign.Paused || p.Counts.Waiting != 0 {
		t.Errorf("altered it is %s: %+v", p.State, p.Counts)
	}
	for name, try := range map[string]func() error{
		"resumed": func() error { _, err := c.enforcer.ResumeCampaign(ctx, started.ID, initiator); return err },
		"approved": func() error {
			_, err := c.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, third)
			return err
		},
	} {
		if err := try(); !refused(err, refusal.Conflict) {
			t.Errorf("altered it may be %s: %v", name, err)
		}
	}
}
