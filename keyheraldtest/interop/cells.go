package interop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
)

// The checks, in the order of the table. docs/interop.md says what each means.
const (
	checkBot       = "the bot has its cross-signed device"
	checkHolds     = "holds the new key and the new version"
	checkOld       = "reads a message of the old version alone"
	checkStranger  = "never verified: has nothing"
	checkExcluded  = "excluded: has nothing"
	checkAway      = "offline for three rotations: catches up"
	checkLate      = "verified afterwards: is pushed to"
	checkFresh     = "new login with the recovery key: all is well"
	checkUnharmed  = "reads what another device writes afterwards"
	checkIgnores   = "ignores the push"
	checkRestarted = "the bot's new device after a restore"
)

var checks = []string{checkBot, checkHolds, checkOld, checkStranger, checkExcluded, checkAway, checkLate, checkFresh, checkUnharmed, checkIgnores, checkRestarted}

// The columns that are no kind of client with several devices.
const (
	nioName     = "matrix-nio"
	managedName = "keyherald-device"
	botName     = "bot"
)

var columns = []string{"matrix-js-sdk", "mautrix", nioName, managedName, botName}

// every does a check for each kind of client, some at once.
func (w *world) every(ctx context.Context, r *record, check string, do func(context.Context, kind) error) {
	var all sync.WaitGroup
	for _, c := range w.clients {
		all.Go(func() { r.cell(c.name, check, func() error { return do(ctx, c) }) })
	}
	all.Wait()
}

// main does the main job with every kind of client. An error is one that leaves nothing more to be checked.
func (w *world) main(ctx context.Context, r *record) error {
	if err := w.rotate(ctx); err != nil {
		return err
	}
	w.every(ctx, r, checkHolds, func(ctx context.Context, c kind) error { return w.waitHeld(ctx, c, online, adoptLimit) })
	r.cell(managedName, checkHolds, func() error { return w.adopted(ctx) })
	w.every(ctx, r, checkOld, func(ctx context.Context, c kind) error { return w.reads(ctx, c, online, w.old) })
	for range 2 {
		if err := w.rotate(ctx); err != nil {
			return err
		}
	}
	w.every(ctx, r, checkAway, func(ctx context.Context, c kind) error {
		if err := c.online(ctx, c.device(away)); err != nil {
			return err
		}
		return w.waitHeld(ctx, c, away, adoptLimit)
	})
	r.cell(managedName, checkAway, func() error { return w.managedCatchesUp(ctx) })
	// Those that must have nothing are asked once the others have the third key, so that it would be there.
	w.every(ctx, r, checkStranger, func(ctx context.Context, c kind) error {
		return w.nothing(ctx, c, stranger, protocol.OutcomeSkippedUnverified)
	})
	w.every(ctx, r, checkExcluded, func(ctx context.Context, c kind) error {
		return w.nothing(ctx, c, excluded, protocol.OutcomeSkippedExcluded)
	})
	r.cell(managedName, checkExcluded, func() error {
		return w.skipped(ctx, w.managed["alice-excluded"].DeviceID, protocol.OutcomeSkippedExcluded)
	})
	w.every(ctx, r, checkFresh, w.newLogin)
	w.unharmed(ctx, r)
	w.every(ctx, r, checkLate, func(ctx context.Context, c kind) error {
		if err := w.nothing(ctx, c, late, protocol.OutcomeSkippedUnverified); err != nil {
			return err
		}
		if err := c.verify(ctx, c.device(late), false); err != nil {
			return err
		}
		return w.waitHeld(ctx, c, late, lateLimit)
	})
	return nil
}

// waitHeld waits until a device holds the KMS's current key for the current version, by its own word.
func (w *world) waitHeld(ctx context.Context, c kind, role string, limit time.Duration) error {
	want := held{w.key.PublicKey(), w.version}
	return keyheraldtest.Until(ctx, limit, func() error {
		h, err := c.holds(ctx, c.device(role))
		if err == nil && h != want {
			err = fmt.Errorf("%s holds %s, and the current version is %s", c.device(role), h, want)
		}
		return err
	})
}

func (h held) String() string {
	key, version := "no key", "no version"
	if h.PublicKey != "" {
		key = "the key of " + h.PublicKey[:8] + "…"
	}
	if h.Version != "" {
		version = "version " + h.Version.String()
	}
	return key + " for " + version
}

func (w *world) reads(ctx context.Context, c kind, role string, m message) error {
	body, err := c.read(ctx, c.device(role), m, readLimit)
	if err == nil && body != m.body {
		err = fmt.Errorf("%s reads %q", c.device(role), body)
	}
	return err
}

