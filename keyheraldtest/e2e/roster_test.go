package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/roster"
	"github.com/keyherald/keyherald/rotation"
)

// firm is a company in a real database, without devices that run: what they would report is written as it comes.
type firm struct {
	db       *postgres.DB
	database *keyheraldtest.Database
	clock    *keyheraldtest.Clock
	engine   *relay.Engine
	enforcer *enforce.Enforcer
	maxAge   time.Duration
}

func newFirm(t *testing.T) *firm {
	t.Helper()
	f := &firm{clock: &keyheraldtest.Clock{}}
	f.db, _, f.database = newDatabase(t)
	var err error
	f.engine, err = relay.New(relay.Config{DB: f.db, Now: f.clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 100}})
	check(t, err)
	f.enforcer, err = enforce.New(enforce.Config{DB: f.db, Engine: f.engine, Now: f.clock.Now, MaxAges: func(context.Context, time.Time) (func(id.UserID) time.Duration, error) {
		return func(id.UserID) time.Duration { return f.maxAge }, nil
	}})
	check(t, err)
	return f
}

func user(name string) id.UserID { return id.NewUserID(name, "example.org") }

func entriesOf(names ...string) []roster.Entry {
	entries := make([]roster.Entry, len(names))
	for i, name := range names {
		entries[i] = roster.Entry{UserID: user(name)}
	}
	return entries
}

func (f *firm) apply(t *testing.T, entries []roster.Entry) enforce.RosterChange {
	t.Helper()
	change, err := f.enforcer.ApplyRoster(t.Context(), enforce.Roster{Entries: entries}, keyheraldtest.Admin())
	check(t, err)
	return change
}

func (f *firm) enroll(t *testing.T, name string) postgres.Device {
	t.Helper()
	d := postgres.Device{ID: uuid.New(), UserID: user(name), DeviceID: "MANAGED", IdentityKey: id.Curve25519("i" + name), SigningKey: "s", MasterKey: "m", EnrolledAt: f.clock.Now()}
	check(t, f.db.PutDevice(t.Context(), d))
	check(t, f.db.Append(t.Context(), audit.Event{Time: f.clock.Now(), Actor: audit.ByDevice(d.UserID, d.DeviceID), Action: audit.DeviceEnrolled, Subject: audit.OfDevice(d.UserID, d.DeviceID), Outcome: audit.Accepted}))
	return d
}

func (f *firm) states(t *testing.T, standings []roster.Standing, err error) map[string]roster.State {
	t.Helper()
	check(t, err)
	states := map[string]roster.State{}
	for _, s := range standings {
		states[s.UserID.Localpart()] = s.State
	}
	return states
}

// at is who stood where at a time, by the log.
func (f *firm) at(t *testing.T, at time.Time) map[string]roster.State {
	t.Helper()
	_, standings, err := f.enforcer.ComplianceAt(t.Context(), at, "", keyheraldtest.Admin())
	return f.states(t, standings, err)
}

func (f *firm) now(t *testing.T) map[string]roster.State {
	t.Helper()
	_, standings, err := f.enforcer.Compliance(t.Context())
	return f.states(t, standings, err)
}

// told are the actions of the events after one, in their order.
func (f *firm) told(t *testing.T, after uuid.UUID) []string {
	t.Helper()
	var told []string
	for _, line := range since(t, f.db, after) {
		told = append(told, strings.TrimSpace(line.Action+" "+strings.TrimPrefix(line.Subject, "roster")))
	}
	return told
}

