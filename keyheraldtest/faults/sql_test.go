package faults_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/lib/pq"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
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

// opened is a database past a recorder, and the same one without it.
type opened struct {
	recorder       *faults.Recorder
	watched, plain *sql.DB
}

func newOpened(t *testing.T, driver string) *opened {
	t.Helper()
	o := &opened{recorder: &faults.Recorder{}}
	switch driver {
	case "PostgreSQL":
		made, err := cluster.NewDatabase(t.Context())
		check(t, err)
		connector, err := pq.NewConnector(made.OwnerURL)
		check(t, err)
		o.watched = sql.OpenDB(o.recorder.Connector("database", connector))
		o.plain, err = sql.Open("postgres", made.OwnerURL)
		check(t, err)
	case "SQLite":
		dsn := "file:" + filepath.Join(t.TempDir(), "test.db") + "?_pragma=busy_timeout(10000)"
		var err error
		o.plain, err = sql.Open("sqlite", dsn)
		check(t, err)
		o.watched = sql.OpenDB(o.recorder.Connector("database", faults.DriverConnector(o.plain.Driver(), dsn)))
	}
	t.Cleanup(func() { _ = errors.Join(o.watched.Close(), o.plain.Close()) })
	_, err := o.plain.ExecContext(t.Context(), `CREATE TABLE first (n INTEGER NOT NULL)`)
	check(t, err)
	_, err = o.plain.ExecContext(t.Context(), `CREATE TABLE second (n INTEGER NOT NULL)`)
	check(t, err)
	return o
}

