package postgres

import (
	"context"
	"fmt"
	"time"
)

// Dropped is how many messages to the bot were dropped unread in a minute for one reason.
type Dropped struct {
	Reason string
	Minute time.Time
	Count  int
}

// CountDropped counts what was dropped, arrived before a time, and was not counted yet.
func (db *DB) CountDropped(ctx context.Context, before time.Time) ([]Dropped, error) {
	rows, err := db.Query(ctx, `WITH dropped AS (UPDATE todevice_inbox SET counted = true
			WHERE account_id = $1 AND state = 'dropped' AND NOT counted AND received_at < $2 RETURNING reason, received_at / 60000 AS minute)
		SELECT reason, minute, COUNT(*) FROM dropped GROUP BY reason, minute ORDER BY minute, reason`, AccountBot, before.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("counting the messages that were dropped: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var all []Dropped
	for rows.Next() {
		var d Dropped
		var minute int64
		if err := rows.Scan(&d.Reason, &minute, &d.Count); err != nil {
			return nil, fmt.Errorf("counting the messages that were dropped: %w", err)
		}
		d.Minute = time.UnixMilli(minute * 60000).UTC()
		all = append(all, d)
	}
	return all, rows.Err()
}
