package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// ruled is a company with a policy in a real database, at a time that stands still until it is moved.
type ruled struct {
	db       *postgres.DB
	database *keyheraldtest.Database
	engine   *relay.Engine
	enforcer *enforce.Enforcer
	now      time.Time
}

// noon is a Monday's, in summer.
var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func newRuled(t *testing.T, storm rotation.StormLimit) *ruled {
	t.Helper()
	w := &ruled{now: noon}
	w.db, _, w.database = newDatabase(t)
	w.open(t, storm)
	return w
}

func (w *ruled) open(t *testing.T, storm rotation.StormLimit) {
	t.Helper()
	now := func() time.Time { return w.now }
	var err error
	w.engine, err = relay.New(relay.Config{DB: w.db, Now: now, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: storm})
	check(t, err)
	w.enforcer, err = enforce.New(enforce.Config{DB: w.db, Engine: w.engine, Now: now})
	check(t, err)
}

// nightly is a rule for everybody, whose window is from ten in the evening to four in the morning, in UTC.
const nightly = `rules:
  - name: staff
    who: {all: true}
    max_age: 30d
    grace: 2d
    windows: [{time_zone: UTC, hours: "22:00-04:00"}]
`

func document(t *testing.T, text string) policy.Document {
	t.Helper()
	d, err := policy.Parse("policy.yaml", []byte(text), nil)
	check(t, err)
	return d
}

func (w *ruled) apply(t *testing.T, text string) {
	t.Helper()
	_, _, err := w.enforcer.ApplyPolicy(t.Context(), enforce.PolicyRequest{Document: document(t, text), Reason: "a test"}, keyheraldtest.Admin())
	check(t, err)
}

// user puts a user on the roster, who has a managed device, a rotation that is done, and a key of this age.
func (w *ruled) user(t *testing.T, name string, age time.Duration) id.UserID {
	t.Helper()
	u := w.placeless(t, name, age)
	r := postgres.Rotation{ID: uuid.Must(uuid.NewV7()), UserID: u, Secret: protocol.SecretMegolmBackup, KMS: protocol.KMSRef{Name: "corporate", Path: "keyherald/" + name, Version: "1"},
		Source: "kms", Action: protocol.ActionPush, CreatedAt: w.now.Add(-age), EndedAt: w.now.Add(-age), Facts: rotation.Facts{State: rotation.Done, BackupVersion: "1"}}
	check(t, w.db.InsertRotations(t.Context(), []postgres.Rotation{r}))
	check(t, w.db.UpdateRotation(t.Context(), r, w.now.Add(-age)))
	return u
}

// placeless is user for one who had no rotation.
func (w *ruled) placeless(t *testing.T, name string, age time.Duration) id.UserID {
	t.Helper()
	ctx := t.Context()
	u := user(name)
	w.onRoster(t, u)
	check(t, w.db.PutDevice(ctx, postgres.Device{ID: w.deviceOf(u), UserID: u, DeviceID: "MANAGED", IdentityKey: id.Curve25519("i" + name), SigningKey: "s", MasterKey: "m", EnrolledAt: w.now}))
	check(t, w.db.CreatedKeyVersion(ctx, u, "1", "key", w.now.Add(-age)))
	w.status(t, u, protocol.Status{BackupVersion: "1", HoldsKey: true})
	return u
}

func (w *ruled) deviceOf(u id.UserID) uuid.UUID { return uuid.NewSHA1(uuid.Nil, []byte(u)) }

func (w *ruled) onRoster(t *testing.T, u id.UserID) {
	t.Helper()
	_, err := w.db.Exec(t.Context(), `INSERT INTO roster (user_id, added_at, added_by) VALUES ($1, $2, 'test')`, u, w.now)
	check(t, err)
}

func (w *ruled) status(t *testing.T, u id.UserID, status protocol.Status) {
	t.Helper()
	raw, err := json.Marshal(status)
	check(t, err)
	check(t, w.db.SawDevice(t.Context(), w.deviceOf(u), w.now, raw))
}

func (w *ruled) step(t *testing.T) {
	t.Helper()
	check(t, w.enforcer.StepPolicy(t.Context()))
}

// byPolicy are the rotations that the policy opened for a user, newest first.
func (w *ruled) byPolicy(t *testing.T, u id.UserID) []postgres.Rotation {
	t.Helper()
	all, err := w.db.Rotations(t.Context(), u, false)
	check(t, err)
	var mine []postgres.Rotation
	for _, r := range all {
		if r.Source == postgres.SourcePolicy {
			mine = append(mine, r)
		}
	}
	return mine
}

