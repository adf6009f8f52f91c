package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/roster"
)

// asking is a faulty world whose user resets his identity again and again, and what an admin does about it then.
type asking struct {
	*faulty
	engine   *relay.Engine
	enforcer *enforce.Enforcer
	// name is the managed device's, and row its number at the server.
	name string
	row  uuid.UUID
	// turn counts, and told is how often the log told of each act before it.
	turn int
	told map[string]int
}

// newAsking has the admin act past the same recorder as the server does, as in the API he does.
func newAsking(t *testing.T) *asking {
	t.Helper()
	// A device finds out by a status that its user's identity is another one.
	a := &asking{faulty: newFaulty(t, func(w *faulty) { w.statusInterval = time.Second }), name: "managed"}
	a.device.stop(t)
	a.device = &program{start: func() {
		account := a.openNamed(t, a.name)
		a.device.running(t, account.Close, account.Run)
	}}
	a.device.start()
	connector, err := pq.NewConnector(a.database.WriterURL)
	check(t, err)
	db, err := postgres.OpenWith(t.Context(), sql.OpenDB(a.faults.Connector("PostgreSQL", connector)), a.database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	a.engine, err = relay.New(relay.Config{DB: db, Now: a.clock.Now, BotUserID: a.identity.UserID, BotMasterKey: a.masterKey})
	check(t, err)
	a.enforcer, err = enforce.New(enforce.Config{DB: db, Engine: a.engine, Now: a.clock.Now})
	check(t, err)
	a.row = a.enrolled(t)
	return a
}

// enrolled is the number of the user's one enrolled device.
func (a *asking) enrolled(t *testing.T) uuid.UUID {
	t.Helper()
	devices, err := a.db.Devices(t.Context(), a.alice)
	check(t, err)
	i := slices.IndexFunc(devices, func(d postgres.Device) bool { return d.State == postgres.Enrolled })
	if i < 0 {
		t.Fatal("no device is enrolled")
	}
	return devices[i].ID
}

// begin makes the user a member with an enrolled device whose identity was reset.
func (a *asking) begin(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	a.turn++
	rows, err := a.db.Roster(ctx, postgres.RosterFilter{})
	check(t, err)
	if len(rows) == 0 {
		check(t, a.enforcer.AddToRoster(ctx, roster.Entry{UserID: a.alice}, keyheraldtest.Admin()))
	}
	if _, d := a.now(t); d.State != postgres.Enrolled {
		a.device.stop(t)
		if d.State == postgres.Revoked {
			a.name = fmt.Sprint("managed", a.turn) // what was revoked stays so
		}
		account := a.openNamed(t, a.name)
		a.enroll(t, account)
		check(t, account.Close())
		a.device.start()
		a.row, a.store = a.enrolled(t), a.look(t, a.name)
	}
	a.reset(t)
	a.told = countedByOutcome(t, a.db)
}

func (a *asking) now(t *testing.T) (postgres.Reenrollment, postgres.Device) {
	t.Helper()
	d, err := a.db.Device(t.Context(), a.row)
	check(t, err)
	last, _, err := a.db.LastReenrollment(t.Context(), a.row)
	check(t, err)
	return last, d
}

// pinned is what the device keeps of the server.
func (a *asking) pinned(t *testing.T) (raw string) {
	t.Helper()
	check(t, a.store.QueryRowContext(t.Context(), `SELECT value FROM state WHERE name = 'pin'`).Scan(&raw))
	return raw
}

// rests waits until nothing is on its way between bot and device, and is says that it came to what it should.
func (a *asking) rests(t *testing.T, is func() error) {
	t.Helper()
	check(t, keyheraldtest.Until(t.Context(), patience, func() error {
		a.tend(t)
		for what, n := range map[string]int{
			"the bot's outbox":    a.count(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`),
			"what was decided":    a.count(t, `SELECT COUNT(*) FROM reenrollment WHERE NOT settled AND state <> 'waiting'`),
			"who was not told":    a.count(t, `SELECT COUNT(*) FROM device WHERE state = 'revoked' AND revocation_told_at IS NULL`),
			"the device's inbox":  a.inStore(t, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'pending'`),
			"the device's outbox": a.inStore(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending' AND key LIKE 'enroll/%'`),
		} {
			if n != 0 {
				return fmt.Errorf("%s: %d", what, n)
			}
		}
		return is()
	}))
}

// ask has the new identity sign the device, and waits until the device waits for an admin and both know it.
func (a *asking) ask(t *testing.T) (asked postgres.Reenrollment) {
	t.Helper()
	_, before := a.now(t)
	a.resign(t, before.DeviceID)
	a.rests(t, func() error {
		queue := a.waiting(t)
		if len(queue) != 1 {
			return fmt.Errorf("%d wait", len(queue))
		}
		asked = queue[0]
		if pin := a.pinned(t); !strings.Contains(pin, `"accepted":false`) || !strings.Contains(pin, `"asked":"`+string(asked.NewMasterKey)) {
			return fmt.Errorf("the device keeps %s", pin)
		}
		return nil
	})
	if _, d := a.now(t); asked.Device != a.row || d.State != postgres.NeedsEnrollment || d.MasterKey != before.MasterKey || asked.OldMasterKey != before.MasterKey {
		t.Errorf("the device is %s, and asks %+v", d.State, asked)
	}
	return asked
}

// decide does what an admin does until he hears that it is done, or finds that it was when he was told that it failed.
func (a *asking) decide(t *testing.T, act func(ctx context.Context) error) {
	t.Helper()
	failures := 0
	check(t, keyheraldtest.Until(t.Context(), patience, func() error {
		a.tend(t)
		err := act(t.Context())
		if code, _, no := refusal.Of(err); no && failures > 0 && (code == refusal.Conflict || code == refusal.NotFound) {
			return nil
		}
		if err != nil {
			failures++
		}
		return err
	}))
}

// tells wants the log to have told of these acts once in this turn, and of no other of them. What was refused to an admin who
// tries again is his affair.
func (a *asking) tells(t *testing.T, once ...string) {
	t.Helper()
	now := countedByOutcome(t, a.db)
	for _, act := range []string{"reenrollment.queued accepted", "reenrollment.released accepted", "reenrollment.rejected accepted", "device.needs_enrollment refused", "device.enrolled accepted",
		"device.revoked accepted", "device.revocation_queued accepted", "roster.user_left accepted", "enrollment.refused refused"} {
		want := 0
		if slices.Contains(once, act) {
			want = 1
		}
		if told := now[act] - a.told[act]; told != want {
			t.Errorf("the log tells %d times of %s, and not %d", told, act, want)
		}
	}
}

// decision is what becomes of a device that asks.
type decision struct {
	name   string
	act    func(ctx context.Context, a *asking, asked postgres.Reenrollment) error
	want   postgres.ReenrollmentState
	by     audit.Actor
	device postgres.DeviceState
	pinned string
	tells  []string
}

// A device asks again once, what is decided about it is carried out once and the device hears it, and the log has each once,
// whichever write of server or device fails; an admin who hears of a failure tries again. So it is where the user leaves
// the roster instead.
func TestADeviceThatAsksAgainIsDecidedOnceWhicheverWriteFails(t *testing.T) {
	t.Parallel()
	for _, d := range []decision{
		{"released", func(ctx context.Context, a *asking, asked postgres.Reenrollment) error {
			return a.engine.ReleaseReenrollment(ctx, asked.ID, keyheraldtest.Admin())
		}, postgres.ReenrollmentEnrolled, keyheraldtest.Admin(), postgres.Enrolled, `"accepted":true`, []string{"reenrollment.released accepted", "device.enrolled accepted"}},
		{"rejected", func(ctx context.Context, a *asking, asked postgres.Reenrollment) error {
			return a.engine.RejectReenrollment(ctx, asked.ID, "she did not reset it", keyheraldtest.Admin())
		}, postgres.ReenrollmentRejected, keyheraldtest.Admin(), postgres.NeedsEnrollment, `"accepted":false`, []string{"reenrollment.rejected accepted"}},
		{"left", func(ctx context.Context, a *asking, _ postgres.Reenrollment) error {
			_, err := a.enforcer.RemoveFromRoster(ctx, a.alice, keyheraldtest.Admin())
			return err
		}, postgres.ReenrollmentRejected, audit.ByRelay(), postgres.Revoked, `"accepted":false`, []string{"reenrollment.rejected accepted", "device.revoked accepted", "device.revocation_queued accepted", "roster.user_left accepted"}},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			a := newAsking(t)
			a.tryTable(t, func() { a.begin(t) }, func(t *testing.T) { a.decided(t, d) }, func(label string) bool {
				// What a device's statuses write, and the bot when it hears them, is not meant here.
				return strings.Contains(label, "reenrollment") || strings.HasPrefix(label, "SQLite") && strings.Contains(label, " state")
			}, true)
		})
	}
}

