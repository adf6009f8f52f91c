package postgres

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"

	"go.mau.fi/util/dbutil"
)

// prepared is a statement that every connection of the pool prepares once and then keeps (database/sql does that). Closing
// the pool ends it.
//
// It is made between transactions, after an execution asked for it: the pool prepares on a connection, and who waits for
// a second one in a transaction may wait for himself. Until then, and where preparing fails as before the first migration,
// it is executed unprepared; nothing of a failure is remembered.
type prepared struct {
	query  string
	wanted atomic.Bool
	making sync.Mutex // lets one make it, the others do not wait
	stmt   atomic.Pointer[sql.Stmt]
}

// make prepares the statement if it is wanted. The caller must not be in a transaction.
func (p *prepared) make(ctx context.Context, db *sql.DB) {
	if !p.wanted.Load() || p.stmt.Load() != nil || !p.making.TryLock() {
		return
	}
	defer p.making.Unlock()
	if p.stmt.Load() != nil {
		return
	}
	if made, err := db.PrepareContext(ctx, p.query); err == nil {
		p.stmt.Store(made)
	}
}

// exec executes the statement in the context's transaction.
func (p *prepared) exec(ctx context.Context, db *dbutil.Database, args ...any) (sql.Result, error) {
	txn, inside := db.Execable(ctx).(*dbutil.LoggingTxn)
	stmt := p.stmt.Load()
	if !inside || stmt == nil {
		p.wanted.Store(true)
		return db.Exec(ctx, p.query, args...)
	}
	return txn.UnderlyingTx.StmtContext(ctx, stmt).ExecContext(ctx, args...)
}