// end brings a rotation to an end.
func (w *ruled) end(t *testing.T, r postgres.Rotation, state rotation.State, backupVersion string) {
	t.Helper()
	r.Facts.State, r.Facts.BackupVersion = state, backupVersion
	check(t, w.db.UpdateRotation(t.Context(), r, w.now))
	if backupVersion != "" {
		check(t, w.db.CreatedKeyVersion(t.Context(), r.UserID, backupVersion, "key"+backupVersion, w.now))
		w.status(t, r.UserID, protocol.Status{BackupVersion: backupVersion, HoldsKey: true})
	}
}

func (w *ruled) night(t *testing.T) {
	t.Helper()
	w.now = time.Date(w.now.Year(), w.now.Month(), w.now.Day(), 22, 0, 0, 0, time.UTC)
	if !w.now.After(noon) {
		t.Fatal("time went back")
	}
}

const days = 24 * time.Hour

func TestAPolicyRotatesTheKeysThatAreDueInTheirWindowAndEachOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, nightly)
	old, young, exempt, unplaced, underWay := w.user(t, "old", 31*days), w.user(t, "young", 3*days), w.user(t, "exempt", 31*days), w.placeless(t, "unplaced", 31*days), w.user(t, "underway", 31*days)
	gone := w.user(t, "gone", 31*days)
	_, err := w.db.Exec(ctx, `UPDATE device SET state = 'revoked' WHERE user_id = $1`, gone)
	check(t, err)
	stranger := w.user(t, "stranger", 31*days)
	_, err = w.db.Exec(ctx, `DELETE FROM roster WHERE user_id = $1`, stranger)
	check(t, err)
	_, err = w.db.Exec(ctx, `UPDATE roster SET exempt_reason = 'leave', exempt_until = $2 WHERE user_id = $1`, exempt, noon.Add(5*days))
	check(t, err)
	_, err = w.engine.Rotate(ctx, relay.RotateRequest{UserID: underWay}, keyheraldtest.Admin())
	check(t, err)

	w.step(t)
	if n := len(w.byPolicy(t, old)); n != 0 {
		t.Fatalf("outside of the window %d rotations were opened", n)
	}
	w.night(t)
	w.step(t)
	for _, u := range []id.UserID{young, exempt, unplaced, underWay, gone, stranger} {
		if n := len(w.byPolicy(t, u)); n != 0 {
			t.Errorf("%d rotations were opened for %s", n, u)
		}
	}
	opened := w.byPolicy(t, old)
	if len(opened) != 1 || opened[0].Reason != rotation.ReasonPolicy || opened[0].Action != protocol.ActionRotate || opened[0].KMS.Path != "keyherald/old" || opened[0].Held {
		t.Fatalf("for a key that is due: %+v", opened)
	}
	w.step(t)
	w.end(t, opened[0], rotation.Failed, "")
	for range 40 {
		w.now = w.now.Add(days)
		w.step(t)
	}
	if n := len(w.byPolicy(t, old)); n != 1 {
		t.Errorf("what failed was asked for %d times", n)
	}
	counts := countedByOutcome(t, w.db)
	if counts["policy.changed accepted"] != 1 || counts["rotation.asked refused"] != 0 {
		t.Errorf("the log has %v", counts)
	}
	// All of them became too old meanwhile, and nobody was told of as overdue twice.
	if n := counts["policy.overdue accepted"]; n != 6 || counts["rotation.asked accepted"] != 4 {
		t.Errorf("%d were told of as overdue, want all six that are on the roster, and an admin and the policy asked for old, young, and exempt after his exemption: %v", n, counts)
	}
	var who, what, due string
	check(t, w.db.QueryRow(ctx, `SELECT actor, detail ->> 'reason', detail ->> 'due_at' FROM audit_log WHERE action = 'rotation.asked' AND rotation = $1`, opened[0].ID.String()).Scan(&who, &what, &due))
	if who != "policy:staff" || what != "policy" || due != fmt.Sprint(noon.Add(-1*days).UnixMilli()) {
		t.Errorf("the event says %s, %s, %s", who, what, due)
	}
}