// rows counts what both tables hold.
func (o *opened) rows(t *testing.T) (n int) {
	t.Helper()
	check(t, o.plain.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM first) + (SELECT COUNT(*) FROM second)`).Scan(&n))
	return n
}

// runner executes a statement outside of a transaction, where tx is nil, or in it.
type runner func(ctx context.Context, tx *sql.Tx, query string) error

// runners are all ways to execute a statement: prepared on the pool, prepared in the transaction, and unprepared; for its
// effect or for its rows.
func (o *opened) runners(t *testing.T) map[string]runner {
	t.Helper()
	kept := map[string]*sql.Stmt{}
	keep := func(ctx context.Context, query string) (*sql.Stmt, error) {
		if kept[query] != nil {
			return kept[query], nil
		}
		var err error
		kept[query], err = o.watched.PrepareContext(ctx, query)
		return kept[query], err
	}
	onPool := func(ctx context.Context, tx *sql.Tx, query string) (*sql.Stmt, error) {
		stmt, err := keep(ctx, query)
		if err == nil && tx != nil {
			stmt = tx.StmtContext(ctx, stmt)
		}
		return stmt, err
	}
	inTransaction := func(ctx context.Context, tx *sql.Tx, query string) (*sql.Stmt, error) {
		if tx == nil {
			return o.watched.PrepareContext(ctx, query)
		}
		return tx.PrepareContext(ctx, query)
	}
	read := func(row *sql.Row) error {
		var n int
		if err := row.Scan(&n); err != nil {
			return err
		}
		if n != 1 {
			return errors.New("an INSERT returned another number")
		}
		return nil
	}
	all := map[string]runner{
		"unprepared, for its effect": func(ctx context.Context, tx *sql.Tx, query string) error {
			exec := o.watched.ExecContext
			if tx != nil {
				exec = tx.ExecContext
			}
			_, err := exec(ctx, query, 1)
			return err
		},
		"unprepared, for its rows": func(ctx context.Context, tx *sql.Tx, query string) error {
			ask := o.watched.QueryRowContext
			if tx != nil {
				ask = tx.QueryRowContext
			}
			return read(ask(ctx, query+" RETURNING n", 1))
		},
	}
	for where, prepare := range map[string]func(context.Context, *sql.Tx, string) (*sql.Stmt, error){"on the pool": onPool, "where it is executed": inTransaction} {
		all["prepared "+where+", for its effect"] = func(ctx context.Context, tx *sql.Tx, query string) error {
			stmt, err := prepare(ctx, tx, query)
			if err == nil {
				_, err = stmt.ExecContext(ctx, 1)
			}
			return err
		}
		all["prepared "+where+", for its rows"] = func(ctx context.Context, tx *sql.Tx, query string) error {
			stmt, err := prepare(ctx, tx, query+" RETURNING n")
			if err != nil {
				return err
			}
			return read(stmt.QueryRowContext(ctx, 1))
		}
	}
	return all
}

// work writes once outside of a transaction and twice in one, and goes on after a failure.
func (o *opened) work(ctx context.Context, run runner) (failures []error) {
	note := func(err error) bool {
		if err != nil {
			failures = append(failures, err)
		}
		return err == nil
	}
	note(run(ctx, nil, `INSERT INTO first VALUES ($1)`))
	tx, err := o.watched.BeginTx(ctx, nil)
	if !note(err) {
		return failures
	}
	if note(run(ctx, tx, `INSERT INTO first VALUES ($1)`)) && note(run(ctx, tx, `INSERT INTO second VALUES ($1)`)) {
		note(tx.Commit())
	} else {
		_ = tx.Rollback() // what failed is noted
	}
	return failures
}

// A statement is seen and fails alike, prepared or not: the same points, and after each fault the same rows stand.
func TestAPreparedStatementFailsAsAnUnpreparedOneDoes(t *testing.T) {
	t.Parallel()
	points := []faults.Point{
		{Label: "database: INSERT first", Nth: 1, Modes: []faults.Mode{faults.Lost, faults.Persisted}},
		{Label: "database: INSERT second in a transaction after first", Nth: 1, Modes: []faults.Mode{faults.Lost}},
		{Label: "database: commit of first, second", Nth: 1, Modes: []faults.Mode{faults.Lost, faults.Persisted}},
	}
	tests := []struct {
		name  string
		fault faults.Fault
		rows  int
	}{
		{"a write outside of a transaction is lost", faults.Fault{Label: points[0].Label, Nth: 1, Mode: faults.Lost}, 2},
		{"a write outside of a transaction persisted", faults.Fault{Label: points[0].Label, Nth: 1, Mode: faults.Persisted}, 3},
		{"a transaction's first write is lost", faults.Fault{Label: "database: INSERT first in a transaction after nothing", Nth: 1, Mode: faults.Lost}, 1},
		{"a transaction's second write is lost", faults.Fault{Label: points[1].Label, Nth: 1, Mode: faults.Lost}, 1},
		{"a commit is lost", faults.Fault{Label: points[2].Label, Nth: 1, Mode: faults.Lost}, 1},
		{"a commit persisted", faults.Fault{Label: points[2].Label, Nth: 1, Mode: faults.Persisted}, 3},
	}
	for _, driver := range []string{"PostgreSQL", "SQLite"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			o := newOpened(t, driver)
			for how, run := range o.runners(t) {
				t.Run(how, func(t *testing.T) {
					o.recorder.Begin()
					if failures := o.work(t.Context(), run); failures != nil {
						t.Fatal(failures)
					}
					if got := o.recorder.Points(); !reflect.DeepEqual(got, points) {
						t.Fatalf("its points are %v, want %v", got, points)
					}
					for _, test := range tests {
						before := o.rows(t)
						o.recorder.Arm(test.fault, nil)
						failures := o.work(t.Context(), run)
						if !o.recorder.Fired() || len(failures) != 1 || !errors.Is(failures[0], faults.ErrInjected) {
							t.Fatalf("%s: %v", test.name, failures)
						}
						if got := o.rows(t) - before; got != test.rows {
							t.Fatalf("%s: %d rows stand, want %d", test.name, got, test.rows)
						}
					}
				})
			}
		})
	}
}

func TestNothingIsPreparedOrExecutedOnAConnectionAfterItsFault(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"PostgreSQL", "SQLite"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			o := newOpened(t, driver)
			ctx := t.Context()
			tx, err := o.watched.BeginTx(ctx, nil)
			check(t, err)
			reading, err := tx.PrepareContext(ctx, `SELECT COUNT(*) FROM first`)
			check(t, err)
			o.recorder.Arm(faults.Fault{Label: "database: INSERT first in a transaction after nothing", Nth: 1, Mode: faults.Lost}, nil)
			_, first := tx.ExecContext(ctx, `INSERT INTO first VALUES (1)`)
			_, prepared := tx.PrepareContext(ctx, `INSERT INTO second VALUES ($1)`)
			var n int
			read := reading.QueryRowContext(ctx).Scan(&n)
			_, executed := reading.ExecContext(ctx)
			committed := tx.Commit()
			for i, err := range []error{first, prepared, read, executed, committed} {
				if !errors.Is(err, faults.ErrInjected) {
					t.Errorf("%d: %v", i, err)
				}
			}
			if got := o.rows(t); got != 0 {
				t.Errorf("%d rows stand", got)
			}
		})
	}
}

func TestWhatIsPreparedNeitherCountsNorFails(t *testing.T) {
	t.Parallel()
	o := newOpened(t, "PostgreSQL")
	insert := func() error {
		_, err := o.watched.ExecContext(t.Context(), `INSERT INTO first VALUES (1)`)
		return err
	}
	o.recorder.Arm(faults.Fault{Label: "database: INSERT first", Nth: 2, Mode: faults.Lost}, nil)
	check(t, insert())
	o.recorder.Rest(func() { check(t, insert()) })
	if o.recorder.Fired() || len(o.recorder.Points()) != 1 {
		t.Errorf("it counted %v (the fault fired: %t)", o.recorder.Points(), o.recorder.Fired())
	}
	if err := insert(); !errors.Is(err, faults.ErrInjected) {
		t.Errorf("the second one ends with %v", err)
	}
}

func TestAPreparedReadIsNoPoint(t *testing.T) {
	t.Parallel()
	o := newOpened(t, "PostgreSQL")
	stmt, err := o.watched.PrepareContext(t.Context(), `SELECT COUNT(*) FROM first`)
	check(t, err)
	var n int
	check(t, stmt.QueryRowContext(t.Context()).Scan(&n))
	if points := o.recorder.Points(); len(points) > 0 {
		t.Fatalf("its points are %v", points)
	}
}