func TestARosterIsAppliedWholeAndTheSameAgainIsOneEvent(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	until := f.clock.Now().Add(time.Hour).UTC()
	exempt := roster.Entry{UserID: user("carol"), Exemption: roster.Exemption{Reason: "on leave", Until: until}}
	for _, test := range []struct {
		name    string
		entries []roster.Entry
		want    enforce.RosterChange
		told    []string
	}{
		{"a first roster", append(entriesOf("alice", "bob"), exempt), enforce.RosterChange{Users: 3, Added: 3, Exempted: 1},
			[]string{"roster.user_added @alice:example.org", "roster.user_added @bob:example.org", "roster.user_added @carol:example.org", "roster.exempted @carol:example.org", "roster.applied"}},
		{"the same again", append(entriesOf("alice", "bob"), exempt), enforce.RosterChange{Users: 3}, []string{"roster.applied"}},
		{"one leaves, one comes, one is exempt no more", entriesOf("bob", "carol", "dave"), enforce.RosterChange{Users: 3, Added: 1, Left: 1, ExemptionsEnded: 1},
			[]string{"roster.user_left @alice:example.org", "roster.exemption_ended @carol:example.org", "roster.user_added @dave:example.org", "roster.applied"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := newest(t, f.db)
			if got := f.apply(t, test.entries); got != test.want {
				t.Errorf("it changed %+v", got)
			}
			if told := f.told(t, before); !reflect.DeepEqual(told, test.told) {
				t.Errorf("the log says %v", told)
			}
			rows, err := f.db.Roster(ctx, postgres.RosterFilter{})
			check(t, err)
			if len(rows) != len(test.entries) {
				t.Fatalf("the roster has %d users", len(rows))
			}
			for i, row := range rows {
				if row.UserID != test.entries[i].UserID || !row.Exemption.Same(test.entries[i].Exemption) || row.AddedBy != keyheraldtest.Admin().String() {
					t.Errorf("it has %+v", row)
				}
			}
		})
	}
}

// Leaving ends what is under way and tells the devices, as cancelling and revoking do, and voids the codes.
func TestWhoLeavesTheRosterHasHisRotationsCancelledAndHisDevicesRevoked(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	f.apply(t, entriesOf("alice", "bob"))
	for _, name := range []string{"alice", "bob"} {
		f.enroll(t, name)
		_, err := f.engine.Accept(ctx, notification(name, name, "1"))
		check(t, err)
		_, err = f.engine.NewCode(ctx, user(name), time.Hour, keyheraldtest.Admin())
		check(t, err)
	}
	before := newest(t, f.db)
	if got, want := f.apply(t, entriesOf("bob")), (enforce.RosterChange{Users: 1, Left: 1, Rotations: 1, Devices: 1, Codes: 1}); got != want {
		t.Errorf("it changed %+v", got)
	}
	want := []string{"device.revoked @alice:example.org/MANAGED", "rotation.cancelled @alice:example.org", "roster.user_left @alice:example.org", "roster.applied"}
	if told := f.told(t, before); !reflect.DeepEqual(told, want) {
		t.Errorf("the log says %v", told)
	}
	for name, stays := range map[string]bool{"alice": false, "bob": true} {
		open, err := f.db.Rotations(ctx, user(name), true)
		check(t, err)
		devices, err := f.db.Devices(ctx, user(name))
		check(t, err)
		codes, err := f.db.HasOpenCode(ctx, user(name), f.clock.Now())
		check(t, err)
		if (len(open) == 1) != stays || (devices[0].State == postgres.Enrolled) != stays || codes != stays {
			t.Errorf("%s has %d open rotations, an open code: %t, and a device that is %s", name, len(open), codes, devices[0].State)
		}
	}
	untold, err := f.db.RevokedUntold(ctx)
	check(t, err)
	if len(untold) != 1 || untold[0].UserID != user("alice") {
		t.Errorf("these are to be told that they are revoked: %v", untold)
	}
	// Coming back brings nothing back.
	f.apply(t, entriesOf("alice", "bob"))
	if got := f.now(t)["alice"]; got != roster.NotCovered {
		t.Errorf("who came back is %s", got)
	}
}