func TestANewKeyIsAsOldAsItIsAndThePolicyComesBackToItInItsTime(t *testing.T) {
	t.Parallel()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, nightly)
	u := w.user(t, "alice", 31*days)
	w.night(t)
	for round := range 3 {
		w.step(t)
		opened := w.byPolicy(t, u)
		if len(opened) != round+1 || opened[0].Facts.State.Ended() {
			t.Fatalf("in round %d there are %d rotations", round, len(opened))
		}
		w.end(t, opened[0], rotation.Done, fmt.Sprint(round+2))
		w.step(t)
		w.now = w.now.Add(30*days - time.Second)
		w.step(t)
		if n := len(w.byPolicy(t, u)); n != round+1 {
			t.Fatalf("a young key was rotated in round %d", round)
		}
		w.now = w.now.Add(time.Second)
	}
}

// A status may be lost: what the device did last is known from its report.
func TestAStatusThatIsLateDoesNotMakeAKeyOldAgain(t *testing.T) {
	t.Parallel()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, nightly)
	u := w.user(t, "alice", 31*days)
	w.night(t)
	r, err := w.engine.Rotate(t.Context(), relay.RotateRequest{UserID: u}, keyheraldtest.Admin())
	check(t, err)
	mine, _, err := w.db.Rotation(t.Context(), r)
	check(t, err)
	w.end(t, mine, rotation.Done, "2")
	w.status(t, u, protocol.Status{BackupVersion: "1", HoldsKey: true}) // from before
	w.step(t)
	if n := len(w.byPolicy(t, u)); n != 0 {
		t.Errorf("a key that an admin had made a moment ago was rotated %d times", n)
	}
}

func TestWhatTimedOutIsAskedForAgainWhenTheDeviceIsBack(t *testing.T) {
	t.Parallel()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, nightly)
	u := w.user(t, "alice", 31*days)
	w.night(t)
	w.step(t)
	w.now = w.now.Add(rotation.Timeout)
	w.end(t, w.byPolicy(t, u)[0], rotation.TimedOut, "")
	w.now = w.now.Add(days)
	w.step(t)
	if n := len(w.byPolicy(t, u)); n != 1 {
		t.Fatalf("nobody was there, and there are %d rotations", n)
	}
	w.status(t, u, protocol.Status{BackupVersion: "1", HoldsKey: true})
	w.step(t)
	w.step(t)
	if all := w.byPolicy(t, u); len(all) != 2 || all[0].Facts.State.Ended() {
		t.Errorf("the device is back, and there are %d rotations", len(all))
	}
}

func TestThePolicyHasAStormsBoundForItselfAndIsNeitherHeldNorCounted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newRuled(t, rotation.StormLimit{Percent: 1, Users: 3})
	w.apply(t, nightly)
	var users []id.UserID
	for i := range 8 {
		users = append(users, w.user(t, fmt.Sprintf("user%d", i), time.Duration(40-i)*days))
	}
	opened := func() (n int) {
		for _, u := range users {
			for _, r := range w.byPolicy(t, u) {
				n++
				if r.Held {
					t.Errorf("the policy's rotation of %s is held", u)
				}
			}
		}
		return n
	}
	w.night(t)
	w.step(t)
	w.step(t)
	if n := opened(); n != 3 || len(w.byPolicy(t, users[0])) != 1 || len(w.byPolicy(t, users[3])) != 0 {
		t.Errorf("%d were opened within the hour, want those of the three oldest keys", n)
	}
	// What the KMS changes meanwhile has the limit for itself.
	for i := 3; i < 7; i++ {
		receipt, err := w.engine.Accept(ctx, intake.Notification{Source: "kms", ID: users[i].String(), User: users[i].String(), Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "keyherald/" + users[i].Localpart(), Version: "2"})
		check(t, err)
		r, _, err := w.db.Rotation(ctx, uuid.MustParse(receipt.RotationID))
		check(t, err)
		if r.Held != (i == 6) {
			t.Errorf("the KMS's change number %d is held: %t", i-2, r.Held)
		}
	}
	check(t, w.engine.Freeze(ctx, keyheraldtest.Admin()))
	w.now = w.now.Add(rotation.StormWindow + time.Second)
	w.step(t)
	if n := opened(); n != 3 {
		t.Errorf("while triggers are frozen %d are opened", n)
	}
	check(t, w.engine.Thaw(ctx, keyheraldtest.Admin()))
	w.step(t)
	if n := opened(); n != 4 {
		t.Errorf("an hour later there are %d, want one more: the others are under way", n)
	}
}
