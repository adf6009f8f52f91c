package integrity_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
	"github.com/keyherald/keyherald/postgres"
)

var cluster *keyheraldtest.Postgres

func TestMain(m *testing.M) {
	os.Exit(keyheraldtest.RunWithPostgres(&cluster, m.Run))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// verify verifies a log against checkpoints.
func verify(t *testing.T, l *sealedlog.Log, earlier ...checkpoint.Checkpoint) integrity.Report {
	t.Helper()
	var report integrity.Report
	check(t, l.Super.Snapshot(t.Context(), func(ctx context.Context) error {
		state, err := l.Super.TreeState(ctx)
		if err != nil {
			return err
		}
		options := integrity.Options{Name: sealedlog.Name, Size: state.Size, Keys: l.Keys.Public}
		for _, c := range earlier {
			options.Earlier = append(options.Earlier, integrity.Earlier{Checkpoint: c, Where: "the auditor"})
		}
		report, err = integrity.Check(ctx, l.Super, options)
		return err
	}))
	return report
}

func expect(t *testing.T, report integrity.Report, verdict integrity.Verdict, words ...string) {
	t.Helper()
	if report.Verdict != verdict || report.ExitCode != verdict.ExitCode() {
		t.Errorf("the verdict is %q, not %q: %s", report.Verdict, verdict, report.Headline)
	}
	text := report.Headline
	for _, finding := range report.Findings {
		text += "\n" + finding.String()
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("it does not say %q:\n%s", word, text)
		}
	}
}

func TestAnUntouchedLogIsUnchangedSinceWhatIsRemembered(t *testing.T) {
	t.Parallel()
	l := sealedlog.New(t, cluster)
	expect(t, verify(t, l), integrity.SelfConsistent)
	l.Append(t, 1)
	l.Seal(t)
	first := l.Newest(t)
	l.Append(t, 40)
	l.Seal(t)
	report := verify(t, l)
	expect(t, report, integrity.SelfConsistent, "no earlier checkpoint given")
	if c := report.Checked; c.Leaves != 42 || c.Details != 42 || c.Checkpoints != 2 || c.Nodes != 39 || len(report.Findings) != 0 {
		t.Errorf("checked were %+v, found %v", c, report.Findings)
	}
	expect(t, verify(t, l, first), integrity.Unchanged, "unchanged since example.org/keyherald size 2, which the auditor has")
	expect(t, verify(t, l, l.Newest(t), first), integrity.Unchanged, "size 42")
	l.Append(t, 1)
	expect(t, verify(t, l, l.Newest(t)), integrity.Unchanged, "1 events are not sealed yet")
}

// Pages are 2,000 leaves: roots and nodes have to come out alike across their borders.
func TestALogOfSeveralPagesIsUnchanged(t *testing.T) {
	t.Parallel()
	l := sealedlog.New(t, cluster)
	var events []audit.Event
	for i := range 1777 {
		events = append(events, audit.Event{Time: time.Now(), Actor: audit.ByRelay(), Action: audit.LeaseTaken, Subject: audit.OfUser("@keyherald:example.org"), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.Number("epoch", i)}})
	}
	var earlier []checkpoint.Checkpoint
	for range 3 {
		l.AppendEvents(t, events...)
		l.Seal(t)
		earlier = append(earlier, l.Newest(t))
	}
	report := verify(t, l, earlier...)
	expect(t, report, integrity.Unchanged, "size 5332")
	if c := report.Checked; c.EarlierMatched != 3 || c.Leaves != 5332 || c.Checkpoints != 3 {
		t.Errorf("checked were %+v", c)
	}
	l.Tamper(t, "UPDATE audit_node SET hash = sha256(hash) WHERE level = 3 AND n = 300")
	expect(t, verify(t, l, earlier...), integrity.Altered, "events 2400 to 2407", "node 300 of level 3")
}

