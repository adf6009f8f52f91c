package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/roster"
	"github.com/keyherald/keyherald/rotation"
)

// On real parts: a key becomes old, nothing happens until the window of its policy opens, and then the device makes a new
// one, which every other device of the user gets.
func TestAPolicyHasARealDeviceMakeANewKeyInItsWindow(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newParts(t)
	w.deviceNow = w.clock.Now
	w.serve(t, w.hs.URL)
	w.people(t)
	receiver := w.verifiedReceiver(t, "TARGET")
	first := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	wait(t, "the first key", func() bool { return pushesOf(t, receiver, first) == 2 })

	enforcer, err := enforce.New(enforce.Config{DB: w.db, Engine: w.engine, Now: w.clock.Now})
	check(t, err)
	_, err = enforcer.ApplyRoster(ctx, enforce.Roster{Entries: []roster.Entry{{UserID: w.alice}}}, keyheraldtest.Admin())
	check(t, err)
	w.clock.Advance(30*days + time.Hour)
	opens := w.clock.Now().UTC().Add(3 * time.Hour)
	document, err := policy.Parse("policy.yaml", fmt.Appendf(nil, `rules: [{name: staff, who: {all: true}, max_age: 30d, grace: 2d, jitter: 10m, windows: [{time_zone: UTC, hours: "%s-%s"}]}]`,
		opens.Format("15:04"), opens.Add(2*time.Hour).Format("15:04")), nil)
	check(t, err)
	_, _, err = enforcer.ApplyPolicy(ctx, enforce.PolicyRequest{Document: document, Reason: "keys live for thirty days"}, keyheraldtest.Admin())
	check(t, err)

	check(t, enforcer.StepPolicy(ctx))
	x, err := enforcer.ExplainPolicy(ctx, w.alice)
	check(t, err)
	if r := w.onlyRotation(t); r.Source == postgres.SourcePolicy || x.Verdict.State != policy.Waiting || !x.Verdict.OpensAt.After(w.clock.Now()) {
		t.Fatalf("before its turn: %s, %+v", r.Source, x)
	}
	w.clock.Advance(x.Verdict.OpensAt.Sub(w.clock.Now()))
	check(t, enforcer.StepPolicy(ctx))
	opened := w.onlyRotation(t)
	if opened.Source != postgres.SourcePolicy || opened.Reason != rotation.ReasonPolicy || opened.Held {
		t.Fatalf("in its turn: %+v", opened)
	}
	w.waitDone(t)
	key, version := w.kmsKey(t, "")
	if version == "1" || key.PublicKey() == first.PublicKey() {
		t.Errorf("the KMS has version %s", version)
	}
	wait(t, "the new key", func() bool { return pushesOf(t, receiver, key) == 2 })

	// Nothing more comes of it, in this window or the next.
	wait(t, "the user to be current again", func() bool {
		standings, err := enforcer.Standings(ctx, enforce.StandingFilter{})
		check(t, err)
		return len(standings) == 1 && standings[0].State == roster.Current
	})
	for range 3 {
		check(t, enforcer.StepPolicy(ctx))
		w.clock.Advance(days)
	}
	all, err := w.db.Rotations(ctx, w.alice, false)
	check(t, err)
	if len(all) != 2 {
		t.Errorf("there are %d rotations", len(all))
	}
}
