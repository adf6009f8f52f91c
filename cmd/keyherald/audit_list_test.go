package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// office is a log with several people in it.
func office(t *testing.T) (r *room, rotation uuid.UUID) {
	t.Helper()
	r = newRoom(t)
	rotation = uuid.Must(uuid.NewV7())
	of := func(e audit.Event) audit.Event { e.Rotation = rotation; return e }
	old := event(audit.ByLocal("root", "host"), audit.TriggersFrozen, audit.OfTriggers(), audit.Accepted)
	old.Time = time.Now().Add(-3 * time.Hour)
	r.AppendEvents(t, old,
		of(event(audit.BySource("kms"), audit.NotificationAccepted, audit.OfUser("@alice:example.org"), audit.Accepted)),
		of(event(audit.ByRelay(), audit.TriggerQueued, audit.OfDevice("@alice:example.org", "PHONE"), audit.Accepted)),
		of(event(audit.ByRelay(), audit.TriggerSent, audit.OfUser("@keyherald:example.org"), audit.Accepted)),
		of(event(audit.ByDevice("@alice:example.org", "PHONE"), audit.ProgressReported, audit.OfUser("@alice:example.org"), audit.Reported)),
		event(audit.ByDevice("@bob:example.org", "EVIL"), audit.EnrollmentRefused, audit.OfDevice("@bob:example.org", "EVIL"), audit.Refused, audit.Word("refusal", protocol.RefusedCodeUnknown)),
		event(audit.ByDevice("@alice:example.org.evil.example", "X"), audit.EnrollmentRefused, audit.OfDevice("@alice:example.org.evil.example", "X"), audit.Refused, audit.Word("refusal", protocol.RefusedCodeUnknown)),
		of(event(audit.ByRelay(), audit.RotationDone, audit.OfUser("@alice:example.org"), audit.Accepted)))
	return r, rotation
}

func TestTheListHasWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	r, rotation := office(t)
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"everything, oldest first", nil, "triggers.frozen notification.accepted trigger.queued trigger.sent progress.reported enrollment.refused enrollment.refused rotation.done"},
		{"the newest", []string{"--limit", "2", "--action", "enrollment.*,rotation.*"}, "enrollment.refused rotation.done"},
		{"a rotation", []string{"--rotation", rotation.String()}, "notification.accepted trigger.queued trigger.sent progress.reported rotation.done"},
		{"a user, with his devices and his rotation, and nobody whose name begins alike", []string{"--user", "@alice:example.org"}, "notification.accepted trigger.queued trigger.sent progress.reported rotation.done"},
		{"another user", []string{"--user", "@bob:example.org"}, "enrollment.refused"},
		{"an actor", []string{"--actor", "relay"}, "trigger.queued trigger.sent rotation.done"},
		{"a user as the actor", []string{"--actor", "@alice:example.org"}, "progress.reported"},
		{"an action", []string{"--action", "rotation.done"}, "rotation.done"},
		{"all actions of a noun, and another", []string{"--action", "trigger.*,rotation.done"}, "trigger.queued trigger.sent rotation.done"},
		{"a noun that another begins with", []string{"--action", "triggers.*"}, "triggers.frozen"},
		{"what was refused", []string{"--refused"}, "enrollment.refused enrollment.refused"},
		{"an outcome", []string{"--outcome", "reported_by_device"}, "progress.reported"},
		{"since a time", []string{"--since", "1h"}, "notification.accepted trigger.queued trigger.sent progress.reported enrollment.refused enrollment.refused rotation.done"},
		{"until a time", []string{"--until", "1h"}, "triggers.frozen"},
		{"a period", []string{"--since", "4h", "--until", "2h"}, "triggers.frozen"},
		{"several at once", []string{"--user", "@alice:example.org", "--actor", "relay", "--limit", "1"}, "rotation.done"},
		{"nothing", []string{"--action", "rotation.failed"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, said, err := r.run(t, append([]string{"list", "--json"}, test.args...)...)
			check(t, err)
			var actions []string
			for _, line := range lines(t, out) {
				if line["action"] != "audit.read" { // those of this test
					actions = append(actions, line["action"].(string))
				}
			}
			if got := strings.Join(actions, " "); got != test.want {
				t.Errorf("it lists %s", got)
			}
			if (test.want == "") != strings.Contains(said, "No event is like that") {
				t.Errorf("it says %q", said)
			}
		})
	}
}

func TestTheListSaysInTheLogWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	r, rotation := office(t)
	out := r.must(t, "list", "--rotation", rotation.String(), "--user", "@alice:example.org", "--actor", "relay", "--action", "rotation.*", "--outcome", "accepted", "--since", "2020-01-01")
	if strings.Contains(out, "audit.read") || !strings.Contains(out, "rotation.done") {
		t.Errorf("it lists %s", out)
	}
	action, detail := r.told(t)
	if action != "audit.read" || detail["command"] != "list" || detail["rotation"] != rotation.String() || detail["user"] != "@alice:example.org" ||
		detail["actor"] != "relay" || fmt.Sprint(detail["actions"]) != "[rotation.*]" || detail["outcome"] != "accepted" || detail["since"] != 1577836800000.0 {
		t.Errorf("the log says %s of %v", action, detail)
	}
	if out := r.must(t, "list", "--limit", "1"); !strings.Contains(out, "audit.read") || !strings.Contains(out, "local:") {
		t.Errorf("the next reading sees %s", out)
	}
}

func TestWhatIsAskedForWronglyIsRefusedBeforeAnythingIsRead(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	before := r.Count(t, "SELECT COUNT(*) FROM audit_event")
	for _, args := range [][]string{
		{"list", "--rotation", "x"}, {"list", "--user", "alice"}, {"list", "--user", "@" + strings.Repeat("a", 400)}, {"list", "--action", "rotation"}, {"list", "--action", "*.done"},
		{"list", "--outcome", "Refused!"}, {"list", "--refused", "--outcome", "accepted"}, {"list", "--limit", "-1"}, {"list", "--since", "yesterday"},
		{"list", "--since", "2026-11-02", "--until", "2026-11-01"}, {"show", "x"}, {"show", "-1"}, {"show", "01"}, {"show", "99"}, {"show", uuid.NewString()},
		{"follow", "--format", "csv"}, {"follow", "--from", "-1"}, {"follow", "--from", "99"}, {"follow", "--interval", "0s"}, {"prove", "x"}, {"prove", "0"},
		{"export", "--format", "xml", "--out", r.path("x")}, {"export", "--format", "bundle", "--out", r.path("x"), "--from", "2026-11-01"}, {"export", "--format", "csv"},
		{"export", "--format", "csv", "--out", r.path("writer.url")}, {"export", "--format", "csv", "--out", r.path("no/such/directory/x"), "--from", "never"},
		{"report", "--from", "2026-11-01", "--out", r.path("x")}, {"verify", "--checkpoint", r.path("writer.url")}, {"checkpoint", "--epoch", "-1"},
		{"redact", "x", "--reason", "y"}, {"redact", uuid.NewString()},
	} {
		if out, _, err := r.run(t, args...); err == nil || out != "" {
			t.Errorf("%q prints %q and ends with %v", args, out, err)
		}
	}
	if after := r.Count(t, "SELECT COUNT(*) FROM audit_event"); after != before {
		t.Errorf("%d events were appended", after-before)
	}
	// What somebody asked for and was refused is told, where it was asked of the log.
	if _, _, err := r.run(t, "redact", uuid.NewString(), "--reason", strings.Repeat("x", 501)); err == nil {
		t.Error("a reason without end is taken")
	}
	if action, detail := r.told(t); action != "audit.redacted" || detail["refusal"] != "unusable_reason" {
		t.Errorf("the log says %s of %v", action, detail)
	}
}

// No event, no output: whatever a tool shows of the log, it must be able to say so in it.
func TestNothingIsShownWhereItCannotBeRecorded(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	_, err := r.Super.Exec(t.Context(), "REVOKE INSERT ON audit_event FROM "+r.Database.Writer)
	check(t, err)
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"show", "0"}, {"follow", "--once"}, {"prove", "0"}, {"export", "--format", "csv", "--out", "-"}, {"export", "--format", "bundle", "--out", r.path("bundle.zip")},
		{"report", "--from", "7d", "--to", "0d", "--out", "-"}, {"verify"}, {"completeness"}} {
		out, _, err := r.run(t, args...)
		if err == nil || out != "" || !strings.Contains(err.Error(), "could not be recorded") {
			t.Errorf("%q prints %q and ends with %v", args, out, err)
		}
	}
	if left, err := filepath.Glob(r.path("*bundle*")); err != nil || len(left) > 0 {
		t.Errorf("there are %s (%v)", left, err)
	}
}

func TestTheAuditorsURLMustLeadToTheSameLog(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	other := newRoom(t)
	r.write(t, "auditor.url", other.Database.AuditorURL)
	out, _, err := r.run(t, "list")
	if err == nil || out != "" || !strings.Contains(err.Error(), "another database") {
		t.Errorf("it prints %q and ends with %v", out, err)
	}
}

