package e2e

import (
	"reflect"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/roster"
)

func (f *firm) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	_, err := f.db.Exec(t.Context(), statement, args...)
	check(t, err)
}

// says is a device's status.
func (f *firm) says(t *testing.T, d postgres.Device, at time.Time, status string) {
	t.Helper()
	check(t, f.db.SawDevice(t.Context(), d.ID, at, []byte(status)))
}

// What the rules ask is read from the rows as they are, by everybody at once and by pages.
func TestTheRowsSayWhereEverybodyStands(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	f.maxAge = 100 * time.Hour
	ctx := t.Context()
	const fine = `{"backup_version": "3", "holds_key": true}`
	now := f.clock.Now()
	fresh, long := now.Add(-time.Minute), now.Add(-200*time.Hour)
	open := func(name, version, state, attention, held string) {
		t.Helper()
		_, err := f.engine.Accept(ctx, notification(name+version, name, version))
		check(t, err)
		f.exec(t, `UPDATE rotation SET state = $3, needs_attention = $4, held = $5 <> '', held_for = $5, ended_at = CASE WHEN $3 IN ('failed', 'done', 'cancelled', 'timed_out') THEN now() END
			WHERE user_id = $1 AND version = $2`, user(name), version, state, attention, held)
	}
	covered := func(name, status string, at time.Time) postgres.Device {
		t.Helper()
		d := f.enroll(t, name)
		f.says(t, d, at, status)
		check(t, f.db.CreatedKeyVersion(ctx, user(name), "3", "k", fresh))
		return d
	}
	want := map[string]roster.State{}
	var entries []roster.Entry
	is := func(name string, state roster.State) {
		want[name] = state
		entries = append(entries, entriesOf(name)...)
	}

	is("never", roster.NotCovered)
	is("revoked", roster.NotCovered)
	check(t, f.db.SetDeviceState(ctx, covered("revoked", fine, fresh).ID, postgres.Revoked))
	is("reset", roster.NotCovered)
	check(t, f.db.SetDeviceState(ctx, covered("reset", fine, fresh).ID, postgres.NeedsEnrollment))
	is("current", roster.Current)
	covered("current", fine, fresh)
	open("current", "1", "failed", "", "")
	open("current", "2", "done", "", "")
	open("current", "3", "cancelled", "", "")
	is("working", roster.InProgress)
	covered("working", fine, fresh)
	open("working", "1", "working", "", "")
	is("stuck", roster.NeedsAttention)
	covered("stuck", fine, long)
	open("stuck", "1", "working", "kms_forbidden", "")
	is("stuckbefore", roster.NeedsAttention)
	covered("stuckbefore", fine, fresh)
	open("stuckbefore", "1", "working", "kms_forbidden", "")
	f.exec(t, `INSERT INTO rotation (id, user_id, secret, kms, path, version, source, state, created_at, updated_at) SELECT gen_random_uuid(), user_id, secret, kms, 'another', version, source, 'working', now(), now()
		FROM rotation WHERE user_id = $1`, user("stuckbefore"))
	is("held", roster.NeedsAttention)
	covered("held", fine, fresh)
	open("held", "1", "received", "", "storm")
	is("unsigned", roster.InProgress)
	covered("unsigned", fine, fresh)
	open("unsigned", "1", "received", "", "log_unsigned")
	is("failed", roster.NeedsAttention)
	covered("failed", fine, fresh)
	open("failed", "1", "failed", "", "")
	is("silent", roster.Unknown)
	covered("silent", fine, long)
	is("new", roster.Unknown)
	f.enroll(t, "new")
	is("drifted", roster.NeedsAttention)
	covered("drifted", `{"backup_version": "3", "holds_key": true, "drifted": {"kind": "backup_reset_by_user"}}`, fresh)
	is("keyless", roster.NeedsAttention)
	covered("keyless", `{"backup_version": "3", "holds_key": false}`, fresh)
	is("old", roster.Overdue)
	covered("old", `{"backup_version": "2", "holds_key": true}`, fresh)
	check(t, f.db.CreatedKeyVersion(ctx, user("old"), "2", "k", long))
	is("ageless", roster.Overdue)
	covered("ageless", `{"backup_version": "9", "holds_key": true}`, fresh)
	// Of these the key is as old, and something else says where they stand.
	for name, state := range map[string]roster.State{"oldsilent": roster.Unknown, "oldstuck": roster.NeedsAttention, "oldworking": roster.InProgress, "oldexempt": roster.Exempt} {
		is(name, state)
		d, at := f.enroll(t, name), fresh
		switch state {
		case roster.Unknown:
			at = long
		case roster.NeedsAttention:
			open(name, "1", "working", "kms_forbidden", "")
		case roster.InProgress:
			open(name, "1", "working", "", "")
		default:
			entries[len(entries)-1].Exemption = roster.Exemption{Reason: "on leave", Until: now.Add(time.Hour)}
		}
		f.says(t, d, at, `{"backup_version": "2", "holds_key": true}`)
		check(t, f.db.CreatedKeyVersion(ctx, user(name), "2", "k", long))
	}
	is("exempt", roster.Exempt)
	entries[len(entries)-1].Exemption = roster.Exemption{Reason: "on leave", Until: now.Add(time.Hour)}
	is("exemptbefore", roster.NotCovered)
	entries[len(entries)-1].Exemption = roster.Exemption{Reason: "on leave", Until: now.Add(-time.Hour)}
	// Of two devices the one that was heard of last says what is current, and one that is enrolled no more says nothing.
	is("two", roster.Current)
	covered("two", `{"backup_version": "2", "holds_key": true, "drifted": {"kind": "backup_gone"}}`, fresh.Add(-time.Minute))
	for _, other := range []struct {
		device, status string
		state          postgres.DeviceState
	}{{"NEWER", fine, postgres.Enrolled}, {"GONE", `{"backup_version": "1"}`, postgres.Revoked}} {
		f.exec(t, `INSERT INTO device (id, user_id, device_id, identity_key, signing_key, master_key, state, enrolled_at, status, status_at) VALUES (gen_random_uuid(), $1, $2, $2, 's', 'm', $3, now(), $4, $5)`,
			user("two"), other.device, other.state, other.status, fresh)
	}
	// Who is not on the roster is in no number.
	covered("stranger", fine, fresh)

	f.apply(t, entries)
	counts, standings, err := f.enforcer.Compliance(ctx)
	if got := f.states(t, standings, err); !reflect.DeepEqual(got, want) {
		for name, state := range want {
			if got[name] != state {
				t.Errorf("%s is %s instead of %s", name, got[name], state)
			}
		}
	}
	if current, of := counts.Current(); current != 2 || of != len(entries)-2 || counts.Roster != len(entries) {
		t.Errorf("it is %s of %d", counts, counts.Roster)
	}
	if counts.PastMaxAge != 4 {
		t.Errorf("of %d users the key is too old, and not of old, oldsilent, oldstuck and oldworking", counts.PastMaxAge)
	}
	var paged []roster.Standing
	for after := id.UserID(""); ; {
		page, err := f.enforcer.Standings(ctx, enforce.StandingFilter{After: after, Limit: 4})
		check(t, err)
		paged = append(paged, page...)
		if len(page) < 4 {
			break
		}
		after = page[len(page)-1].UserID
	}
	if !reflect.DeepEqual(withoutPlaces(paged), withoutPlaces(standings)) {
		t.Errorf("by pages it is\n%+v, and at once\n%+v", paged, standings)
	}
	stuck, err := f.enforcer.Standings(ctx, enforce.StandingFilter{Limit: 2, After: user("failed"), States: []roster.State{roster.NeedsAttention}})
	if got := f.states(t, stuck, err); !reflect.DeepEqual(got, map[string]roster.State{"held": roster.NeedsAttention, "keyless": roster.NeedsAttention}) {
		t.Errorf("two who need attention are %v", got)
	}
	some, err := f.enforcer.Standings(ctx, enforce.StandingFilter{Users: []id.UserID{user("old"), user("stranger")}})
	if got := f.states(t, some, err); !reflect.DeepEqual(got, map[string]roster.State{"old": roster.Overdue}) {
		t.Errorf("of two users %v are told", got)
	}
}

