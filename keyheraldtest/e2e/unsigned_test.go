package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/rotation"
)

func TestRotationsWaitWhereTheLogIsNotSignedForADayAndUrgentOnesGoOn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newParts(t)
	w.sealed, w.deviceNow = true, w.clock.Now
	w.serve(t, w.hs.URL)
	w.people(t)
	w.manage(t, "managed")
	w.newKey(t, "1")
	w.notify(t, "n1", "1")
	w.waitDone(t) // unsigned, but not for long

	w.clock.Advance(25 * time.Hour)
	w.newKey(t, "2")
	w.notify(t, "n2", "2")
	wait(t, "the rotation to be held", func() bool { return w.onlyRotation(t).HeldFor == rotation.HoldLogUnsigned })
	if r := w.onlyRotation(t); !r.Held || !strings.Contains(r.NextAction, "not been signed for a day") {
		t.Errorf("it is held %t, and says %q", r.Held, r.NextAction)
	}

	// Somebody has the key: that does not wait for a signature.
	check(t, w.engine.Freeze(ctx, keyheraldtest.Admin()))
	w.newKey(t, "3")
	w.notify(t, "n3", "3")
	_, err := w.db.Exec(ctx, `UPDATE rotation SET reason = 'compromise' WHERE version = '3'`)
	check(t, err)
	check(t, w.engine.Thaw(ctx, keyheraldtest.Admin()))
	w.waitDone(t)

	w.newKey(t, "4")
	w.notify(t, "n4", "4")
	wait(t, "the rotation to be held", func() bool { return w.onlyRotation(t).Held })
	// Events have the real time in their ids, so with the moved clock whatever comes next would be a day old again.
	sealAll(t, newSigner(t, w.database))
	w.clock.Advance(-25 * time.Hour)
	check(t, w.engine.Sweep(ctx))
	w.waitDone(t)
	actions := counted(t, w.db)
	w.checkDerived(t)
	if actions["rotation.held"] != 2 || actions["rotation.released"] != 1 {
		t.Errorf("the log tells of %d holds and %d releases", actions["rotation.held"], actions["rotation.released"])
	}
}
