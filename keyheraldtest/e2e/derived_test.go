package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// checkDerived checks that what the log alone says of each user's newest rotation is what its row says.
func (w *world) checkDerived(t *testing.T) {
	t.Helper()
	super, err := postgres.Open(t.Context(), w.database.SuperURL)
	check(t, err)
	defer func() { _ = super.Close() }()
	_, wrong := ask(t, super, `SELECT * FROM auditor.compliance_at('2999-01-01') c FULL JOIN (SELECT DISTINCT ON (user_id) user_id, id::text AS rotation, CASE WHEN held AND ended_at IS NULL THEN 'held' ELSE state END AS state
		FROM rotation ORDER BY user_id, state = 'superseded', created_at DESC, id DESC) r USING (user_id) WHERE c.rotation IS DISTINCT FROM r.rotation OR c.state IS DISTINCT FROM r.state`)
	if len(wrong) != 0 {
		t.Errorf("the log says otherwise than the rows:\n%s", table(wrong))
	}
}

// How things stand is told from the log alone, at any time that it knows of.
func TestHowThingsStoodIsToldFromTheLogAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, database := newDatabase(t)
	clock := &keyheraldtest.Clock{}
	engine, err := relay.New(relay.Config{DB: db, Now: clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 1, Users: 2}})
	check(t, err)
	w := &world{db: db, database: database}
	super, err := postgres.Open(ctx, database.SuperURL)
	check(t, err)
	t.Cleanup(func() { _ = super.Close() })
	stood := func(at time.Time) map[string]string {
		t.Helper()
		states := map[string]string{}
		_, rows := ask(t, super, `SELECT user_id, version || ' ' || state, managed_devices FROM auditor.compliance_at('`+at.UTC().Format(time.RFC3339Nano)+`')`)
		for _, row := range rows {
			states[row[0]] = row[1] + " " + row[2]
		}
		return states
	}
	accept := func(user, version string) {
		t.Helper()
		n := notification(user+version, user, version)
		_, err := engine.Accept(ctx, n)
		check(t, err)
	}
	moments := []time.Time{}
	mark := func() { moments = append(moments, clock.Now()); clock.Advance(time.Hour) }
	device := func(action audit.Action, outcome audit.Outcome, actor audit.Actor, detail ...audit.Field) {
		t.Helper()
		check(t, db.Append(ctx, audit.Event{Time: clock.Now(), Actor: actor, Action: action, Subject: audit.OfDevice("@alice:example.org", "A"), Outcome: outcome, Detail: detail}))
	}
	mark()
	accept("alice", "1")
	accept("bob", "1")
	accept("carol", "1") // held: a storm
	device(audit.DeviceEnrolled, audit.Accepted, audit.ByDevice("@alice:example.org", "A"))
	mark()
	accept("alice", "3")
	accept("alice", "2") // late
	_, err = engine.Release(ctx, nil, keyheraldtest.Admin())
	check(t, err)
	bobs, err := db.Rotations(ctx, "@bob:example.org", false)
	check(t, err)
	check(t, engine.Cancel(ctx, bobs[0].ID, keyheraldtest.Admin()))
	if engine.Cancel(ctx, bobs[0].ID, keyheraldtest.Admin()) == nil {
		t.Fatal("a rotation was cancelled twice")
	}
	device(audit.DeviceRevoked, audit.Refused, keyheraldtest.Admin(), audit.Word("refusal", audit.RefusedReason))
	mark()
	check(t, engine.Retry(ctx, bobs[0].ID, keyheraldtest.Admin()))
	accept("bob", "1") // told again: nothing moves
	device(audit.DeviceRevoked, audit.Accepted, keyheraldtest.Admin())
	mark()
	for i, want := range []map[string]string{
		{},
		{"@alice:example.org": "1 received 1", "@bob:example.org": "1 received 0", "@carol:example.org": "1 held 0"},
		{"@alice:example.org": "3 received 1", "@bob:example.org": "1 cancelled 0", "@carol:example.org": "1 received 0"},
		{"@alice:example.org": "3 received 0", "@bob:example.org": "1 received 0", "@carol:example.org": "1 received 0"},
	} {
		if got := stood(moments[i]); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("at moment %d: %v, want %v", i, got, want)
		}
	}
	w.checkDerived(t)
}