// withoutPlaces has all times in one zone.
func withoutPlaces(standings []roster.Standing) []roster.Standing {
	all := make([]roster.Standing, len(standings))
	for i, s := range standings {
		s.KeySince, s.LastStatus, s.Exemption.Until = s.KeySince.UTC(), s.LastStatus.UTC(), s.Exemption.Until.UTC()
		all[i] = s
	}
	return all
}

// Since when a version is there is what the first who can know it says.
func TestAKeysAgeCountsFromItsVersionsCreation(t *testing.T) {
	t.Parallel()
	f := newFirm(t)
	ctx := t.Context()
	at := func(hours int) time.Time {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(hours) * time.Hour)
	}
	saw := func(hours int, key string) func(id.UserID) error {
		return func(u id.UserID) error { return f.db.SawKeyVersion(ctx, u, "1", key, at(hours)) }
	}
	created := func(hours int, key string) func(id.UserID) error {
		return func(u id.UserID) error { return f.db.CreatedKeyVersion(ctx, u, "1", key, at(hours)) }
	}
	for _, test := range []struct {
		name     string
		told     []func(id.UserID) error
		want     int
		onlySeen bool
	}{
		{"seen, and seen again", []func(id.UserID) error{saw(5, "k"), saw(9, "k")}, 5, true},
		{"created, and seen after", []func(id.UserID) error{created(5, "k"), saw(9, "k")}, 5, false},
		{"seen before its creation was told", []func(id.UserID) error{saw(9, "k"), created(5, "k")}, 5, false},
		{"created by two", []func(id.UserID) error{created(5, "k"), created(7, "k")}, 5, false},
		{"seen without its key, and with it", []func(id.UserID) error{saw(5, ""), saw(9, "k")}, 5, true},
		{"another key under the same name", []func(id.UserID) error{created(5, "k"), saw(9, "other")}, 9, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.exec(t, `DELETE FROM key_version`)
			for _, tell := range test.told {
				check(t, tell(user("alice")))
			}
			var since time.Time
			var onlySeen bool
			check(t, f.db.QueryRow(ctx, `SELECT created_at, only_seen FROM key_version`).Scan(&since, &onlySeen))
			if !since.Equal(at(test.want)) || onlySeen != test.onlySeen {
				t.Errorf("it is there since %s, only seen: %t", since, onlySeen)
			}
		})
	}
}