// nothing holds if a device has no key, and the device that pushed said of it why.
func (w *world) nothing(ctx context.Context, c kind, role string, outcome protocol.Outcome) error {
	h, err := c.holds(ctx, c.device(role))
	if err == nil && h.PublicKey != "" {
		err = fmt.Errorf("%s holds %s", c.device(role), h)
	}
	return errors.Join(err, w.skipped(ctx, c.device(role), outcome))
}

// skipped looks at all rotations so far.
func (w *world) skipped(ctx context.Context, device id.DeviceID, outcome protocol.Outcome) error {
	for i, rotationID := range w.rotations {
		deliveries, err := w.DB.Deliveries(ctx, rotationID)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(deliveries, func(d protocol.Delivery) bool { return d.DeviceID == device })
		if at < 0 || deliveries[at].Outcome != outcome {
			return fmt.Errorf("rotation %d did not report %s for %s: %v", i+1, outcome, device, deliveries)
		}
	}
	return nil
}

// adopted holds if the managed device that did not push reported that it holds the key.
func (w *world) adopted(ctx context.Context) error {
	return keyheraldtest.Until(ctx, adoptLimit, func() error {
		outcomes, err := w.DB.Outcomes(ctx, w.rotations[len(w.rotations)-1])
		if err == nil && outcomes["adopted"] != 1 {
			err = fmt.Errorf("the outcomes are %v", outcomes)
		}
		return err
	})
}

func (w *world) managedCatchesUp(ctx context.Context) error {
	before, err := w.status(ctx, "alice-away")
	if err != nil {
		return err
	}
	if _, err := w.Fleet("away", 5*time.Second); err != nil {
		return err
	}
	return keyheraldtest.Until(ctx, adoptLimit, func() error {
		status, err := w.status(ctx, "alice-away")
		switch {
		case err != nil:
			return err
		case status.At == before.At:
			return errors.New("it has not reported since it is back")
		case !status.HoldsKey || status.BackupVersion != w.version.String() || !w.key.Fits(status.PublicKey):
			return fmt.Errorf("it reports version %s, holding its key: %t", status.BackupVersion, status.HoldsKey)
		}
		return nil
	})
}

func (w *world) newLogin(ctx context.Context, c kind) error {
	if _, err := c.login(ctx, c.device(fresh)); err != nil {
		return err
	}
	if err := c.verify(ctx, c.device(fresh), true); err != nil {
		return err
	}
	return errors.Join(w.waitHeld(ctx, c, fresh, adoptLimit), c.whole(ctx, c.device(fresh)), w.reads(ctx, c, fresh, w.old))
}

// unharmed has another device of Alice's write a message, whose key goes to each device over its Olm sessions.
func (w *world) unharmed(ctx context.Context, r *record) {
	m := message{body: "Written after the rotations."}
	var err error
	m.room, m.id, err = w.stock.WriteMessage(ctx, m.body)
	w.every(ctx, r, checkUnharmed, func(ctx context.Context, c kind) error {
		return errors.Join(err, w.reads(ctx, c, online, m))
	})
	r.cell(nioName, checkUnharmed, func() error {
		var read struct{ Body string }
		readErr := w.nio.do(ctx, "read", map[string]any{"room": m.room, "event": m.id, "seconds": readLimit.Seconds()}, &read)
		if readErr == nil && read.Body != m.body {
			readErr = fmt.Errorf("it reads %q", read.Body)
		}
		return errors.Join(err, readErr)
	})
	r.cell(nioName, checkIgnores, func() error { return w.nioIgnores(ctx) })
}

// nioIgnores holds if every push was decrypted and let go, in both forms, and the sync goes on. A key may be pushed again.
func (w *world) nioIgnores(ctx context.Context) error {
	var state struct{ Ignored map[string]int }
	if err := w.nio.do(ctx, "state", nil, &state); err != nil {
		return err
	}
	for _, form := range []string{event.ToDeviceSecretSend.Type, "io.element.msc4385.secret.push"} {
		if state.Ignored[form] < len(w.rotations) {
			return fmt.Errorf("after %d rotations it ignored %v", len(w.rotations), state.Ignored)
		}
	}
	return nil
}

// restored declares the database restored, which gives the bot a new device, and looks that the old one is gone from the
// homeserver. With people there the work must go on with it.
func (w *world) restored(ctx context.Context, before []id.DeviceID, devices func(context.Context) ([]id.DeviceID, error)) error {
	if _, err := w.Keyherald(ctx, "restore", "--reason", "interop"); err != nil {
		return err
	}
	return keyheraldtest.Until(ctx, time.Minute, func() error {
		now, err := devices(ctx)
		if err == nil && (len(now) != 1 || slices.Contains(before, now[0])) {
			err = fmt.Errorf("the bot had %v and has %v", before, now)
		}
		return err
	})
}
