package faults

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Connector lets every connection of the database write past the recorder. The points are each write outside of a
// transaction, each COMMIT of a transaction that wrote, and in each such transaction the statement in its middle.
// After a fault the connection is dead, as it is when a network breaks. A prepared statement is the same write each time
// that it is executed; to prepare it writes nothing.
//
// name begins the labels. The driver must know the context-taking interfaces, as lib/pq and modernc.org/sqlite do.
func (r *Recorder) Connector(name string, to driver.Connector) driver.Connector {
	return &connector{Connector: to, name: name, recorder: r}
}

// DriverConnector is the Connector of a driver that has none of its own.
func DriverConnector(d driver.Driver, dsn string) driver.Connector { return dsnConnector{d, dsn} }

type dsnConnector struct {
	driver driver.Driver
	dsn    string
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }

type connector struct {
	driver.Connector
	name     string
	recorder *Recorder
}

// under is what both drivers' connections can.
type under interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	opened, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	below, ok := opened.(under)
	if !ok {
		return nil, errors.Join(fmt.Errorf("faults: connections of %T cannot be watched", opened), opened.Close())
	}
	return &conn{under: below, name: c.name, recorder: c.recorder}, nil
}

// conn is used by one goroutine at a time, as database/sql promises.
type conn struct {
	under
	name     string
	recorder *Recorder
	tx       *tx
	dead     bool
}

// CheckNamedValue keeps the conversions of a driver that has its own.
func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := c.under.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return driver.ErrSkip
}

func (c *conn) IsValid() bool { return !c.dead && c.under.IsValid() }

func (c *conn) ResetSession(ctx context.Context) error {
	if c.dead {
		return driver.ErrBadConn // Before a statement, not for one: it makes database/sql throw the connection away.
	}
	return c.under.ResetSession(ctx)
}

func (c *conn) Ping(ctx context.Context) error {
	if c.dead {
		return ErrInjected
	}
	return c.under.Ping(ctx)
}

func (c *conn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	if c.dead {
		return nil, ErrInjected
	}
	below, err := c.under.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	c.tx = &tx{conn: c, below: below}
	return c.tx, nil
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.exec(query, func() (driver.Result, error) { return c.under.ExecContext(ctx, query, args) })
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(query, func() (driver.Rows, error) { return c.under.QueryContext(ctx, query, args) })
}

// exec lets a statement past the recorder that do executes.
func (c *conn) exec(query string, do func() (driver.Result, error)) (driver.Result, error) {
	mode, err := c.before(query)
	if err != nil {
		return nil, err
	}
	result, err := do()
	if err != nil {
		return nil, err
	}
	if mode == Persisted {
		return nil, c.die(query)
	}
	if n, err := result.RowsAffected(); c.tx != nil && (err != nil || n > 0) {
		c.tx.wrote(query)
	}
	return result, nil
}

// query is exec of a statement with rows.
func (c *conn) query(query string, do func() (driver.Rows, error)) (driver.Rows, error) {
	mode, err := c.before(query)
	if err != nil {
		return nil, err
	}
	rows, err := do()
	if err != nil {
		return nil, err
	}
	if mode == Persisted {
		// A statement is done when its rows are read.
		row := make([]driver.Value, len(rows.Columns()))
		for err = rows.Next(row); err == nil; err = rows.Next(row) {
		}
		if !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, rows.Close())
		}
		return nil, errors.Join(c.die(query), rows.Close())
	}
	if c.tx != nil {
		c.tx.wrote(query)
	}
	return rows, nil
}

// Prepare is there for the interface: database/sql calls PrepareContext.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.dead {
		return nil, ErrInjected
	}
	prepared, err := c.under.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	below, ok := prepared.(underStmt)
	if !ok {
		return nil, errors.Join(fmt.Errorf("faults: statements of %T cannot be watched", prepared), prepared.Close())
	}
	return &stmt{underStmt: below, conn: c, text: query}, nil
}

// underStmt is what both drivers' prepared statements can. They have no conversions of their own: those of the connection
// (CheckNamedValue) are theirs.
type underStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// stmt is prepared on one connection.
type stmt struct {
	underStmt
	conn *conn
	text string
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.exec(s.text, func() (driver.Result, error) { return s.underStmt.ExecContext(ctx, args) })
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.query(s.text, func() (driver.Rows, error) { return s.underStmt.QueryContext(ctx, args) })
}

// before counts a statement that writes and fails it if it is its turn.
func (c *conn) before(query string) (Mode, error) {
	if c.dead {
		return none, ErrInjected
	}
	what, _ := write(query)
	if what == "" {
		return none, nil
	}
	var mode Mode
	if c.tx == nil {
		_, mode = c.recorder.visit(c.name+": "+what, Lost, Persisted)
	} else {
		// A loop of the same writes counts as one: how often it turns differs from run to run.
		if what != c.tx.looping {
			label := fmt.Sprintf("%s: %s in a transaction after %s", c.name, what, orNothing(c.tx.tables))
			var nth int
			nth, mode = c.recorder.visit(label)
			c.tx.statements = append(c.tx.statements, Point{label, nth, []Mode{Lost}})
		}
		c.tx.looping = what
	}
	if mode == Lost {
		return mode, c.die(query)
	}
	return mode, nil
}

func (c *conn) die(query string) error {
	c.dead = true
	what, _ := write(query)
	return fmt.Errorf("%w (%s)", ErrInjected, what)
}

type tx struct {
	conn       *conn
	below      driver.Tx
	tables     []string
	statements []Point
	// looping is the newest write, which may come again and again.
	looping string
}

func (t *tx) wrote(query string) {
	if _, table := write(query); table != "" && !slices.Contains(t.tables, table) {
		t.tables = append(t.tables, table)
	}
}

func (t *tx) Commit() error {
	t.conn.tx = nil
	if t.conn.dead {
		return errors.Join(ErrInjected, t.below.Rollback())
	}
	if len(t.tables) == 0 {
		return t.below.Commit()
	}
	if n := len(t.statements); n > 1 {
		t.conn.recorder.list(t.statements[n/2])
	}
	_, mode := t.conn.recorder.visit(t.conn.name+": commit of "+strings.Join(t.tables, ", "), Lost, Persisted)
	switch mode {
	case Lost:
		t.conn.dead = true
		return errors.Join(ErrInjected, t.below.Rollback())
	case Persisted:
		t.conn.dead = true
		return errors.Join(ErrInjected, t.below.Commit())
	}
	return t.below.Commit()
}

func (t *tx) Rollback() error {
	t.conn.tx = nil
	return t.below.Rollback()
}

var writes = regexp.MustCompile(`(?is)^\s*(?:WITH\b.*?\)\s*)?(INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+"?(\w+)`)

// write names what a statement writes and where; both are empty for one that only reads.
func write(query string) (what, table string) {
	if strings.Contains(query, "pg_notify(") {
		return "NOTIFY", "NOTIFY"
	}
	match := writes.FindStringSubmatch(query)
	if match == nil {
		return "", ""
	}
	verb, _, _ := strings.Cut(strings.ToUpper(match[1]), " ")
	return verb + " " + match[2], match[2]
}

func orNothing(tables []string) string {
	if len(tables) == 0 {
		return "nothing"
	}
	return strings.Join(tables, ", ")
}