func TestWhateverIsAlteredIsFoundAndItsPlaceNamed(t *testing.T) {
	t.Parallel()
	target := "(SELECT event_id FROM audit_leaf WHERE leaf_index = 7)"
	for name, test := range map[string]struct {
		statements []string
		verdict    integrity.Verdict
		words      []string
	}{
		"a byte of an event":                      {[]string{"UPDATE audit_event SET body = overlay(body placing 'X' from 60) WHERE id = " + target}, integrity.Altered, []string{"event 7 (", "leaf hash"}},
		"an event and its leaf hash":              {[]string{"UPDATE audit_event SET body = body || ' ' WHERE id = " + target, "UPDATE audit_leaf SET leaf_hash = sha256('\\x00' || (SELECT body FROM audit_event WHERE id = event_id)) WHERE leaf_index = 7"}, integrity.Altered, []string{"events 0 to 9: not what the checkpoint example.org/keyherald size 10 (the auditor has it) covers"}},
		"an event that is no JSON":                {[]string{"UPDATE audit_event SET body = '\\xff' WHERE id = " + target}, integrity.Altered, []string{"event 7 ("}},
		"an event that is deleted":                {[]string{"DELETE FROM audit_detail WHERE event_id = " + target, "DELETE FROM audit_event WHERE id = " + target}, integrity.Altered, []string{"event 7 (", "missing"}},
		"a detail":                                {[]string{"UPDATE audit_detail SET detail = '{\"n\":99}' WHERE event_id = " + target}, integrity.Altered, []string{"event 7 (", "commits to"}},
		"a salt":                                  {[]string{"UPDATE audit_detail SET salt = sha256(salt) WHERE event_id = " + target}, integrity.Altered, []string{"event 7 ("}},
		"a detail that is deleted":                {[]string{"DELETE FROM audit_detail WHERE event_id = " + target}, integrity.Altered, []string{"event 7 (", "no event says that it was redacted"}},
		"a detail that is deleted as if redacted": {[]string{"INSERT INTO audit_redaction SELECT event_id, (SELECT event_id FROM audit_leaf WHERE leaf_index = 8) FROM audit_leaf WHERE leaf_index = 7", "DELETE FROM audit_detail WHERE event_id = " + target}, integrity.Altered, []string{"event 7 ("}},
		"the detail that names the keys":          {[]string{"DELETE FROM audit_detail WHERE event_id = (SELECT event_id FROM audit_signing_keys)"}, integrity.Altered, []string{"cannot be redacted"}},
		"a leaf hash":                             {[]string{"UPDATE audit_leaf SET leaf_hash = sha256(leaf_hash) WHERE leaf_index = 7"}, integrity.Altered, []string{"event 7 ("}},
		"two events that are swapped":             {[]string{"UPDATE audit_leaf SET leaf_index = 100 WHERE leaf_index = 7", "UPDATE audit_leaf SET leaf_index = 7 WHERE leaf_index = 8", "UPDATE audit_leaf SET leaf_index = 8 WHERE leaf_index = 100"}, integrity.Altered, []string{"not what the checkpoint"}},
		"a leaf in the middle that is deleted":    {[]string{"DELETE FROM audit_leaf WHERE leaf_index = 7"}, integrity.Altered, []string{"event 7: missing"}},
		"the tail":                                {[]string{"DELETE FROM audit_leaf WHERE leaf_index > 7", "DELETE FROM audit_node WHERE (n + 1) * (1 << level) > 8"}, integrity.RolledBack, []string{"events 8 to 14: missing"}},
		"the tail, with its checkpoints":          {[]string{"DELETE FROM audit_leaf WHERE leaf_index > 9", "DELETE FROM audit_node WHERE (n + 1) * (1 << level) > 10", "DELETE FROM audit_checkpoint WHERE tree_size > 10"}, integrity.RolledBack, []string{"events 10 to 14: missing"}},
		"a leaf that is added":                    {[]string{"INSERT INTO audit_event SELECT gen_random_uuid(), body FROM audit_event WHERE id = " + target, "INSERT INTO audit_leaf SELECT 15, id, sha256('\\x00' || body) FROM audit_event e WHERE NOT EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = e.id)"}, integrity.Altered, []string{"event 15 ("}},
		"a node":                                  {[]string{"UPDATE audit_node SET hash = sha256(hash) WHERE level = 2 AND n = 1"}, integrity.Altered, []string{"events 4 to 7"}},
		"a node that is deleted":                  {[]string{"DELETE FROM audit_node WHERE level = 1 AND n = 0"}, integrity.Altered, []string{"events 0 to 1"}},
		"a node too many":                         {[]string{"INSERT INTO audit_node VALUES (9, 9, sha256('x'))"}, integrity.Altered, []string{"1 nodes more"}},
		"a checkpoint's columns":                  {[]string{"UPDATE audit_checkpoint SET root_hash = sha256(root_hash) WHERE tree_size = 10"}, integrity.Altered, []string{"size 10"}},
		"a checkpoint's note":                     {[]string{"UPDATE audit_checkpoint SET note = replace(note, E'\\n10\\n', E'\\n11\\n') WHERE tree_size = 10"}, integrity.Altered, []string{"no good signature"}},
		"all checkpoints":                         {[]string{"DELETE FROM audit_checkpoint"}, integrity.Altered, []string{"events 0 to 14", "no checkpoint"}},
		"an event of another row":                 {[]string{"UPDATE audit_event SET body = (SELECT body FROM audit_event WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 8)) WHERE id = " + target}, integrity.Altered, []string{"event 7 ("}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := sealedlog.New(t, cluster)
			l.Append(t, 9)
			l.Seal(t)
			kept := l.Newest(t)
			l.Append(t, 5)
			l.Seal(t)
			published := l.Newest(t)
			expect(t, verify(t, l, kept, published), integrity.Unchanged)
			l.Tamper(t, test.statements...)
			expect(t, verify(t, l, kept, published), test.verdict, test.words...)
		})
	}
}

