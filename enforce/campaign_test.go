package enforce_test

import (
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/rotation"
)

func TestACampaignGoesThroughItsWaves(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 100)
	started := c.start(t, everybody())
	for i, users := range []int{1, 9, 90} {
		c.pass(t, 3)
		p := c.progress(t, started.ID)
		if p.Wave != i+1 || p.Counts.Waiting != users || p.State != campaign.Running {
			t.Fatalf("wave %d: %+v in wave %d, %s", i+1, p.Counts, p.Wave, p.State)
		}
		c.finish(t, started.ID, nil)
	}
	c.pass(t, 1)
	p := c.progress(t, started.ID)
	if p.State != campaign.Finished || p.Counts != (campaign.Counts{Done: 100}) {
		t.Errorf("in the end it is %s: %+v", p.State, p.Counts)
	}
	told := c.told(t)
	for action, n := range map[string]int{"campaign.started accepted": 1, "campaign.wave_started accepted": 3, "campaign.wave_passed accepted": 3, "campaign.finished accepted": 1,
		"rotation.asked accepted": 100, "rotation.held accepted": 0} {
		if told[action] != n {
			t.Errorf("the log tells %d times of %q, want %d", told[action], action, n)
		}
	}
}

func TestNoMoreBeginThanTheRateAllows(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.clock.Stand() // one begins in ten seconds, and all of this may take as long
	c.people(t, 30)
	p := everybody()
	p.Waves, p.Rate = []int{100}, 6
	started := c.start(t, p)
	c.step(t)
	if n := c.progress(t, started.ID).Counts.Waiting; n != 0 {
		t.Errorf("%d began before any time had passed", n)
	}
	c.pass(t, 2)
	c.step(t)
	if n := c.progress(t, started.ID).Counts.Waiting; n != 12 {
		t.Errorf("%d began in two minutes", n)
	}
	// The homeserver takes twice as long as it may.
	check(t, c.db.PutLatency(t.Context(), 2*time.Second, c.clock.Now()))
	c.pass(t, 1)
	if p := c.progress(t, started.ID); p.Counts.Waiting != 15 || p.RateNow != 3 {
		t.Errorf("%d began, of %d a minute", p.Counts.Waiting, p.RateNow)
	}
	// That was long ago; and a pause of the server's is not made up for beyond a minute.
	c.pass(t, 1)
	c.clock.Advance(time.Hour)
	c.step(t)
	if n := c.progress(t, started.ID).Counts.Waiting; n != 24 {
		t.Errorf("%d began", n)
	}
	check(t, c.engine.Freeze(t.Context(), initiator))
	c.pass(t, 5)
	if n := c.progress(t, started.ID).Counts.Waiting; n != 24 {
		t.Errorf("%d began while triggers are frozen", n)
	}
}

// A homeserver that takes nothing has campaigns slow down by what waits for it, also while nothing is measured.
func TestAHomeserverThatNeverAnswersSlowsACampaign(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	ctx := t.Context()
	c.clock.Stand() // a second more of waiting is another rate
	c.people(t, 5)
	started := c.start(t, everybody())
	queue := func(key string, age time.Duration, tries int) {
		t.Helper()
		_, err := c.db.Exec(ctx, `INSERT INTO todevice_outbox (id, account_id, key, recipient_user, recipient_device, type, content, created_at, request, tries)
			VALUES ($1, 'bot', $1, '@a:b', 'D', 't', '', $2, $1, $3)`, key, c.clock.Now().Add(-age).UnixMilli(), tries)
		check(t, err)
	}
	rate := func(want int, when string) {
		t.Helper()
		if got := c.progress(t, started.ID).RateNow; got != want {
			t.Errorf("%s %d begin in a minute, want %d", when, got, want)
		}
	}
	rate(60, "with nothing that waits")
	queue("one", time.Minute, 1)
	rate(1, "with nothing measured and a message that has waited for a minute")
	check(t, c.db.PutLatency(ctx, 100*time.Millisecond, c.clock.Now()))
	rate(60, "while others are answered")
	queue("two", 9*time.Second, 0)
	rate(6, "while a message waits its turn for nine seconds")
	_, err := c.db.Exec(ctx, `UPDATE todevice_outbox SET state = 'sent'`)
	check(t, err)
	rate(60, "when all are sent")
}

