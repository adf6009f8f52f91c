package e2e

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// A roster by which one user leaves and one comes is applied once, whole, whichever write of it fails; where the admin hears
// that it failed he applies it again, and it may have been done.
func TestARosterIsAppliedOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	recorder := &faults.Recorder{}
	connector, err := pq.NewConnector(f.database.WriterURL)
	check(t, err)
	db, err := postgres.OpenWith(ctx, sql.OpenDB(recorder.Connector("PostgreSQL", connector)), f.database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	engine, err := relay.New(relay.Config{DB: db, Now: f.clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x"})
	check(t, err)
	faulty, err := enforce.New(enforce.Config{DB: db, Engine: engine, Now: f.clock.Now})
	check(t, err)
	// The same user never comes back, since his device stays revoked.
	turn := 0
	name := func(n int) string { return fmt.Sprintf("user%d", n) }
	prepare := func(t *testing.T) {
		t.Helper()
		turn++
		f.apply(t, entriesOf("keeper", name(turn)))
		f.enroll(t, name(turn))
		_, err := f.engine.Accept(ctx, notification(name(turn), name(turn), "1"))
		check(t, err)
		_, err = f.engine.NewCode(ctx, user(name(turn)), time.Hour, keyheraldtest.Admin())
		check(t, err)
	}
	do := func(t *testing.T) (failures int) {
		t.Helper()
		before := newest(t, f.db)
		for {
			_, err := faulty.ApplyRoster(ctx, enforce.Roster{Entries: entriesOf("keeper", name(turn+1))}, keyheraldtest.Admin())
			if err == nil {
				break
			}
			if failures++; failures == 3 {
				t.Fatalf("it goes on failing: %v", err)
			}
			// What failed is whole or not at all, before anybody tries again.
			rows, err := f.db.Roster(ctx, postgres.RosterFilter{})
			check(t, err)
			devices, err := f.db.Devices(ctx, user(name(turn)))
			check(t, err)
			open, err := f.db.Rotations(ctx, user(name(turn)), true)
			check(t, err)
			if left := rows[1].UserID != user(name(turn)); len(rows) != 2 || (devices[0].State == postgres.Revoked) != left || (len(open) == 0) != left {
				t.Errorf("half of it was done: the roster is %v, the device %s, and %d rotations are open", rows, devices[0].State, len(open))
			}
		}
		counts := map[string]int{}
		for _, told := range f.told(t, before) {
			counts[told]++
		}
		applied := counts["roster.applied"]
		delete(counts, "roster.applied")
		gone, come := user(name(turn)), user(name(turn+1))
		for _, once := range []string{"device.revoked " + gone.String() + "/MANAGED", "rotation.cancelled " + gone.String(), "roster.user_left " + gone.String(), "roster.user_added " + come.String()} {
			if counts[once] != 1 {
				t.Errorf("the log has %s %d times", once, counts[once])
			}
			delete(counts, once)
		}
		// That it was applied is told each time that it was, also where nothing changed any more.
		if len(counts) != 0 || applied < 1 || applied > failures+1 {
			t.Errorf("it was applied %d times after %d failures, and the log has %v beside it", applied, failures, counts)
		}
		if codes, err := f.db.HasOpenCode(ctx, gone, f.clock.Now()); err != nil || codes {
			t.Errorf("who left may enroll (%v)", err)
		}
		return failures
	}
	var dry [2][]faults.Point
	for i := range dry {
		prepare(t)
		recorder.Begin()
		if do(t) != 0 {
			t.Error("it failed without a fault")
		}
		dry[i] = recorder.Points()
	}
	table := faults.Table(dry[:]...)
	// One statement in the middle, and the commit, before and after.
	if len(table) < 3 {
		t.Fatalf("few writes were found: %v", table)
	}
	for _, fault := range table {
		t.Run(fault.String(), func(t *testing.T) {
			prepare(t)
			recorder.Arm(fault, nil)
			if n := do(t); n != 1 || !recorder.Fired() {
				t.Errorf("it failed %d times (the fault fired: %t)", n, recorder.Fired())
			}
		})
	}
}