func (a *asking) decided(t *testing.T, d decision) {
	t.Helper()
	asked := a.ask(t)
	a.tells(t, "reenrollment.queued accepted", "device.needs_enrollment refused")
	a.decide(t, func(ctx context.Context) error { return d.act(ctx, a, asked) })
	a.rests(t, func() error {
		last, now := a.now(t)
		if last.ID != asked.ID || last.State != d.want || now.State != d.device {
			return fmt.Errorf("it is %s, and the device %s", last.State, now.State)
		}
		if pin := a.pinned(t); !strings.Contains(pin, d.pinned) || strings.Contains(pin, `"asked"`) {
			return fmt.Errorf("the device keeps %s", pin)
		}
		return nil
	})
	last, now := a.now(t)
	if last.DecidedBy != d.by.String() || d.device == postgres.Enrolled && now.MasterKey != asked.NewMasterKey {
		t.Errorf("it was decided by %s, and the device has %s", last.DecidedBy, now.MasterKey)
	}
	if n := a.count(t, `SELECT COUNT(*) FROM todevice_outbox WHERE key = $1`, "enroll/"+asked.ID.String()); n != 1 {
		t.Errorf("the device is told %d times", n)
	}
	a.tells(t, append(d.tells, "reenrollment.queued accepted", "device.needs_enrollment refused")...)
}
