package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Freeze is who stopped all triggers, and when; the zero value where nobody did.
type Freeze struct {
	At time.Time
	By string
}

// Frozen reads the freeze. A transaction that is about to trigger takes the lock and comes here first: SetFreeze waits
// for such transactions, so that no trigger is queued after a freeze has committed.
func (db *DB) Frozen(ctx context.Context, lock bool) (f Freeze, frozen bool, err error) {
	if lock {
		if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock_shared(hashtextextended('keyherald freeze', 0))`); err != nil {
			return f, false, fmt.Errorf("locking the freeze: %w", err)
		}
	}
	err = db.QueryRow(ctx, `SELECT frozen_at, frozen_by FROM trigger_freeze`).Scan(&f.At, &f.By)
	if errors.Is(err, sql.ErrNoRows) {
		return f, false, nil
	} else if err != nil {
		return f, false, fmt.Errorf("reading the freeze: %w", err)
	}
	return f, true, nil
}

// SetFreeze freezes or, for the zero value, thaws; changed is false where it was so already. It must run in a transaction.
func (db *DB) SetFreeze(ctx context.Context, f Freeze) (changed bool, err error) {
	if _, err := db.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('keyherald freeze', 0))`); err != nil {
		return false, fmt.Errorf("locking the freeze: %w", err)
	}
	var result sql.Result
	if f.By == "" {
		result, err = db.Exec(ctx, `DELETE FROM trigger_freeze`)
	} else {
		result, err = db.Exec(ctx, `INSERT INTO trigger_freeze (singleton, frozen_at, frozen_by) VALUES (1, $1, $2) ON CONFLICT DO NOTHING`, f.At, f.By)
	}
	if err != nil {
		return false, fmt.Errorf("changing the freeze: %w", err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}
