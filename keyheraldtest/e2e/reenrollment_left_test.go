package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/roster"
)

// staff puts Alice on the roster.
func (w *world) staff(t *testing.T) *enforce.Enforcer {
	t.Helper()
	enforcer, err := enforce.New(enforce.Config{DB: w.db, Engine: w.engine, Now: w.clock.Now})
	check(t, err)
	check(t, enforcer.AddToRoster(t.Context(), roster.Entry{UserID: w.alice}, keyheraldtest.Admin()))
	return enforcer
}

// leave has Alice leave, in the caller's transaction.
func (w *world) leave(ctx context.Context) error {
	reason, err := audit.NewReason("the user left the roster")
	if err != nil {
		return err
	}
	_, err = w.engine.Leave(ctx, []id.UserID{w.alice}, reason, keyheraldtest.Admin())
	return err
}

// mayAsk asks once more, and returns why it is refused.
func mayAsk(t *testing.T, account *device.Account) protocol.Refusal {
	t.Helper()
	limited, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := account.EnrollAgain(limited)
	var refused device.Refused
	if !errors.As(err, &refused) {
		t.Fatalf("it is answered %v", err)
	}
	return refused.Reason
}

func (w *world) last(t *testing.T) (postgres.Reenrollment, postgres.Device) {
	t.Helper()
	devices, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	last, _, err := w.db.LastReenrollment(t.Context(), devices[0].ID)
	check(t, err)
	return last, devices[0]
}

func TestADeviceThatAsksAgainIsTurnedAwayWhenItsUserLeavesTheRoster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	enforcer := w.staff(t)
	account := w.thatWaits(t)
	asked, before := w.waiting(t)[0], newest(t, w.db)
	change, err := enforcer.RemoveFromRoster(ctx, w.alice, keyheraldtest.Admin())
	check(t, err)
	if change.Devices != 1 || len(w.waiting(t)) != 0 {
		t.Errorf("leaving changed %+v, and %d wait", change, len(w.waiting(t)))
	}
	last, d := w.last(t)
	if last.ID != asked.ID || last.State != postgres.ReenrollmentRejected || last.DecidedBy != audit.ByRelay().String() || last.DecidedAt.IsZero() || d.State != postgres.Revoked {
		t.Errorf("it is %+v, and the device %s", last, d.State)
	}
	var told []string
	for _, line := range since(t, w.db, before) {
		if strings.HasPrefix(line.Action, "reenrollment.") {
			told = append(told, line.Actor+" "+line.Action+" "+line.Subject+" "+string(line.Detail))
		}
	}
	if len(told) != 1 || !strings.HasPrefix(told[0], "relay reenrollment.rejected "+w.alice.String()+"/"+d.DeviceID.String()) || !strings.Contains(told[0], "the user left the roster") || !strings.Contains(told[0], asked.ID.String()) {
		t.Errorf("the log says %q", told)
	}
	if err := w.engine.ReleaseReenrollment(ctx, asked.ID, keyheraldtest.Admin()); err == nil {
		t.Error("it may be released afterwards")
	}
	// The device is told as after a rejection: it waits for no last word any more.
	store := w.look(t, "managed")
	pin := func() (raw string) {
		check(t, store.QueryRowContext(ctx, `SELECT value FROM state WHERE name = 'pin'`).Scan(&raw))
		return raw
	}
	if !strings.Contains(pin(), `"asked"`) {
		t.Fatalf("it does not wait: %s", pin())
	}
	limited, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- account.Run(limited) }()
	wait(t, "the device to hear of it", func() bool { return !strings.Contains(pin(), `"asked"`) })
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if why := mayAsk(t, account); why != protocol.RefusedNotBefore || len(w.waiting(t)) != 0 {
		t.Errorf("asked once more it is answered %s, and %d wait", why, len(w.waiting(t)))
	}
}

func TestADeviceThatIsRevokedWhileItWaitsIsRejectedAndTheLogSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.thatWaits(t)
	asked, before := w.waiting(t)[0], newest(t, w.db)
	check(t, w.engine.Revoke(ctx, w.alice, asked.DeviceID, "the laptop was stolen", keyheraldtest.Admin()))
	var told []string
	for _, line := range since(t, w.db, before) {
		if strings.HasSuffix(line.Action, "revoked") || strings.HasPrefix(line.Action, "reenrollment.") {
			told = append(told, line.Action+" "+string(line.Detail))
		}
	}
	if len(told) != 2 || !strings.HasPrefix(told[1], "reenrollment.rejected") || !strings.Contains(told[1], asked.ID.String()) || !strings.Contains(told[1], "the laptop was stolen") {
		t.Errorf("the log says %q", told)
	}
	if last, d := w.last(t); last.State != postgres.ReenrollmentRejected || d.State != postgres.Revoked || len(w.waiting(t)) != 0 {
		t.Errorf("it is %q, and the device %s", last.State, d.State)
	}
}

// Whoever leaves is not enrolled any more, however near that is to what the bot is about to do.
func TestNoDeviceIsEnrolledAgainOrQueuedWhoseUserLeavesMeanwhile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// asked says that it waits before its user leaves, and meanwhile is what begins while he does.
		asked     bool
		meanwhile func(t *testing.T, w *world, account *device.Account)
		want      postgres.ReenrollmentState
	}{
		{"it was released", true, func(t *testing.T, w *world, _ *device.Account) {
			t.Helper()
			check(t, w.engine.ReleaseReenrollment(t.Context(), w.waiting(t)[0].ID, keyheraldtest.Admin()))
		}, postgres.ReenrollmentRejected},
		{"it asks", false, func(t *testing.T, w *world, account *device.Account) {
			t.Helper()
			_, err := account.Verify(t.Context(), nil)
			check(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				// What it is answered is looked at below.
				_, _ = account.EnrollAgain(t.Context())
			}()
			t.Cleanup(func() { <-done }) // it logs, which kills the program once the test is over
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			ctx := t.Context()
			account := w.open(t, "managed")
			w.enroll(t, account)
			w.reset(t)
			if test.asked {
				w.askAgain(t, account)
			}
			check(t, w.db.Txn(ctx, func(ctx context.Context) error {
				if _, err := w.db.LockDevicesOf(ctx, []id.UserID{w.alice}); err != nil {
					return err
				}
				test.meanwhile(t, w, account)
				if err := w.isAwaited(t, ctx, "FROM device"); err != nil {
					return err
				}
				// Who waits for the device holds nothing yet of what it asked: the other way round both would wait for each other.
				if _, err := w.db.Exec(ctx, `SELECT id FROM reenrollment FOR UPDATE NOWAIT`); err != nil {
					return err
				}
				return w.leave(ctx)
			}))
			wait(t, "the device to be answered", func() bool {
				var answered int
				check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'sent' AND (key LIKE 'enroll/%' OR key LIKE 'revoked/%')`).Scan(&answered))
				return answered == map[bool]int{false: 3, true: 4}[test.asked]
			})
			last, d := w.last(t)
			if last.State != test.want || d.State != postgres.Revoked || len(w.waiting(t)) != 0 {
				t.Errorf("it is %q, the device %s, and %d wait", last.State, d.State, len(w.waiting(t)))
			}
			if counts := countedByOutcome(t, w.db); counts["device.enrolled accepted"] != 1 {
				t.Errorf("the log has %v", counts)
			}
		})
	}
}