func TestToolsReadAsTheWriterWhereThereIsNoAuditor(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	config := r.read(t, "config.yaml")
	r.write(t, "config.yaml", strings.Replace(config, ", auditor_url_file: auditor.url", "", 1))
	if out := r.must(t, "list"); !strings.Contains(out, "rotation.done") {
		t.Errorf("it lists %s", out)
	}
}

func TestTheAuditorsRoleReadsAndChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	auditor, err := postgres.Open(ctx, r.Database.AuditorURL)
	check(t, err)
	t.Cleanup(func() { _ = auditor.Close() })
	check(t, auditor.CheckAuditor(ctx))
	for role, db := range map[string]*postgres.DB{"writer": r.Writer, "signer": r.Sealer, "superuser": r.Super} {
		if db.CheckAuditor(ctx) == nil {
			t.Errorf("the %s passes for an auditor", role)
		}
	}
	_, err = r.Super.Exec(ctx, "REVOKE SELECT ON audit_detail FROM "+r.Database.Auditor)
	check(t, err)
	if err := auditor.CheckAuditor(ctx); err == nil || !strings.Contains(err.Error(), "may not read") {
		t.Error(err)
	}
}

func TestTheListForPeopleIsSafeForTheirTerminals(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	// The vocabulary lets no such text in, but somebody else may have written to the tables.
	hostile := sealedlog.Record(1, time.Now(), "relay", audit.MessageUnusable, `\u001b[2J\u202egnp.exe`, "", audit.Refused, `{"x":"\u001b]0;owned\u0007"}`)
	_, err := r.Super.Exec(t.Context(), "INSERT INTO audit_event (id, body) VALUES ($1, $2)", hostile.ID, hostile.Body)
	check(t, err)
	_, err = r.Super.Exec(t.Context(), "INSERT INTO audit_detail (event_id, salt, detail) VALUES ($1, $2, $3)", hostile.ID, hostile.Salt, hostile.Detail)
	check(t, err)
	out := r.must(t, "list")
	if strings.ContainsAny(out, "\x1b\x07\u202e") || !strings.Contains(out, `\u001b[2J\u202egnp.exe`) {
		t.Errorf("it prints %q", out)
	}
	if out := r.must(t, "show", lines(t, r.must(t, "list", "--json"))[0]["id"].(string)); strings.ContainsAny(out, "\x1b\x07\u202e") {
		t.Errorf("show prints %q", out)
	}
}

func TestShowTellsWhatBecameOfAnEvent(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	key := lines(t, r.must(t, "list", "--json", "--refused"))[0]["id"].(string)
	if out := r.must(t, "show", key); !strings.Contains(out, "not yet") || !strings.Contains(out, `"refusal":"code_unknown"`) {
		t.Errorf("it shows %s", out)
	}
	r.Seal(t)
	first := r.Newest(t)
	r.Append(t, 1)
	r.Seal(t)
	want := fmt.Sprintf("first covered by the checkpoint example.org/keyherald size %d of", first.Size)
	out := r.must(t, "show", key)
	if !strings.Contains(out, want) {
		t.Errorf("it shows %s", out)
	}
	var view eventView
	check(t, json.Unmarshal([]byte(r.must(t, "show", key, "--json")), &view))
	if !view.Sealed || view.Redacted || view.Checkpoint.Size != first.Size || view.Checkpoint.Origin != "example.org/keyherald" || view.ID.String() != key {
		t.Errorf("it shows %+v", view)
	}
	if byIndex := r.must(t, "show", fmt.Sprint(*view.Index)); byIndex != out {
		t.Errorf("by its index it is %s", byIndex)
	}
	action, detail := r.told(t)
	if action != "audit.read" || detail["command"] != "show" || detail["event"] != key {
		t.Errorf("the log says %s of %v", action, detail)
	}
	r.must(t, "redact", key, "--reason", "a name")
	if out := r.must(t, "show", key); !strings.Contains(out, "redacted by the event") || strings.Contains(out, "wrong_code") {
		t.Errorf("it shows %s", out)
	}
}