func TestARosterThatIsNotMeantIsRefusedAndNothingHappens(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	admin := keyheraldtest.Admin()
	var many []roster.Entry
	for i := range 100 {
		many = append(many, entriesOf(fmt.Sprintf("u%03d", i))...)
	}
	f.apply(t, many)
	f.enroll(t, "u000")
	check(t, f.enforcer.Exempt(ctx, user("u099"), "on leave", f.clock.Now().Add(time.Hour), admin))
	apply := func(entries []roster.Entry, removals int) func() error {
		return func() error {
			_, err := f.enforcer.ApplyRoster(ctx, enforce.Roster{Entries: entries, AllowRemovals: removals}, admin)
			return err
		}
	}
	remove := func(name string) func() error {
		return func() error { _, err := f.enforcer.RemoveFromRoster(ctx, user(name), admin); return err }
	}
	for _, test := range []struct {
		name   string
		do     func() error
		says   string
		action audit.Action
		code   refusal.Code
		why    audit.Refusal
	}{
		{"half a file", apply(many[:50], 0), "50 of 100 users would leave", audit.RosterApplied, refusal.Conflict, audit.RefusedTooManyLeave},
		{"more than was said", apply(many[:50], 49), "--allow-removals 50", audit.RosterApplied, refusal.Conflict, audit.RefusedTooManyLeave},
		{"an empty file", apply(nil, 0), "100 of 100", audit.RosterApplied, refusal.Conflict, audit.RefusedTooManyLeave},
		{"what is no user id", apply([]roster.Entry{{UserID: "bob"}}, 100), "not a Matrix user id", audit.RosterApplied, refusal.Invalid, audit.RefusedEntry},
		{"a user twice", apply(append(entriesOf("u001"), many...), 0), "twice", audit.RosterApplied, refusal.Invalid, audit.RefusedEntry},
		{"an exemption without an end", apply([]roster.Entry{{UserID: user("u001"), Exemption: roster.Exemption{Reason: "x"}}}, 100), "no end", audit.RosterApplied, refusal.Invalid, audit.RefusedEntry},
		{"adding who is there", func() error { return f.enforcer.AddToRoster(ctx, many[0], admin) }, "already", audit.RosterUserAdded, refusal.Conflict, audit.RefusedAlreadySo},
		{"adding what is no user id", func() error { return f.enforcer.AddToRoster(ctx, roster.Entry{UserID: "bob"}, admin) }, "not a Matrix user id", audit.RosterUserAdded, refusal.Invalid, audit.RefusedEntry},
		{"removing who is not there", remove("nobody"), "not on the roster", audit.RosterUserLeft, refusal.NotFound, audit.RefusedNotOnRoster},
		{"exempting who is not there", func() error {
			return f.enforcer.Exempt(ctx, user("nobody"), "x", f.clock.Now().Add(time.Hour), admin)
		}, "not on the roster", audit.RosterExempted, refusal.NotFound, audit.RefusedNotOnRoster},
		{"exempting without a reason", func() error { return f.enforcer.Exempt(ctx, user("u001"), " ", f.clock.Now().Add(time.Hour), admin) }, "reason", audit.RosterExempted, refusal.Invalid, audit.RefusedNoReason},
		{"exempting until yesterday", func() error {
			return f.enforcer.Exempt(ctx, user("u001"), "x", f.clock.Now().Add(-24*time.Hour), admin)
		}, "is over", audit.RosterExempted, refusal.Invalid, audit.RefusedEndsInThePast},
		{"including who is not exempt", func() error { return f.enforcer.Include(ctx, user("u001"), admin) }, "no exemption", audit.RosterExemptionEnded, refusal.Conflict, audit.RefusedNotExempt},
		{"including who is not there", func() error { return f.enforcer.Include(ctx, user("nobody"), admin) }, "not on the roster", audit.RosterExemptionEnded, refusal.NotFound, audit.RefusedNotOnRoster},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := newest(t, f.db)
			err := test.do()
			code, why, refused := refusal.Of(err)
			if !refused || code != test.code || why != test.why || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("it ended with %v (%s, %s)", err, code, why)
			}
			lines := since(t, f.db, before)
			var detail struct{ Refusal audit.Refusal }
			if len(lines) != 1 || lines[0].Action != string(test.action) || lines[0].Outcome != string(audit.Refused) || json.Unmarshal(lines[0].Detail, &detail) != nil || detail.Refusal != test.why {
				t.Errorf("the log says %+v", lines)
			}
			if n, err := f.db.RosterSize(ctx); err != nil || n != 100 {
				t.Errorf("the roster has %d users (%v)", n, err)
			}
			if devices, err := f.db.Devices(ctx, user("u000")); err != nil || devices[0].State != postgres.Enrolled {
				t.Errorf("a device was revoked (%v)", err)
			}
		})
	}
	if err := apply(many[:79], 21)(); err != nil {
		t.Errorf("what was said to be meant was refused: %v", err)
	}
	if err := apply(many[:59], 0)(); err != nil {
		t.Errorf("20 of 79 may leave: %v", err)
	}
}

