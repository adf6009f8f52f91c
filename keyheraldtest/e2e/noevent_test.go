package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// refusing makes the audit log refuse events with some text in them, and counts how often it did, past every rollback.
type refusing struct{ super *postgres.DB }

func newRefusing(t *testing.T, database *keyheraldtest.Database) *refusing {
	t.Helper()
	super, err := postgres.Open(t.Context(), database.SuperURL)
	check(t, err)
	t.Cleanup(func() { _ = super.Close() })
	_, err = super.Exec(t.Context(), `CREATE SEQUENCE refused; GRANT USAGE ON SEQUENCE refused TO PUBLIC`)
	check(t, err)
	return &refusing{super}
}

func (r *refusing) refuse(t *testing.T, text string) {
	t.Helper()
	_, err := r.super.Exec(t.Context(), fmt.Sprintf(`CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF position('%s' in convert_from(NEW.body, 'UTF8')) > 0 THEN
				PERFORM nextval('refused');
				RAISE EXCEPTION 'the audit log takes no such event now';
			END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION refuse()`, text))
	check(t, err)
}

func (r *refusing) allow(t *testing.T) {
	t.Helper()
	_, err := r.super.Exec(t.Context(), `DROP TRIGGER refuse ON audit_event`)
	check(t, err)
}

func (r *refusing) refused(t *testing.T) (n int) {
	t.Helper()
	check(t, r.super.QueryRow(t.Context(), `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM refused`).Scan(&n))
	return n
}

// On the way of a rotation each step is refused its event for a while: meanwhile the step has not happened, and when the
// log takes events again the rotation comes to its end as if nothing had been.
func TestAStepOfARotationDoesNotHappenWithoutItsEvent(t *testing.T) {
	t.Parallel()
	w := newFaulty(t)
	log := newRefusing(t, w.database)
	w.checkAll(t, w.rotate(t))
	for _, step := range []struct{ action, effect string }{
		{"notification.accepted", `SELECT COUNT(*) FROM notification`},
		{"trigger.queued", `SELECT COUNT(*) FROM attempt`},
		{"trigger.sent", `SELECT COUNT(*) FROM attempt WHERE sent_at IS NOT NULL`},
		{"progress.reported", `SELECT COUNT(*) FROM report WHERE rotation_id IS NOT NULL`},
		{"delivery.reported", `SELECT COUNT(*) FROM delivery`},
		{"rotation.done", `SELECT COUNT(*) FROM rotation WHERE state = 'done'`},
	} {
		t.Run(step.action, func(t *testing.T) {
			before, refused := w.count(t, step.effect), log.refused(t)
			log.refuse(t, `"action":"`+step.action+`"`)
			done := make(chan backupkey.Key, 1)
			go func() {
				defer close(done) // also where rotate ends the goroutine, with the test failed
				done <- w.rotate(t)
			}()
			wait(t, "the log to refuse", func() bool { return log.refused(t) > refused+1 })
			if n := w.count(t, step.effect); n != before {
				t.Errorf("it happened %d times without its event", n-before)
			}
			log.allow(t)
			if key := <-done; !t.Failed() {
				w.checkAll(t, key)
			}
		})
	}
}

