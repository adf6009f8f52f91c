package e2e

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

func TestWhereTheKMSMakesKeysNobodyIsRotatedAndWhoIsOverdueIsToldOfOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, "rules: [{name: vault, who: {all: true}, max_age: 30d, grace: 2d, action: kms_generates}]")
	u, current := w.user(t, "alice", 31*days), w.user(t, "bob", days)
	states := func() string {
		standings, err := w.enforcer.Standings(ctx, enforce.StandingFilter{})
		check(t, err)
		return fmt.Sprint(standings[0].State, " ", standings[1].State)
	}
	w.step(t)
	if got := states(); got != "current current" || countedByOutcome(t, w.db)["policy.overdue accepted"] != 0 {
		t.Errorf("within the grace: %s", got)
	}
	w.now = w.now.Add(days + time.Second)
	for _, one := range []id.UserID{u, current} {
		w.status(t, one, protocol.Status{BackupVersion: "1", HoldsKey: true})
	}
	w.step(t)
	w.step(t)
	if got := states(); got != "overdue current" {
		t.Errorf("after the grace: %s", got)
	}
	if counts := countedByOutcome(t, w.db); counts["policy.overdue accepted"] != 1 || counts["rotation.asked accepted"] != 0 {
		t.Errorf("the log has %v", counts)
	}
}

func TestAPlaceInTheRuleIsForWhoHadNoRotation(t *testing.T) {
	t.Parallel()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, nightly+"    place: {kms: vault, path: \"people/{user}/key\"}\n")
	fresh, placed := w.placeless(t, "fresh", 31*days), w.user(t, "placed", 31*days)
	w.night(t)
	w.step(t)
	if r := w.byPolicy(t, fresh); len(r) != 1 || r[0].KMS.Name != "vault" || r[0].KMS.Path != "people/fresh/key" {
		t.Errorf("%+v", r)
	}
	if r := w.byPolicy(t, placed); len(r) != 1 || r[0].KMS.Name != "corporate" {
		t.Errorf("%+v", r)
	}
}

func TestAKeyBackupThatSomebodyReplacedIsReclaimedInItsWindowOnceAndOnceADay(t *testing.T) {
	t.Parallel()
	w := newRuled(t, rotation.DefaultStormLimit())
	w.apply(t, nightly+"    on_drift: reclaim\n")
	u := w.user(t, "alice", days)
	reset := func(version string) {
		check(t, w.db.SawKeyVersion(t.Context(), u, version, "own"+version, w.now))
		w.status(t, u, protocol.Status{BackupVersion: version, Drifted: &protocol.DriftReport{Kind: protocol.DriftBackup}})
	}
	reset("77")
	w.step(t)
	if n := len(w.byPolicy(t, u)); n != 0 {
		t.Fatalf("outside of the window %d were opened", n)
	}
	w.night(t)
	w.step(t)
	w.step(t)
	r := w.byPolicy(t, u)
	if len(r) != 1 || r[0].Reason != rotation.ReasonDrift {
		t.Fatalf("%+v", r)
	}
	w.now = w.now.Add(time.Hour)
	w.end(t, r[0], rotation.Done, "78")
	reset("79")
	w.step(t)
	if n := len(w.byPolicy(t, u)); n != 1 {
		t.Errorf("the same night there are %d", n)
	}
	w.now = w.now.Add(23 * time.Hour)
	w.step(t)
	if n := len(w.byPolicy(t, u)); n != 2 {
		t.Errorf("a day later there are %d", n)
	}
}