// Who has no signing key can build another tree, and sign it with a key of his own that the tree names.
func TestALogWrittenAnewWithAnotherKeyIsAltered(t *testing.T) {
	t.Parallel()
	l := sealedlog.New(t, cluster)
	l.Append(t, 5)
	l.Seal(t)
	published := l.Newest(t)
	forged := sealedlog.New(t, cluster)
	forged.Append(t, 7)
	forged.Seal(t)
	forged.Keys.Public = l.Keys.Public
	expect(t, verify(t, forged, published), integrity.Altered, "none of the configured keys", "not what the checkpoint")
	expect(t, verify(t, forged), integrity.Altered, "none of the configured keys")
}

func TestARedactedDetailIsNoDamage(t *testing.T) {
	t.Parallel()
	l := sealedlog.New(t, cluster)
	ctx := t.Context()
	l.Append(t, 5)
	l.Seal(t)
	kept := l.Newest(t)
	owner, err := postgres.Open(ctx, l.Database.OwnerURL)
	check(t, err)
	t.Cleanup(func() { _ = owner.Close() })
	var target uuid.UUID
	check(t, l.Super.QueryRow(ctx, `SELECT event_id FROM audit_leaf WHERE leaf_index = 3`).Scan(&target))
	_, err = owner.Redact(ctx, target, "a name that should not be here", keyheraldtest.Admin(), time.Now())
	check(t, err)
	report := verify(t, l, kept)
	expect(t, report, integrity.Unchanged, "redacted just now")
	l.Seal(t)
	report = verify(t, l, kept)
	expect(t, report, integrity.Unchanged, "its detail was redacted by event 6")
	if report.Checked.Redacted != 1 || report.Checked.Details != 6 {
		t.Errorf("checked were %+v", report.Checked)
	}
	// The redaction forgotten, or the detail put back.
	l.Tamper(t, `INSERT INTO audit_detail VALUES ('`+target.String()+`', sha256('x'), '{}')`)
	expect(t, verify(t, l, kept), integrity.Altered, "event 3 (", "it is there, though")
	l.Tamper(t, `DELETE FROM audit_redaction`)
	expect(t, verify(t, l, kept), integrity.Altered, "event 3 (")
}

func TestARestoredDatabaseIsRolledBackUntilTheLossIsDeclared(t *testing.T) {
	t.Parallel()
	l := sealedlog.New(t, cluster)
	ctx := t.Context()
	l.Append(t, 5)
	l.Seal(t)
	survived := l.Newest(t)
	dump, err := cluster.Dump(ctx, l.Database.Name)
	check(t, err)
	l.Append(t, 5)
	l.Seal(t)
	lost := l.Newest(t)
	check(t, cluster.Restore(ctx, l.Database, dump))
	expect(t, verify(t, l, lost), integrity.RolledBack, "events 6 to 10: missing")
	expect(t, verify(t, l, survived), integrity.Unchanged)
	_, err = l.Signer.AcceptLoss(ctx, "the disk broke", keyheraldtest.Admin())
	check(t, err)
	expect(t, verify(t, l, lost), integrity.RolledBack) // declared, and not sealed yet
	l.Seal(t)
	expect(t, verify(t, l, lost), integrity.DeclaredGap, "events 6 to 10: lost, which the checkpoint")
	expect(t, verify(t, l, survived), integrity.DeclaredGap, "a loss was accepted here")
	newest := l.Newest(t)
	if newest.Epoch != 2 {
		t.Fatalf("the newest checkpoint is %v", newest)
	}
	expect(t, verify(t, l, survived, newest), integrity.Unchanged, "unchanged since example.org/keyherald/epoch/2")
	later := lost
	later.Size++
	expect(t, verify(t, l, later), integrity.RolledBack, "accepts only the loss of")
	check(t, cluster.Restore(ctx, l.Database, dump))
	expect(t, verify(t, l, newest), integrity.RolledBack, "is of epoch 2")
}
