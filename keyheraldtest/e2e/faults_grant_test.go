package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// Whichever write of the server's fails while a device enrolls by a grant, it is enrolled once, counted once, told once in the
// log, and a token that was used is used.
func TestAGrantIsUsedOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	var g *granted
	w := newFaulty(t, func(w *faulty) {
		g = &granted{world: w.world}
		g.trust(t)
	})
	ctx := t.Context()
	grant := g.grant(t, "workload", "@person*:"+keyheraldtest.ServerName, 1000, time.Hour)
	enrolled := 0
	do := func(t *testing.T) {
		user := g.person(t)
		account := g.device(t, user, user.Localpart(), g.token(t, user, nil))
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- account.EnrollByGrant(limited) }()
		check(t, keyheraldtest.Until(ctx, 2*patience, func() error {
			w.tend(t)
			select {
			case err := <-done:
				check(t, err)
				return nil
			default:
				return errors.New("the device has no answer")
			}
		}))
		check(t, keyheraldtest.Until(ctx, patience, func() error {
			w.tend(t)
			if n := w.count(t, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'pending'`) + w.count(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`); n > 0 {
				return fmt.Errorf("%d messages of the bot's wait", n)
			}
			return nil
		}))
		enrolled++
		devices, err := w.db.Devices(ctx, user)
		check(t, err)
		if len(devices) != 1 || devices[0].State != postgres.Enrolled {
			t.Errorf("there are %d devices", len(devices))
		}
		if n := g.used(t, grant); n != enrolled {
			t.Errorf("the grant counts %d devices, and there are %d", n, enrolled)
		}
		for _, action := range []string{"grant.used", "device.enrolled"} {
			if n := w.count(t, `SELECT COUNT(*) FROM audit_log WHERE action = $1 AND subject LIKE $2`, action, user.String()+"/%"); n != 1 {
				t.Errorf("the log has %s %d times", action, n)
			}
		}
		if n := w.count(t, `SELECT COUNT(*) FROM enrollment_proof WHERE user_id = $1`, user); n != 1 {
			t.Errorf("%d proofs are kept as used", n)
		}
	}
	w.tryEach(t, func() {}, do, func(label string) bool {
		return strings.HasPrefix(label, "PostgreSQL") && (strings.Contains(label, "grant") || strings.Contains(label, "enrollment_proof"))
	})
}