func TestCheckpointsAreFoundByEpochAndSize(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	if _, _, err := r.run(t, "checkpoint"); err == nil || !strings.Contains(err.Error(), "no checkpoint yet") {
		t.Error(err)
	}
	var notes []string
	for range 3 {
		r.Append(t, 2)
		r.Seal(t)
		note, err := r.Shelf.Newest(ctx)
		check(t, err)
		notes = append(notes, note)
	}
	before := r.Count(t, "SELECT COUNT(*) FROM audit_event")
	for i, args := range [][]string{{"--size", "3"}, {"--size", "5", "--epoch", "1"}, {}} {
		if got := r.must(t, append([]string{"checkpoint"}, args...)...); got != notes[i] {
			t.Errorf("%v is %s", args, got)
		}
	}
	if _, _, err := r.run(t, "checkpoint", "--size", "4"); err == nil || !strings.Contains(err.Error(), "3 and 5") {
		t.Error(err)
	}
	if _, _, err := r.run(t, "checkpoint", "--epoch", "2"); err == nil || !strings.Contains(err.Error(), "of epoch 2") {
		t.Error(err)
	}
	if after := r.Count(t, "SELECT COUNT(*) FROM audit_event"); after != before {
		t.Error("printing a checkpoint, which says nothing of what is in the log, is an event")
	}
}

func TestRedactionLeavesTheEventAndRefusesWhatAVerifierNeeds(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	all := lines(t, r.must(t, "list", "--json", "--limit", "0"))
	ids := map[string]string{}
	for _, line := range all {
		ids[line["action"].(string)] = line["id"].(string)
	}
	r.must(t, "redact", ids["progress.reported"], "--reason", "a wish of the works council")
	action, detail := r.told(t)
	if action != "audit.redacted" || detail["reason"] != "a wish of the works council" || r.Count(t, "SELECT COUNT(*) FROM audit_detail WHERE event_id = $1", ids["progress.reported"]) != 0 {
		t.Errorf("the log says %s of %v", action, detail)
	}
	redaction := lines(t, r.must(t, "list", "--json", "--action", "audit.redacted"))[0]["id"].(string)
	gone := ids["trigger.sent"]
	r.Tamper(t, "DELETE FROM audit_detail WHERE event_id = '"+gone+"'")
	for _, test := range []struct{ target, says, word string }{
		{ids["progress.reported"], "was redacted before", "redacted_before"},
		{redaction, "is a redaction", "redaction"},
		{ids["audit.signing_keys_changed"], "changes the signing keys", "signing_keys"},
		{gone, "no redaction says so", "detail_missing"},
		{uuid.NewString(), "no such event", "no_such_event"},
	} {
		_, _, err := r.run(t, "redact", test.target, "--reason", "x")
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.word, err)
		}
		if action, detail := r.told(t); action != "audit.redacted" || detail["refusal"] != test.word {
			t.Errorf("the log says %s of %v", action, detail)
		}
		if n := r.Count(t, "SELECT COUNT(*) FROM audit_log WHERE outcome = 'refused' AND action = 'audit.redacted' AND subject = $1", test.target); n != 1 {
			t.Errorf("%d events tell of the refusal", n)
		}
	}
	// A loss that was accepted stays too.
	dump, err := cluster.Dump(t.Context(), r.Database.Name)
	check(t, err)
	r.Append(t, 1)
	r.Seal(t)
	check(t, cluster.Restore(t.Context(), r.Database, dump))
	_, err = r.Signer.AcceptLoss(t.Context(), "x", keyheraldtest.Admin())
	check(t, err)
	loss := lines(t, r.must(t, "list", "--json", "--action", "audit.loss_accepted"))[0]["id"].(string)
	if _, _, err := r.run(t, "redact", loss, "--reason", "x"); err == nil || !strings.Contains(err.Error(), "accepts a loss") {
		t.Error(err)
	}
	// Nobody but the owner can.
	if _, err := r.Writer.Redact(t.Context(), uuid.MustParse(ids["rotation.done"]), "x", keyheraldtest.Admin(), time.Now()); err == nil {
		t.Error("the writer redacts")
	}
}

func TestTwoRedactionsOfOneEventAreOne(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	key := lines(t, r.must(t, "list", "--json", "--action", "rotation.done"))[0]["id"].(string)
	owner, err := postgres.Open(t.Context(), r.Database.OwnerURL)
	check(t, err)
	t.Cleanup(func() { _ = owner.Close() })
	failures := make(chan error, 8)
	for range cap(failures) {
		go func() {
			_, err := owner.Redact(t.Context(), uuid.MustParse(key), "x", keyheraldtest.Admin(), time.Now())
			failures <- err
		}()
	}
	refused := 0
	for range cap(failures) {
		if err := <-failures; err != nil && strings.Contains(err.Error(), "redacted before") {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if n := r.Count(t, "SELECT COUNT(*) FROM audit_log WHERE action = 'audit.redacted' AND outcome = 'accepted'"); n != 1 || refused != 7 {
		t.Errorf("%d redactions, %d refused", n, refused)
	}
}
