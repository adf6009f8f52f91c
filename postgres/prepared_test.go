package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
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

// newDatabase is without tables until migrate; db is the writer's, with so many connections.
func newDatabase(t *testing.T, connections int) (made *keyheraldtest.Database, db *postgres.DB) {
	t.Helper()
	made, err := cluster.NewDatabase(t.Context())
	check(t, err)
	db, err = postgres.Open(t.Context(), made.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	db.RawDB.SetMaxOpenConns(connections)
	return made, db
}

func migrate(t *testing.T, made *keyheraldtest.Database) {
	t.Helper()
	owner, err := postgres.Open(t.Context(), made.OwnerURL)
	check(t, err)
	check(t, errors.Join(owner.Migrate(t.Context(), made.Roles(), keyheraldtest.Admin(), ""), owner.Close()))
}

func event() audit.Event {
	return audit.Event{Time: time.Now(), Actor: keyheraldtest.Admin(), Action: audit.TriggersFrozen, Subject: audit.OfTriggers(), Outcome: audit.Accepted}
}

// appendOne appends an event in a transaction, and returns how many statements its connection has prepared by then.
func appendOne(ctx context.Context, db *postgres.DB) (prepared int, err error) {
	err = db.Txn(ctx, func(ctx context.Context) error {
		if err := db.Append(ctx, event()); err != nil {
			return err
		}
		return db.QueryRow(ctx, `SELECT COUNT(*) FROM pg_prepared_statements WHERE statement LIKE '%audit_event%' AND name <> ''`).Scan(&prepared)
	})
	return prepared, err
}

func wantEvents(t *testing.T, db *postgres.DB, want int) {
	t.Helper()
	var events, details int
	check(t, db.QueryRow(t.Context(), `SELECT COUNT(*), COUNT(d.event_id) FROM audit_event e LEFT JOIN audit_detail d ON d.event_id = e.id
		WHERE convert_from(e.body, 'UTF8') LIKE '%triggers.frozen%'`).Scan(&events, &details))
	if events != want || details != want {
		t.Fatalf("%d events with %d details are in the log, want %d", events, details, want)
	}
}

func TestAConnectionKeepsTheStatementThatAppendsAnEvent(t *testing.T) {
	t.Parallel()
	made, db := newDatabase(t, 1)
	migrate(t, made)
	for i, want := range []int{0, 1, 1, 1} {
		if got, err := appendOne(t.Context(), db); err != nil || got != want {
			t.Fatalf("append %d: %d statements are prepared, want %d: %v", i, got, want, err)
		}
	}
	wantEvents(t, db, 4)
}

func TestALostConnectionTakesItsPreparedStatementAndTheNextHasItsOwn(t *testing.T) {
	t.Parallel()
	made, db := newDatabase(t, 1)
	migrate(t, made)
	for range 2 {
		_, err := appendOne(t.Context(), db)
		check(t, err)
	}
	super, err := sql.Open("postgres", made.SuperURL)
	check(t, err)
	defer func() { _ = super.Close() }()
	if _, err := super.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = $1`, made.Writer); err != nil {
		t.Fatal(err)
	}
	if got, err := appendOne(t.Context(), db); err != nil || got != 1 {
		t.Fatalf("%d statements are prepared: %v", got, err)
	}
	wantEvents(t, db, 3)
}

func TestAppendsBeforeTheFirstMigrationFailAndThoseAfterItArePrepared(t *testing.T) {
	t.Parallel()
	made, db := newDatabase(t, 1)
	for range 3 {
		var missing *pq.Error
		if _, err := appendOne(t.Context(), db); !errors.As(err, &missing) || missing.Code != "42P01" {
			t.Fatalf("an append into a database without tables: %v", err)
		}
	}
	migrate(t, made)
	if got, err := appendOne(t.Context(), db); err != nil || got != 1 {
		t.Fatalf("%d statements are prepared: %v", got, err)
	}
	wantEvents(t, db, 1)
}

func TestAPreparedAppendOutlivesAMigrationOfTheLog(t *testing.T) {
	t.Parallel()
	made, db := newDatabase(t, 1)
	migrate(t, made)
	for range 2 {
		_, err := appendOne(t.Context(), db)
		check(t, err)
	}
	owner, err := postgres.Open(t.Context(), made.OwnerURL)
	check(t, err)
	_, err = owner.Exec(t.Context(), `ALTER TABLE audit_event ADD COLUMN later TEXT NOT NULL DEFAULT 'later'; CREATE INDEX ON audit_detail (salt);
		CREATE OR REPLACE FUNCTION audit_enqueue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
		BEGIN INSERT INTO public.audit_pending (event_id) VALUES (NEW.id); RETURN NULL; END $$`)
	check(t, errors.Join(err, owner.Close()))
	if got, err := appendOne(t.Context(), db); err != nil || got != 1 {
		t.Fatalf("%d statements are prepared: %v", got, err)
	}
	wantEvents(t, db, 3)
}

// Whoever prepares on a second connection while he holds one waits for ever where there is no other.
func TestTransactionsThatTakeAllConnectionsAppendBesideEachOther(t *testing.T) {
	t.Parallel()
	made, db := newDatabase(t, 1)
	migrate(t, made)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	failures := make([]error, 40)
	for i := range failures {
		all.Go(func() { _, failures[i] = appendOne(ctx, db) })
	}
	all.Wait()
	check(t, errors.Join(failures...))
	wantEvents(t, db, len(failures))
}

// The statements in a transaction that appends are the same to a fault whether they are prepared or not.
func TestAPreparedAppendThatFailsLeavesNoEventAndTakesItsTransactionWithIt(t *testing.T) {
	t.Parallel()
	made, plain := newDatabase(t, 5)
	migrate(t, made)
	connector, err := pq.NewConnector(made.WriterURL)
	check(t, err)
	recorder := &faults.Recorder{}
	db, err := postgres.OpenWith(t.Context(), sql.OpenDB(recorder.Connector("PostgreSQL", connector)), made.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	effect := func() error {
		return db.Txn(t.Context(), func(ctx context.Context) error {
			if err := db.Append(ctx, event()); err != nil {
				return err
			}
			return db.Notify(ctx, "test", "done")
		})
	}
	recorder.Begin()
	check(t, effect())
	unprepared := recorder.Points()
	recorder.Begin()
	check(t, effect())
	prepared := recorder.Points()
	if len(prepared) != 2 || len(unprepared) != 2 || prepared[0].Label != unprepared[0].Label || prepared[1].Label != unprepared[1].Label {
		t.Fatalf("prepared %v, unprepared %v", prepared, unprepared)
	}
	first := faults.Fault{Label: "PostgreSQL: INSERT audit_detail in a transaction after nothing", Nth: 1, Mode: faults.Lost}
	stands := 2
	for _, fault := range append(faults.Table(prepared), first) {
		recorder.Arm(fault, nil)
		if err := effect(); !errors.Is(err, faults.ErrInjected) || !recorder.Fired() {
			t.Fatalf("%v: %v", fault, err)
		}
		if fault.Mode == faults.Persisted {
			stands++
		}
		wantEvents(t, plain, stands)
	}
	recorder.Begin()
	check(t, effect())
	wantEvents(t, plain, stands+1)
}