func TestThoseWhoCannotBeRotatedAreLeftOutWithTheReason(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	ctx := t.Context()
	c.people(t, 6)
	c.onRoster(t, "@unenrolled:example.org")
	_, err := c.db.Exec(ctx, `UPDATE roster SET exempt_reason = 'on leave', exempt_until = $2 WHERE user_id = $1`, user(1), c.clock.Now().Add(time.Hour))
	check(t, err)
	open := c.change(t, user(2), "1")
	p := everybody()
	p.KMS, p.Path, p.Waves, p.Who.Except = "", "", []int{100}, []string{string(user(5))}
	plan, err := c.enforcer.PlanCampaign(ctx, p)
	check(t, err)
	planned := map[id.UserID]enforce.PlannedUser{}
	for _, u := range plan.Users {
		planned[u.UserID] = u
	}
	for who, want := range map[id.UserID]struct {
		begin campaign.Begin
		cause campaign.Cause
	}{
		user(0): {campaign.BeginLeave, campaign.CauseUnknownPlace}, user(1): {campaign.BeginLeave, campaign.CauseExempt}, user(2): {campaign.BeginJoin, ""},
		user(5): {campaign.BeginLeave, campaign.CauseExcluded}, "@unenrolled:example.org": {campaign.BeginLeave, campaign.CauseNotEnrolled},
	} {
		if got := planned[who]; got.Begin != want.begin || got.Cause != want.cause || (want.cause == "") != (got.NextAction == "") {
			t.Errorf("%s would %s: %q, %q", who, got.Begin, got.Cause, got.NextAction)
		}
	}
	if told := c.told(t); told["campaign.started accepted"]+told["campaign.started refused"]+told["rotation.asked accepted"] != 0 {
		t.Errorf("the dry run left events: %v", told)
	}
	started := c.start(t, p)
	if started.Hash != plan.Hash {
		t.Error("the dry run named another hash than the campaign has")
	}
	c.pass(t, 1)
	joined := c.users(t, started.ID, campaign.Waiting)
	if len(joined) != 1 || joined[0].UserID != user(2) || joined[0].Rotation != open || !joined[0].Joined {
		t.Errorf("of those with an open rotation: %+v", joined)
	}
	if left := c.users(t, started.ID, campaign.LeftOut); len(left) != 5 {
		t.Errorf("left out are %+v", left)
	}
	if told := c.told(t); told["rotation.asked accepted"] != 0 {
		t.Error("somebody was rotated twice")
	}
}

func TestACampaignStopsWhereTooManyFailAndNamesThem(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 60)
	p := everybody()
	p.Waves = []int{50, 100}
	started := c.start(t, p)
	c.pass(t, 1)
	but := map[id.UserID]rotation.Facts{}
	for i, u := range c.users(t, started.ID, campaign.Waiting) {
		if i < 4 {
			but[u.UserID] = needy
		}
	}
	c.finish(t, started.ID, but)
	c.step(t)
	if p := c.progress(t, started.ID); p.State != campaign.Stopped || p.Counts != (campaign.Counts{Done: 26, NeedsAttention: 4, NotStarted: 30}) {
		t.Errorf("with 4 of 30 failing it is %s: %+v", p.State, p.Counts)
	}
	for _, u := range c.users(t, started.ID, campaign.NeedsAttention) {
		if u.Cause != campaign.Cause(needy.Attention) || u.NextAction == "" {
			t.Errorf("%s fails for %q: %q", u.UserID, u.Cause, u.NextAction)
		}
		// Mended after the campaign ended.
		c.report(t, u.Rotation, doneFacts)
	}
	c.step(t)
	if p := c.progress(t, started.ID); p.Counts.Done != 30 || p.Counts.NeedsAttention != 0 {
		t.Errorf("once they are mended: %+v", p.Counts)
	}
}

