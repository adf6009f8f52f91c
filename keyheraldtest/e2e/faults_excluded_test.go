package e2e

import (
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// A device that an admin excludes gets no key of that rotation, and is let in again by his word alone, whichever of the
// server's writes about it fails. Where he hears that it failed it may have been kept.
func TestWhoIsExcludedGetsNothingWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	ctx := t.Context()
	stolen := w.verified(t, "STOLEN")
	w.asked, w.exclude = true, []id.DeviceID{"STOLEN"}
	excluded := func() int { return w.count(t, `SELECT COUNT(*) FROM excluded_device WHERE device_id = 'STOLEN'`) }
	do := func(t *testing.T) {
		lifted := len(w.acts(t, "exclusion.lifted"))
		key := w.rotate(t)
		if n := excluded(); n != 1 {
			t.Errorf("the device is excluded by %d rows", n)
		}
		if n := pushesOf(t, stolen, key); n != 0 {
			t.Errorf("the excluded device got %d pushes", n)
		}
		outcomes, err := w.db.Outcomes(ctx, w.onlyRotation(t).ID)
		check(t, err)
		if outcomes["skipped_excluded"] != 1 || outcomes["sent"] != w.targets {
			t.Errorf("the outcomes are %v", outcomes)
		}
		w.checkCiphertexts(t, key)
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			w.tend(t)
			if excluded() == 0 {
				return nil
			}
			return w.engine.Include(ctx, w.alice, "STOLEN", keyheraldtest.Admin())
		}))
		if n := len(w.acts(t, "exclusion.lifted")) - lifted; n != 1 {
			t.Errorf("the log says %d times that the device was let in", n)
		}
	}
	w.tryEach(t, func() {}, do, func(label string) bool { return strings.Contains(label, "excluded_device") })
}