func TestAPolicyHasVersionsThatSayWhoMadeThemAndARefusedOneIsAnEvent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newRuled(t, rotation.DefaultStormLimit())
	apply := func(text, reason string, replaces int64) error {
		_, _, err := w.enforcer.ApplyPolicy(ctx, enforce.PolicyRequest{Document: document(t, text), Reason: reason, Replaces: replaces}, keyheraldtest.Admin())
		return err
	}
	if _, ok, err := w.enforcer.PolicyAt(ctx, time.Time{}); ok || err != nil {
		t.Errorf("there is a policy before there is one: %v", err)
	}
	check(t, apply(nightly, "the first", 0))
	first := w.now
	w.now = w.now.Add(days)
	stricter := strings.Replace(nightly, "30d", "20d", 1)
	for _, test := range []struct {
		name, text, reason string
		replaces           int64
		code               refusal.Code
		why                audit.Refusal
		says               string
	}{
		{"no reason", stricter, "", 0, refusal.Invalid, audit.RefusedNoReason, "a reason is needed"},
		{"one that contradicts itself", strings.Replace(nightly, "30d", "2h", 1), "x", 0, refusal.Invalid, audit.RefusedPolicy, "policy.yaml: line 4: rules[0].max_age"},
		{"the same again", nightly, "x", 0, refusal.Conflict, audit.RefusedAlreadySo, "says the same already"},
		{"one made from another version", stricter, "x", 7, refusal.Changed, audit.RefusedNotTheNewest, "not the newest"},
	} {
		err := apply(test.text, test.reason, test.replaces)
		if code, why, ok := refusal.Of(err); !ok || code != test.code || why != test.why || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v (%s, %s)", test.name, err, code, why)
		}
	}
	check(t, apply(stricter, "stricter", 1))
	for at, want := range map[time.Time]int64{first: 1, w.now.Add(-time.Second): 1, w.now: 2, {}: 2} {
		v, ok, err := w.enforcer.PolicyAt(ctx, at)
		if err != nil || !ok || v.Version != want {
			t.Errorf("at %s it is version %d: %v", at, v.Version, err)
		}
	}
	versions, err := w.db.PolicyVersions(ctx, postgres.PolicyFilter{Limit: 1})
	check(t, err)
	older, err := w.db.PolicyVersions(ctx, postgres.PolicyFilter{Before: versions[0].Version, Limit: 5})
	check(t, err)
	if len(versions) != 1 || versions[0].Reason != "stricter" || len(older) != 1 || older[0].Reason != "the first" {
		t.Errorf("%+v, %+v", versions, older)
	}
	if counts := countedByOutcome(t, w.db); counts["policy.changed accepted"] != 2 || counts["policy.changed refused"] != 4 {
		t.Errorf("the log has %v", counts)
	}
	var version, rules int64
	var sum string
	check(t, w.db.QueryRow(ctx, `SELECT detail -> 'version', detail -> 'rules', detail ->> 'document_sha256' FROM audit_log WHERE action = 'policy.changed' AND outcome = 'accepted' ORDER BY id DESC LIMIT 1`).Scan(&version, &rules, &sum))
	if version != 2 || rules != 1 || sum != hex.EncodeToString(versions[0].SHA256[:16]) {
		t.Errorf("the event says version %d, %d rules, %s", version, rules, sum)
	}
}

