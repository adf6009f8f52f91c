package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// reconcileInterval is the shortest that the server's configuration permits.
const reconcileInterval = 15 * time.Second

// found is the rotation that nobody notified of.
type found struct {
	id       uuid.UUID
	version  string
	outcomes map[string]int
}

// unnotified puts a new key into the KMS, tells nobody, and watches the server find it. It returns the time from the
// change to the last adoption, in milliseconds.
func (w *World) unnotified(ctx context.Context, s screen) (int64, error) {
	// The server relays what changes after its first look; what was before is a baseline.
	if err := s.step(fmt.Sprintf("the server looks into the KMS by itself, every %s", reconcileInterval), func() error { return w.waitForBaseline(ctx) }); err != nil {
		return 0, err
	}
	result, err := w.follow(ctx, s, func(version string) (uuid.UUID, error) {
		s.line("and its notification goes nowhere")
		w.found.version = version
		err := s.step("the server finds the change", func() error { return w.waitFound(ctx) })
		return w.found.id, err
	})
	w.found.outcomes = result.Outcomes
	return result.ElapsedMS, err
}

func (w *World) waitForBaseline(ctx context.Context) error {
	return keyheraldtest.Until(ctx, 8*reconcileInterval, func() error {
		looks, err := w.metric(ctx, `keyherald_reconcile_looks_total{kms="corporate",result="baseline"}`)
		if err == nil && looks == 0 {
			err = errors.New("it has not looked yet")
		}
		return err
	})
}

func (w *World) waitFound(ctx context.Context) error {
	return keyheraldtest.Until(ctx, 8*reconcileInterval, func() error {
		rotations, err := w.DB.Rotations(ctx, w.alice, false)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(rotations, func(r postgres.Rotation) bool { return r.KMS.Version == w.found.version })
		if i < 0 {
			return errors.New("it has not found it yet")
		}
		w.found.id = rotations[i].ID
		return nil
	})
}

// checkFound holds the rotation that nobody notified of against the one that was notified of.
func (w *World) checkFound(ctx context.Context) error {
	if err := w.checkOutcomes(w.found.outcomes); err != nil {
		return err
	}
	lines, err := w.DB.Log(ctx, w.found.id.String(), 1000)
	if err != nil {
		return err
	}
	byLooking := false
	for _, line := range lines {
		if line.Action == "notification.accepted" {
			return fmt.Errorf("%s notified of it", line.Actor)
		}
		byLooking = byLooking || line.Action == "change.found" && strings.HasPrefix(line.Actor, "reconcile:")
	}
	if !byLooking {
		return errors.New("the log does not say that it was found by looking")
	}
	return nil
}