// errInterrupted stands for whatever may end a transaction.
var errInterrupted = errors.New("interrupted")

func TestARosterThatIsInterruptedChangedNothing(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	f.apply(t, entriesOf("alice", "bob"))
	f.enroll(t, "alice")
	before := newest(t, f.db)
	err := f.db.Txn(ctx, func(ctx context.Context) error {
		if _, err := f.enforcer.ApplyRoster(ctx, enforce.Roster{Entries: entriesOf("bob", "carol")}, keyheraldtest.Admin()); err != nil {
			return err
		}
		return errInterrupted
	})
	if !errors.Is(err, errInterrupted) {
		t.Fatal(err)
	}
	devices, err := f.db.Devices(ctx, user("alice"))
	check(t, err)
	if told := f.told(t, before); len(told) != 0 || devices[0].State != postgres.Enrolled || f.now(t)["alice"] != roster.Unknown {
		t.Errorf("the log says %v, and the device is %s", told, devices[0].State)
	}
}

// Whoever asks about a time that is over hears of the roster, devices and rotations of then.
func TestComplianceOfAnEarlierTimeCountsTheRosterOfThen(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	admin := keyheraldtest.Admin()
	type moment struct {
		at   time.Time
		want map[string]roster.State
	}
	var moments []moment
	mark := func() {
		t.Helper()
		m := moment{f.clock.Now(), f.now(t)}
		moments = append(moments, m)
		// The log has the milliseconds of what happened.
		f.clock.Advance(time.Minute)
		if got := f.at(t, m.at); !reflect.DeepEqual(got, m.want) {
			t.Errorf("now it is %v, and by the log %v", m.want, got)
		}
	}
	f.apply(t, nil)
	mark()
	f.apply(t, entriesOf("alice", "bob"))
	mark()
	f.enroll(t, "alice")
	f.enroll(t, "bob")
	mark()
	receipt, err := f.engine.Accept(ctx, notification("n", "bob", "1"))
	check(t, err)
	mark()
	check(t, f.enforcer.Exempt(ctx, user("alice"), "on leave", f.clock.Now().Add(time.Hour), admin))
	mark()
	check(t, f.engine.Cancel(ctx, uuid.MustParse(receipt.RotationID), admin))
	mark()
	f.clock.Advance(time.Hour)
	mark()
	check(t, f.enforcer.AddToRoster(ctx, roster.Entry{UserID: user("carol")}, admin))
	_, err = f.enforcer.RemoveFromRoster(ctx, user("alice"), admin)
	check(t, err)
	mark()
	check(t, f.enforcer.AddToRoster(ctx, roster.Entry{UserID: user("alice")}, admin))
	mark()
	for i, m := range moments {
		if got := f.at(t, m.at); !reflect.DeepEqual(got, m.want) {
			t.Errorf("moment %d was %v, and is by the log %v", i, m.want, got)
		}
	}
	if want := map[string]roster.State{"alice": roster.Exempt, "bob": roster.Unknown}; !reflect.DeepEqual(moments[4].want, want) {
		t.Errorf("at moment 4 it was %v", moments[4].want)
	}
	if _, _, err := f.enforcer.ComplianceAt(ctx, f.clock.Now().Add(time.Hour), "", admin); err == nil {
		t.Error("the future is told")
	}
}