// checkKeyVersion checks that the version that a rotation made counts from its creation, and the user's own before it from
// when the device first named it; and that the log says the same.
func (w *world) checkKeyVersion(t *testing.T, done postgres.Rotation) {
	t.Helper()
	ctx := t.Context()
	enforcer, err := enforce.New(enforce.Config{DB: w.db, Engine: w.engine, Now: w.clock.Now})
	check(t, err)
	_, err = enforcer.ApplyRoster(ctx, enforce.Roster{Entries: []roster.Entry{{UserID: w.alice}}}, keyheraldtest.Admin())
	check(t, err)
	var standing roster.Standing
	wait(t, "the status that names the new version", func() bool {
		standings, err := enforcer.Standings(ctx, enforce.StandingFilter{})
		check(t, err)
		standing = standings[0]
		return standing.State == roster.Current && !standing.OnlySeen
	})
	if since := standing.KeySince; since.Before(done.CreatedAt) || since.After(done.EndedAt) {
		t.Errorf("the key is of %s, and the rotation was from %s to %s", since, done.CreatedAt, done.EndedAt)
	}
	var own int
	check(t, w.db.QueryRow(ctx, `SELECT COUNT(*) FROM key_version WHERE user_id = $1 AND version <> $2 AND only_seen`, w.alice, done.Facts.BackupVersion).Scan(&own))
	if own != 1 {
		t.Errorf("%d versions are only seen", own)
	}
	_, then, err := enforcer.ComplianceAt(ctx, w.clock.Now(), "", keyheraldtest.Admin())
	check(t, err)
	if len(then) != 1 || then[0].State != roster.Current || then[0].OnlySeen || then[0].KeySince.Sub(standing.KeySince).Abs() > patience {
		t.Errorf("the log says %+v, and the rows %+v", then, standing)
	}
}
