package main

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/completeness"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

func TestVerifyEndsWithItsVerdict(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	ctx := t.Context()
	// Nothing was published yet.
	out, _, err := r.run(t, "verify")
	wantExit(t, err, 3)
	if !strings.Contains(out, "self-consistent only") || !strings.Contains(out, "the sink minutes has no checkpoint yet") || !strings.Contains(out, "keyherald-verify") {
		t.Errorf("it prints %s", out)
	}
	// A share that is not mounted is no empty one, and verifying does not make it.
	check(t, os.Remove(r.path("checkpoints")))
	out, _, err = r.run(t, "verify")
	wantExit(t, err, 3)
	if _, err := os.Stat(r.path("checkpoints")); err == nil || !strings.Contains(out, "the sink minutes could not be read") {
		t.Errorf("it prints %s", out)
	}
	check(t, os.Mkdir(r.path("checkpoints"), 0o755))
	r.Seal(t)
	kept, err := r.Shelf.Newest(ctx)
	check(t, err)
	r.write(t, "kept", kept)
	if out := r.must(t, "verify"); !strings.HasPrefix(out, "unchanged since example.org/keyherald size ") || !strings.Contains(out, "which the sink minutes has") {
		t.Errorf("it prints %s", out)
	}
	if action, detail := r.told(t); action != "audit.read" || detail["command"] != "verify" {
		t.Errorf("the log says %s of %v", action, detail)
	}
	dump, err := cluster.Dump(ctx, r.Database.Name)
	check(t, err)
	r.Append(t, 3)
	r.Seal(t)
	var report integrity.Report
	check(t, json.Unmarshal([]byte(r.must(t, "verify", "--json", "--checkpoint", r.path("kept"))), &report))
	if report.Verdict != integrity.Unchanged || report.Checked.EarlierMatched != 2 || report.Since.Where != "the sink minutes" {
		t.Errorf("it prints %+v", report)
	}

	check(t, cluster.Restore(ctx, r.Database, dump))
	_, _, err = r.run(t, "verify")
	wantExit(t, err, 6)
	_, err = r.Signer.AcceptLoss(ctx, "x", keyheraldtest.Admin())
	check(t, err)
	r.Seal(t)
	if out := r.must(t, "verify"); !strings.Contains(out, "epoch/2") || !strings.Contains(out, "a loss was accepted here") {
		t.Errorf("it prints %s", out)
	}
	// Without the sinks, what the auditor kept is of before the gap.
	config := r.read(t, "config.yaml")
	r.write(t, "config.yaml", strings.Replace(config, "path: checkpoints", "path: elsewhere", 1))
	_, _, err = r.run(t, "verify", "--checkpoint", r.path("kept"))
	wantExit(t, err, 4)
	r.write(t, "config.yaml", config)

	r.Tamper(t, "UPDATE audit_event SET body = overlay(body placing 'X' from 60) WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 2)")
	out, _, err = r.run(t, "verify")
	wantExit(t, err, 7)
	if !strings.HasPrefix(out, "altered: event 2 (") {
		t.Errorf("it prints %s", out)
	}
}