// What an admin does, and what a notification brings about beside a rotation's steps, happens with its event or not at
// all: with the log closed, no row of the database changes.
func TestWhatAdminsDoDoesNotHappenWithoutItsEvent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, database := newDatabase(t)
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 1, Users: 2}})
	check(t, err)
	log := newRefusing(t, database)
	accept := func(user, version string) (uuid.UUID, error) {
		receipt, err := engine.Accept(ctx, intake.Notification{Source: "dev", ID: user + version, User: "@" + user + ":example.org",
			Secret: protocol.SecretMegolmBackup, KMS: "dev", Path: "keyherald/" + user, Version: version})
		key, _ := uuid.Parse(receipt.RotationID)
		return key, err
	}
	_, err = db.BotDevice(ctx, "@keyherald:example.org", "BOT")
	check(t, err)
	device := postgres.Device{ID: uuid.New(), UserID: "@alice:example.org", DeviceID: "DEVICE", IdentityKey: "i", SigningKey: "s", MasterKey: "m", EnrolledAt: time.Now()}
	check(t, db.PutDevice(ctx, device))
	_, err = accept("alice", "1")
	check(t, err)
	_, err = accept("bob", "1")
	check(t, err)
	held, err := accept("carol", "1")
	check(t, err)
	cancelled, err := accept("alice", "2")
	check(t, err)
	actor := keyheraldtest.Admin()
	check(t, engine.Cancel(ctx, cancelled, actor))

	for _, act := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"a notification opens a rotation", func(context.Context) error { _, err := accept("dave", "1"); return err }},
		{"a notification that is unusable is kept", func(ctx context.Context) error {
			_, err := engine.Unusable(ctx, intake.Notification{Source: "dev", ID: "odd", User: "@odd:example.org"}, intake.Problem{Why: audit.RefusedNoUsableVersion, Text: "it names no version"})
			return err
		}},
		{"refusals are counted", func(ctx context.Context) error { return engine.Refused(ctx, "dev", "wrong_signature", time.Now(), 3) }},
		{"what is ignored is counted", func(ctx context.Context) error {
			return engine.Ignored(ctx, "dev", audit.IgnoredUnmapped, time.Now(), 3)
		}},
		{"a notification has another's id", func(context.Context) error {
			_, err := engine.Accept(ctx, intake.Notification{Source: "dev", ID: "alice1", BodySHA256: [32]byte{1}, User: "@alice:example.org", Path: "x", Version: "1"})
			return err
		}},
		{"a code is made", func(ctx context.Context) error {
			_, err := engine.NewCode(ctx, "@alice:example.org", time.Hour, actor)
			return err
		}},
		{"triggers are frozen", func(ctx context.Context) error { return engine.Freeze(ctx, actor) }},
		{"triggers are thawed", func(ctx context.Context) error { return engine.Thaw(ctx, actor) }},
		{"a rotation is retried", func(ctx context.Context) error { return engine.Retry(ctx, cancelled, actor) }},
		{"a rotation is cancelled", func(ctx context.Context) error { return engine.Cancel(ctx, cancelled, actor) }},
		{"a newer version supersedes", func(context.Context) error { _, err := accept("alice", "3"); return err }},
		{"a held rotation is released", func(ctx context.Context) error { _, err := engine.Release(ctx, []uuid.UUID{held}, actor); return err }},
		{"a device is revoked", func(ctx context.Context) error {
			return engine.Revoke(ctx, device.UserID, device.DeviceID, "", actor)
		}},
		{"a restore is declared", func(ctx context.Context) error {
			_, err := engine.Restore(ctx, "FRESH", "a test", actor)
			return err
		}},
		{"a rotation times out", func(ctx context.Context) error {
			late, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x",
				Now: func() time.Time { return time.Now().Add(rotation.Timeout + time.Hour) }})
			if err != nil {
				return err
			}
			return late.Sweep(ctx)
		}},
	} {
		t.Run(act.what, func(t *testing.T) {
			before := snapshot(t, log.super)
			log.refuse(t, `"v":1`)
			if err := act.do(ctx); err == nil {
				t.Error("it is said to have happened, without its event")
			}
			if after := snapshot(t, log.super); !slices.Equal(before, after) {
				t.Errorf("rows changed without their event:\n%v\n%v", before, after)
			}
			log.allow(t)
			told := events(t, log.super)
			check(t, act.do(ctx))
			if slices.Equal(before, snapshot(t, log.super)) || events(t, log.super) == told {
				t.Error("nothing happened, or no event came, where the log takes events")
			}
		})
	}
}

// snapshot is a sum over every row of every table of ours.
func snapshot(t *testing.T, super *postgres.DB) []string {
	t.Helper()
	rows, err := super.Query(t.Context(), `SELECT tablename, (xpath('/row/sum/text()', query_to_xml(format(
		'SELECT md5(COALESCE(string_agg(t::text, chr(10) ORDER BY t::text), '''')) AS sum FROM %I t', tablename), false, true, '')))[1]::text
		FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'river%' ORDER BY tablename`)
	check(t, err)
	defer func() { _ = rows.Close() }()
	var sums []string
	for rows.Next() {
		var table, sum string
		check(t, rows.Scan(&table, &sum))
		sums = append(sums, table+" "+sum)
	}
	check(t, rows.Err())
	return sums
}

func events(t *testing.T, super *postgres.DB) (n int) {
	t.Helper()
	check(t, super.QueryRow(t.Context(), `SELECT COUNT(*) FROM audit_event`).Scan(&n))
	return n
}