func TestTheOfflineCompleteWhenTheyComeBack(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "never")
	c.people(t, 40)
	p := everybody()
	p.Waves = []int{100}
	started := c.start(t, p)
	c.pass(t, 1)
	away := c.users(t, started.ID, campaign.Waiting)[:2]
	c.finish(t, started.ID, map[id.UserID]rotation.Facts{away[0].UserID: {State: rotation.Working}, away[1].UserID: {State: rotation.Working}})
	c.step(t)
	if p := c.progress(t, started.ID); p.State != campaign.Finished || p.Counts != (campaign.Counts{Done: 38, Waiting: 2}) {
		t.Fatalf("with two of forty away it is %s: %+v", p.State, p.Counts)
	}
	c.report(t, away[0].Rotation, working)
	c.report(t, away[1].Rotation, doneFacts)
	c.step(t)
	if p := c.progress(t, started.ID); p.Counts != (campaign.Counts{Done: 39, Working: 1}) {
		t.Errorf("when they come back: %+v", p.Counts)
	}
}

func TestAWaveThatHangsPassesOrPausesAfterItsTime(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		away  int
		state campaign.State
	}{{"few are waited for", 4, campaign.Finished}, {"too many are", 5, campaign.Paused}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCompany(t, "never")
			c.people(t, 20)
			p := everybody()
			p.Waves, p.MaxWait = []int{100}, 10*time.Minute
			started := c.start(t, p)
			c.pass(t, 1)
			but := map[id.UserID]rotation.Facts{}
			for _, u := range c.users(t, started.ID, campaign.Waiting)[:test.away] {
				but[u.UserID] = rotation.Facts{State: rotation.Working}
			}
			c.finish(t, started.ID, but)
			c.pass(t, 9)
			if p := c.progress(t, started.ID); p.State != campaign.Running {
				t.Fatalf("before its time it is %s: %+v", p.State, p.Counts)
			}
			c.pass(t, 2)
			p2 := c.progress(t, started.ID)
			if p2.State != test.state {
				t.Fatalf("after its time it is %s: %+v", p2.State, p2.Counts)
			}
			if test.state == campaign.Paused {
				if p2.StateCause != string(audit.CauseWaiting) {
					t.Errorf("it paused because of %q", p2.StateCause)
				}
				_, err := c.enforcer.ResumeCampaign(t.Context(), started.ID, second)
				check(t, err)
			}
		})
	}
}

func TestAbortLeavesEveryUserConsistent(t *testing.T) {
	t.Parallel()
	for _, cancel := range []bool{false, true} {
		c := newCompany(t, "never")
		c.people(t, 20)
		joined := c.change(t, user(0), "1")
		p := everybody()
		p.Waves, p.Rate = []int{100}, 12
		started := c.start(t, p)
		c.pass(t, 1)
		before := c.progress(t, started.ID).Counts
		_, err := c.enforcer.AbortCampaign(t.Context(), started.ID, cancel, second)
		check(t, err)
		c.pass(t, 2)
		after := c.progress(t, started.ID)
		if after.State != campaign.Aborted || after.Counts.NotStarted != before.Pending || after.Counts.Pending != 0 {
			t.Fatalf("aborted: %s, %+v before, %+v after", after.State, before, after.Counts)
		}
		for _, u := range c.users(t, started.ID, campaign.NotStarted) {
			if rotations, err := c.db.Rotations(t.Context(), u.UserID, false); err != nil || (len(rotations) != 0 && rotations[0].ID != joined) {
				t.Errorf("%s had not begun and has %d rotations, %v", u.UserID, len(rotations), err)
			}
		}
		if c.rotation(t, joined).Facts.State == rotation.Cancelled {
			t.Error("a rotation that was none of the campaign's was cancelled")
		}
		begun := slices.DeleteFunc(slices.Concat(c.users(t, started.ID, campaign.Waiting), c.users(t, started.ID, campaign.Cancelled)), func(u postgresUser) bool { return u.Joined })
		for _, u := range begun {
			if is := c.rotation(t, u.Rotation).Facts.State == rotation.Cancelled; is != cancel || (u.State == campaign.Cancelled) != cancel {
				t.Errorf("cancelling %t: the rotation of %s is cancelled: %t, and he is %s", cancel, u.UserID, is, u.State)
			}
		}
		if len(begun) == 0 || after.Counts.Waiting+after.Counts.Cancelled != before.Waiting {
			t.Errorf("%d had begun: %+v", before.Waiting, after.Counts)
		}
		if _, err := c.enforcer.AbortCampaign(t.Context(), started.ID, cancel, second); !refused(err, refusal.Conflict) {
			t.Errorf("aborting again gave %v", err)
		}
	}
}

func refused(err error, want refusal.Code) bool {
	code, _, ok := refusal.Of(err)
	return ok && code == want
}