func TestTheReportTellsWhatIsInTheLog(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	_, said, err := r.run(t, "report", "--from", "7d", "--to", "0d", "--out", r.path("report.html"), "--csv", r.path("report.csv"))
	check(t, err)
	if !strings.Contains(said, "unchanged since") || !strings.Contains(said, "1 users rotated, 0 did not, 2 attempts were refused") || !strings.Contains(said, "not proof of use") {
		t.Errorf("it says %s", said)
	}
	page := r.read(t, "report.html")
	for _, want := range []string{"@alice:example.org", "code_unknown", "internal audit", "the configuration does not say", "unchanged since example.org/keyherald size 9", "example.org/keyherald size 9</td>",
		"cannot be read back by Keyherald", "not proof of use", "triggers.frozen", "<svg"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	table, err := csv.NewReader(strings.NewReader(r.read(t, "report.csv"))).ReadAll()
	if err != nil || len(table) != 2 || table[1][0] != "'@alice:example.org" || table[1][1] != "done" {
		t.Errorf("the CSV is %v (%v)", table, err)
	}
	if action, detail := r.told(t); action != "audit.exported" || detail["format"] != "report" || detail["since"] == nil {
		t.Errorf("the log says %s of %v", action, detail)
	}
	r.Tamper(t, "UPDATE audit_detail SET detail = '[]' WHERE event_id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 1)")
	r.must(t, "report", "--from", "7d", "--to", "0d", "--out", r.path("second.html"))
	if page := r.read(t, "second.html"); !strings.Contains(page, "altered: event 1 (") || !strings.Contains(page, `class="verdict bad"`) {
		t.Error("the second report does not say that the log was altered")
	}
}

// know makes a rotation with its event, as the intake does.
func (r *room) know(t *testing.T, user, path, version string) {
	t.Helper()
	key := uuid.Must(uuid.NewV7())
	check(t, r.Writer.InsertRotations(t.Context(), []postgres.Rotation{{ID: key, UserID: id.UserID(user), Secret: "m.megolm_backup.v1", Source: "kms",
		KMS: protocol.KMSRef{Name: "corporate", Path: path, Version: version}, Facts: rotation.Facts{State: rotation.Received}, CreatedAt: time.Now()}}))
	e := event(audit.BySource("kms"), audit.NotificationAccepted, audit.OfUser(id.UserID(user)), audit.Accepted, audit.ID("path", audit.KMSPath(path)), audit.ID("version", audit.KMSVersion(version)))
	e.Rotation = key
	r.AppendEvents(t, e)
}

// put makes versions of a key in the directory KMS.
func (r *room) put(t *testing.T, path string, versions ...string) {
	t.Helper()
	dir := filepath.Join(r.path("kms"), path)
	check(t, os.MkdirAll(dir, 0o700))
	for _, version := range versions {
		check(t, os.WriteFile(filepath.Join(dir, version+".key"), []byte("a secret that nobody opens"), 0o000))
		check(t, os.WriteFile(filepath.Join(dir, "current"), []byte(version), 0o600))
	}
}

func TestCompletenessComparesKMSAndLog(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.put(t, "keyherald/alice", "1", "2", "3")
	r.know(t, "@alice:example.org", "keyherald/alice", "2")
	r.know(t, "@alice:example.org", "keyherald/alice", "3")
	out := r.must(t, "completeness")
	if !strings.Contains(out, "1 paths: 2 versions compared, 0 differences") || !strings.Contains(out, "1 versions are from before") {
		t.Errorf("it prints %s", out)
	}
	if action, detail := r.told(t); action != "audit.read" || detail["command"] != "completeness" {
		t.Errorf("the log says %s of %v", action, detail)
	}
	r.put(t, "keyherald/alice", "4")
	r.know(t, "@bob:example.org", "keyherald/bob", "1")
	out, _, err := r.run(t, "completeness", "--json")
	wantExit(t, err, 4)
	var found []string
	for line := range strings.Lines(out) {
		var result completeness.Result
		check(t, json.Unmarshal([]byte(line), &result))
		for _, d := range result.Differences {
			found = append(found, result.User+" "+string(d.Kind)+" "+d.Version)
		}
	}
	if got := strings.Join(found, ", "); got != "@alice:example.org version_without_event 4, @bob:example.org event_without_version 1" {
		t.Errorf("it finds %s", got)
	}
	out, _, err = r.run(t, "completeness")
	wantExit(t, err, 4)
	if !strings.Contains(out, "the KMS has version 4, and the log has no event of it") {
		t.Errorf("it prints %s", out)
	}
	check(t, os.Remove(filepath.Join(r.path("kms"), "keyherald/alice/4.key")))
	r.put(t, "keyherald/bob", "1")
	r.must(t, "completeness")
	// The server's rows changed behind the log's back.
	_, err = r.Super.Exec(t.Context(), "UPDATE rotation SET version = '7', id = gen_random_uuid() WHERE user_id = '@bob:example.org'")
	check(t, err)
	out, _, err = r.run(t, "completeness")
	wantExit(t, err, 4)
	if !strings.Contains(out, "the database has a rotation to version 7, and the log has no event that opened it") || !strings.Contains(out, "the database has no such rotation") {
		t.Errorf("it prints %s", out)
	}
	config := r.read(t, "config.yaml")
	r.write(t, "config.yaml", strings.Replace(config, "kms: {corporate:", "kms: {another:", 1))
	_, err = r.Super.Exec(t.Context(), "DELETE FROM rotation WHERE user_id = '@bob:example.org'")
	check(t, err)
	out, _, err = r.run(t, "completeness")
	wantExit(t, err, 4) // bob's event has no rotation any more
	if !strings.Contains(out, "the configuration has no kms.corporate") {
		t.Errorf("it prints %s", out)
	}
}

func TestCompletenessSaysWhereItCouldNotCompare(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.know(t, "@alice:example.org", "keyherald/alice", "2")
	config := r.read(t, "config.yaml")
	r.write(t, "config.yaml", strings.Replace(config, "kms: {corporate:", "kms: {another:", 1))
	out, _, err := r.run(t, "completeness")
	wantExit(t, err, 3)
	if !strings.Contains(out, "the configuration has no kms.corporate") {
		t.Errorf("it prints %s", out)
	}
}