func TestADisclosedKeyWaitsWhereItsPolicySaysSo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, test := range []struct {
		name, after     string
		atNoon, atNight rotation.Hold
		freed           bool
	}{
		{"by default it is rotated at once", "", rotation.HoldNone, rotation.HoldNone, false},
		{"at once", "    rotate_after: disclosure\n", rotation.HoldNone, rotation.HoldNone, false},
		{"in a window", "    rotate_after: disclosure_in_window\n", rotation.HoldWindow, rotation.HoldNone, true},
		{"not by itself", "    rotate_after: nothing\n", rotation.HoldPolicy, rotation.HoldPolicy, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newRuled(t, rotation.DefaultStormLimit())
			w.apply(t, nightly+test.after)
			early, late := w.user(t, "early", days), w.user(t, "late", days)
			read := func(u id.UserID) uuid.UUID {
				receipt, err := w.engine.Accept(ctx, intake.Notification{Source: "kms", ID: u.String(), User: u.String(), Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "keyherald/" + u.Localpart(), Version: "1", Read: true, Reader: "eve"})
				check(t, err)
				return uuid.MustParse(receipt.RotationID)
			}
			hold := func(key uuid.UUID) rotation.Hold {
				r, _, err := w.db.Rotation(ctx, key)
				check(t, err)
				return r.HeldFor
			}
			first := read(early)
			w.step(t)
			if got := hold(first); got != test.atNoon {
				t.Errorf("at noon it is held for %q", got)
			}
			w.night(t)
			if got := hold(read(late)); got != test.atNight {
				t.Errorf("at night it is held for %q", got)
			}
			w.step(t)
			if got := hold(first); test.freed && got != rotation.HoldNone || !test.freed && got != test.atNoon {
				t.Errorf("when the window opened it is held for %q", got)
			}
			if counts := countedByOutcome(t, w.db); (counts["rotation.released accepted"] == 1) != test.freed {
				t.Errorf("the log has %v", counts)
			}
		})
	}
}

func TestWhoAsksWhatAppliesToAUserIsToldWhatTheStepWouldDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newRuled(t, rotation.DefaultStormLimit())
	u, nobody := w.user(t, "alice", 31*days), user("nobody")
	then := func(u id.UserID) string {
		x, err := w.enforcer.ExplainPolicy(ctx, u)
		check(t, err)
		return x.Then
	}
	if got := then(u); got != "nothing: there is no policy" {
		t.Error(got)
	}
	w.apply(t, nightly)
	x, err := w.enforcer.ExplainPolicy(ctx, u)
	check(t, err)
	if x.Rule == nil || x.Rule.Name != "staff" || x.Verdict.State != policy.Waiting || !x.Verdict.OpensAt.Equal(time.Date(2026, 6, 1, 22, 0, 0, 0, time.UTC)) || x.Then != "a new key when his turn is" {
		t.Errorf("%+v", x)
	}
	if got := then(nobody); !strings.Contains(got, "not on the roster") {
		t.Error(got)
	}
	if _, err := w.enforcer.ExplainPolicy(ctx, "alice"); err == nil {
		t.Error("no user id is explained")
	}
	w.night(t)
	if got := then(u); got != "a new key now" {
		t.Error(got)
	}
	w.step(t)
	if got := then(u); !strings.Contains(got, w.byPolicy(t, u)[0].ID.String()) {
		t.Error(got)
	}
}

func TestAStepThatIsRefusedItsEventDoesNothing(t *testing.T) {
	t.Parallel()
	w := newRuled(t, rotation.DefaultStormLimit())
	log := newRefusing(t, w.database)
	for _, act := range []struct {
		what string
		do   func() error
	}{
		{"a policy is applied", func() error {
			_, _, err := w.enforcer.ApplyPolicy(t.Context(), enforce.PolicyRequest{Document: document(t, nightly), Reason: "x"}, keyheraldtest.Admin())
			return err
		}},
		{"a key is rotated, and another told of as overdue", func() error { return w.enforcer.StepPolicy(t.Context()) }},
	} {
		before := snapshot(t, log.super)
		log.refuse(t, `"v":1`)
		if err := act.do(); err == nil {
			t.Errorf("%s: it is said to have happened", act.what)
		}
		if after := snapshot(t, log.super); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s without its event", act.what)
		}
		log.allow(t)
		check(t, act.do())
		if fmt.Sprint(snapshot(t, log.super)) == fmt.Sprint(before) {
			t.Errorf("%s: nothing happened", act.what)
		}
		w.user(t, "alice"+fmt.Sprint(len(act.what)), 31*days)
		w.user(t, "bob"+fmt.Sprint(len(act.what)), 33*days)
		w.night(t)
	}
	if errors.Is(w.enforcer.StepPolicy(t.Context()), enforce.ErrPolicy) {
		t.Error("a step says that a policy is refused")
	}
}
