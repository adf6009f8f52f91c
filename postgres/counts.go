package postgres

import (
	"context"
	"fmt"
	"time"
)

// Counts are how many rows are in which state, for metrics.
type Counts struct {
	Rotations, Attention, Devices map[string]int
	Outbox, Frozen, Held, Notices int
	// Reenrollments are the devices that asked to be enrolled again, and wait for an admin.
	Reenrollments int
	// Oldest is for how long the oldest rotation that is open in a state has been so, since it was received.
	Oldest map[string]time.Duration
}

// Counts counts.
func (db *DB) Counts(ctx context.Context) (Counts, error) {
	counts := Counts{Rotations: map[string]int{}, Attention: map[string]int{}, Devices: map[string]int{}, Oldest: map[string]time.Duration{}}
	rows, err := db.Query(ctx, `SELECT 'rotation', state, COUNT(*) FROM rotation GROUP BY state
		UNION ALL SELECT 'attention', needs_attention, COUNT(*) FROM rotation WHERE ended_at IS NULL AND needs_attention <> '' GROUP BY needs_attention
		UNION ALL SELECT 'device', state, COUNT(*) FROM device GROUP BY state
		UNION ALL SELECT 'oldest', state, GREATEST(EXTRACT(EPOCH FROM now() - MIN(created_at))::bigint, 0) FROM rotation WHERE ended_at IS NULL GROUP BY state
		UNION ALL SELECT 'notices', '', COUNT(*) FROM notice WHERE state = 'pending'
		UNION ALL SELECT 'reenrollments', '', COUNT(*) FROM reenrollment WHERE state = 'waiting'
		UNION ALL SELECT 'outbox', '', COUNT(*) FROM todevice_outbox WHERE state = 'pending'
		UNION ALL SELECT 'held', '', COUNT(*) FROM rotation WHERE held AND ended_at IS NULL
		UNION ALL SELECT 'frozen', '', COUNT(*) FROM trigger_freeze`)
	if err != nil {
		return counts, fmt.Errorf("counting: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var kind, word string
		var n int
		if err := rows.Scan(&kind, &word, &n); err != nil {
			return counts, fmt.Errorf("counting: %w", err)
		}
		switch kind {
		case "rotation":
			counts.Rotations[word] = n
		case "attention":
			counts.Attention[word] = n
		case "device":
			counts.Devices[word] = n
		case "oldest":
			counts.Oldest[word] = time.Duration(n) * time.Second
		case "notices":
			counts.Notices = n
		case "reenrollments":
			counts.Reenrollments = n
		case "outbox":
			counts.Outbox = n
		case "held":
			counts.Held = n
		case "frozen":
			counts.Frozen = n
		}
	}
	return counts, rows.Err()
}
