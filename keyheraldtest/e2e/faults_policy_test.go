package e2e

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// Each write of the policy's step fails once, before and after it took effect: in the end each key that is due has one
// rotation, never two, and each that is overdue one event.
func TestThePolicysWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	t.Parallel()
	recorder := &faults.Recorder{}
	storm := rotation.StormLimit{Percent: 100}
	w := newRuled(t, storm)
	connector, err := pq.NewConnector(w.database.WriterURL)
	check(t, err)
	plain := w.db
	w.db, err = postgres.OpenWith(t.Context(), sql.OpenDB(recorder.Connector("PostgreSQL", connector)), w.database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = w.db.Close() })
	faulty := w.db
	w.open(t, storm)
	w.apply(t, nightly+"    rotate_after: disclosure_in_window\n")
	w.night(t)
	var users []id.UserID
	// people are two more whose keys are due, one of them overdue, and one whose key was read.
	people := func() {
		w.db = plain
		defer func() { w.db = faulty }()
		n := len(users)
		users = append(users, w.user(t, fmt.Sprintf("due%d", n), 31*days), w.user(t, fmt.Sprintf("overdue%d", n), 40*days), w.user(t, fmt.Sprintf("read%d", n), days))
		r, err := w.db.Rotations(t.Context(), users[n+2], false)
		check(t, err)
		_, err = w.db.Exec(t.Context(), `INSERT INTO rotation (id, user_id, secret, kms, path, version, source, state, action, held, held_for, created_at, updated_at)
			VALUES (gen_random_uuid(), $1, $2, $3, $4, 'pending/x', 'kms', 'received', 'rotate', true, 'window', $5, $5)`, users[n+2], r[0].Secret, r[0].KMS.Name, r[0].KMS.Path, w.now)
		check(t, err)
	}
	// do steps until all is done, as the job that comes every ten seconds does.
	do := func(t *testing.T) {
		t.Helper()
		failed := 0
		for w.enforcer.StepPolicy(t.Context()) != nil {
			if failed++; failed > 3 {
				t.Fatal("the step fails for good")
			}
		}
		// One whose lock is with a connection that died may have to wait until PostgreSQL knows.
		wait(t, "every key that is due to have its rotation", func() bool {
			check(t, w.enforcer.StepPolicy(t.Context()))
			var open int
			check(t, plain.QueryRow(t.Context(), `SELECT COUNT(*) FROM rotation WHERE ended_at IS NULL AND NOT held`).Scan(&open))
			return open == len(users)
		})
	}
	inOrder := func(t *testing.T) {
		t.Helper()
		for what, query := range map[string]string{
			"users with two rotations by the policy": `SELECT COUNT(*) FROM (SELECT user_id FROM rotation WHERE source = 'policy' GROUP BY user_id HAVING COUNT(*) > 1) u`,
			"rotations by the policy without their event, or what was asked": `SELECT COUNT(*) FROM rotation r WHERE source = 'policy' AND
				((SELECT COUNT(*) FROM audit_log WHERE action = 'rotation.asked' AND rotation = r.id::text) <> 1 OR NOT EXISTS (SELECT 1 FROM policy_key WHERE rotation_id = r.id))`,
			"events without their rotation":           `SELECT COUNT(*) FROM audit_log WHERE action = 'rotation.asked' AND NOT EXISTS (SELECT 1 FROM rotation WHERE id::text = rotation)`,
			"keys that are overdue without one event": `SELECT COUNT(*) FROM policy_key WHERE overdue_at IS NOT NULL AND (SELECT COUNT(*) FROM audit_log WHERE action = 'policy.overdue' AND subject = user_id) <> 1`,
			"releases that are not one event each":    `SELECT COUNT(*) FROM rotation r WHERE version = 'pending/x' AND (SELECT COUNT(*) FROM audit_log WHERE action = 'rotation.released' AND rotation = r.id::text) <> 1`,
		} {
			var n int
			check(t, plain.QueryRow(t.Context(), query).Scan(&n))
			if n != 0 {
				t.Errorf("%d %s", n, what)
			}
		}
		var overdue int
		check(t, plain.QueryRow(t.Context(), `SELECT COUNT(*) FROM audit_log WHERE action = 'policy.overdue'`).Scan(&overdue))
		if overdue != len(users)/3 {
			t.Errorf("%d of %d were told of as overdue", overdue, len(users)/3)
		}
	}
	var dry [2][]faults.Point
	for i := range dry {
		people()
		recorder.Begin()
		do(t)
		inOrder(t)
		dry[i] = recorder.Points()
	}
	table := faults.Table(dry[:]...)
	if len(table) < 10 {
		t.Fatalf("only %d faults were found: %v", len(table), table)
	}
	tables := fmt.Sprint(table)
	for _, needed := range []string{"policy_key", "rotation", "audit_detail", "NOTIFY"} {
		if !strings.Contains(tables, needed) {
			t.Errorf("no fault is of %s: %s", needed, tables)
		}
	}
	for _, fault := range table {
		t.Run(fault.String(), func(t *testing.T) {
			people()
			recorder.Arm(fault, nil)
			do(t)
			if !recorder.Fired() {
				t.Errorf("it did not come to this write: %v", recorder.Points())
			}
			inOrder(t)
		})
	}
}
