package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
)

// Lock is what one replica at a time does, held by a connection of its own.
type Lock struct {
	conn *sql.Conn
	name string
}

// TryLock takes the lock of this name if it is free, and returns nil if another replica has it.
func (db *DB) TryLock(ctx context.Context, name string) (*Lock, error) {
	conn, err := db.RawDB.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("taking the lock %q: %w", name, err)
	}
	var taken bool
	err = conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock(hashtextextended('keyherald ' || $1, 0))`, name).Scan(&taken)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taking the lock %q: %w", name, err), conn.Close())
	}
	if !taken {
		return nil, conn.Close()
	}
	return &Lock{conn, name}, nil
}

// Held fails where the connection, and the lock with it, is gone.
func (l *Lock) Held(ctx context.Context) error {
	if err := l.conn.PingContext(ctx); err != nil {
		return fmt.Errorf("holding the lock %q: %w", l.name, err)
	}
	return nil
}

// Release gives the lock back at once, and the connection to its pool. Close lets PostgreSQL find out, in its time.
func (l *Lock) Release(ctx context.Context) error {
	if _, err := l.conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock(hashtextextended('keyherald ' || $1, 0))`, l.name); err != nil {
		return errors.Join(fmt.Errorf("releasing the lock %q: %w", l.name, err), l.Close())
	}
	return l.conn.Close()
}

// Close ends the connection, not only its use: a pooled one would keep the lock.
func (l *Lock) Close() error {
	_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
	return l.conn.Close()
}
