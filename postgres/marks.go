package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/keyherald/keyherald/protocol"
)

// StoreRuns lists the highest mark of each run of a device's store.
func (db *DB) StoreRuns(ctx context.Context, device uuid.UUID) ([]protocol.StoreMark, error) {
	rows, err := db.Query(ctx, `SELECT run, base, count FROM device_run WHERE device = $1 ORDER BY base, run`, device)
	if err != nil {
		return nil, fmt.Errorf("reading the marks of device %s: %w", device, err)
	}
	defer func() { _ = rows.Close() }()
	var marks []protocol.StoreMark
	for rows.Next() {
		var m protocol.StoreMark
		if err := rows.Scan(&m.Run, &m.Base, &m.Count); err != nil {
			return nil, fmt.Errorf("reading the marks of device %s: %w", device, err)
		}
		marks = append(marks, m)
	}
	return marks, rows.Err()
}

// PutStoreMark keeps the mark of a report.
func (db *DB) PutStoreMark(ctx context.Context, device, report uuid.UUID, m protocol.StoreMark) error {
	_, err := db.Exec(ctx, `INSERT INTO device_run (device, run, base, count) VALUES ($1, $2, $3, $4)
		ON CONFLICT (device, run) DO UPDATE SET count = GREATEST(device_run.count, excluded.count)`, device, m.Run, m.Base, m.Count)
	if err == nil {
		_, err = db.Exec(ctx, `UPDATE report SET store_run = $2, store_count = $3 WHERE id = $1`, report, m.Run, m.Count)
	}
	if err != nil {
		return fmt.Errorf("keeping the mark of a report: %w", err)
	}
	return nil
}

// MarkTaken reports whether another report of the device came with the same mark.
func (db *DB) MarkTaken(ctx context.Context, device uuid.UUID, m protocol.StoreMark) (taken bool, err error) {
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM report WHERE device = $1 AND store_run = $2 AND store_count = $3)`, device, m.Run, m.Count).Scan(&taken)
	if err != nil {
		return false, fmt.Errorf("looking for the mark of a report: %w", err)
	}
	return taken, nil
}

// HighestMarks are the marks that these devices have reported last; a device that has sent none is missing.
func (db *DB) HighestMarks(ctx context.Context, devices []uuid.UUID) (map[uuid.UUID]*protocol.StoreMark, error) {
	rows, err := db.Query(ctx, `SELECT DISTINCT ON (device) device, run, base, count FROM device_run WHERE device = ANY($1) ORDER BY device, count DESC`, pq.Array(devices))
	if err != nil {
		return nil, fmt.Errorf("reading the marks of devices: %w", err)
	}
	defer func() { _ = rows.Close() }()
	marks := map[uuid.UUID]*protocol.StoreMark{}
	for rows.Next() {
		var device uuid.UUID
		var m protocol.StoreMark
		if err := rows.Scan(&device, &m.Run, &m.Base, &m.Count); err != nil {
			return nil, fmt.Errorf("reading the marks of devices: %w", err)
		}
		marks[device] = &m
	}
	return marks, rows.Err()
}

// DeviceWentBack records that a device's store was put back to an earlier state: it has to be enrolled anew, and not
// under its old keys. One that was revoked stays so.
func (db *DB) DeviceWentBack(ctx context.Context, device uuid.UUID, at time.Time) error {
	_, err := db.Exec(ctx, `UPDATE device SET state = CASE WHEN state = 'revoked' THEN state ELSE 'needs_enrollment' END, went_back_at = $2 WHERE id = $1`, device, at)
	if err != nil {
		return fmt.Errorf("recording that the store of device %s went back: %w", device, err)
	}
	return nil
}
