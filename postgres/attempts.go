package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/protocol"
)

// Attempt is one trigger of a rotation to one device.
type Attempt struct {
	RotationID uuid.UUID
	Number     int
	Device     uuid.UUID
	Sequence   int64
	Stage      protocol.Stage
	SentAt     time.Time
}

// Attempts lists the attempts of a rotation in their order.
func (db *DB) Attempts(ctx context.Context, key uuid.UUID) ([]Attempt, error) {
	return db.attempts(ctx, `rotation_id = $1`, key)
}

func (db *DB) attempts(ctx context.Context, where string, args ...any) ([]Attempt, error) {
	rows, err := db.Query(ctx, `SELECT rotation_id, attempt, device, sequence, stage, sent_at FROM attempt WHERE `+where+` ORDER BY rotation_id, attempt`, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the attempts: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var attempts []Attempt
	for rows.Next() {
		var a Attempt
		var sent sql.NullTime
		if err := rows.Scan(&a.RotationID, &a.Number, &a.Device, &a.Sequence, &a.Stage, &sent); err != nil {
			return nil, fmt.Errorf("reading the attempts: %w", err)
		}
		a.SentAt = sent.Time
		attempts = append(attempts, a)
	}
	return attempts, rows.Err()
}

// AttemptReported records the stage a device reported for an attempt.
func (db *DB) AttemptReported(ctx context.Context, key uuid.UUID, attempt int, stage protocol.Stage, now time.Time) error {
	_, err := db.Exec(ctx, `UPDATE attempt SET stage = $3, reported_at = $4 WHERE rotation_id = $1 AND attempt = $2`, key, attempt, stage, now)
	if err != nil {
		return fmt.Errorf("recording a report: %w", err)
	}
	return nil
}

// CancelledUntold lists the attempts of cancelled rotations whose devices were not told yet.
func (db *DB) CancelledUntold(ctx context.Context) ([]Attempt, error) {
	rows, err := db.Query(ctx, `SELECT a.rotation_id, a.attempt, a.device FROM attempt a JOIN rotation r ON r.id = a.rotation_id
		WHERE r.state = 'cancelled' AND a.cancel_told_at IS NULL ORDER BY a.rotation_id, a.attempt`)
	if err != nil {
		return nil, fmt.Errorf("reading the cancelled attempts: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var attempts []Attempt
	for rows.Next() {
		var a Attempt
		if err := rows.Scan(&a.RotationID, &a.Number, &a.Device); err != nil {
			return nil, fmt.Errorf("reading the cancelled attempts: %w", err)
		}
		attempts = append(attempts, a)
	}
	return attempts, rows.Err()
}

// CancelTold records that the word to the attempt's device is in the outbox.
func (db *DB) CancelTold(ctx context.Context, key uuid.UUID, attempt int, at time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE attempt SET cancel_told_at = $3 WHERE rotation_id = $1 AND attempt = $2`, key, attempt, at); err != nil {
		return fmt.Errorf("recording that a device was told: %w", err)
	}
	return nil
}

// Deliveries lists the targets of a rotation with their outcomes, by device id.
func (db *DB) Deliveries(ctx context.Context, key uuid.UUID) ([]protocol.Delivery, error) {
	rows, err := db.Query(ctx, `SELECT device_id, outcome, forms FROM delivery WHERE rotation_id = $1 ORDER BY device_id`, key)
	if err != nil {
		return nil, fmt.Errorf("reading the deliveries: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var deliveries []protocol.Delivery
	for rows.Next() {
		var d protocol.Delivery
		var forms string
		if err := rows.Scan(&d.DeviceID, &d.Outcome, &forms); err != nil {
			return nil, fmt.Errorf("reading the deliveries: %w", err)
		}
		d.Forms = strings.Fields(forms)
		deliveries = append(deliveries, d)
	}
	return deliveries, rows.Err()
}

// PutDelivery keeps the outcome for one target. Word of a withdrawal may come late, and takes back nothing that was sent.
func (db *DB) PutDelivery(ctx context.Context, key uuid.UUID, d protocol.Delivery, now time.Time) error {
	_, err := db.Exec(ctx, `INSERT INTO delivery (rotation_id, device_id, outcome, forms, reported_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (rotation_id, device_id) DO UPDATE SET outcome = excluded.outcome, forms = excluded.forms, reported_at = excluded.reported_at
		WHERE delivery.outcome <> 'adopted' AND NOT (delivery.outcome = 'sent' AND excluded.outcome = 'superseded')`,
		key, d.DeviceID, d.Outcome, strings.Join(d.Forms, " "), now)
	if err != nil {
		return fmt.Errorf("recording a delivery: %w", err)
	}
	return nil
}

// Adopted turns the outcome of a target that was sent the key into adopted, and reports whether it did.
func (db *DB) Adopted(ctx context.Context, key uuid.UUID, device id.DeviceID, now time.Time) (bool, error) {
	result, err := db.Exec(ctx, `UPDATE delivery SET outcome = 'adopted', reported_at = $3 WHERE rotation_id = $1 AND device_id = $2 AND outcome = 'sent'`, key, device, now)
	if err != nil {
		return false, fmt.Errorf("recording an adoption: %w", err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// Outcomes counts the targets of a rotation by outcome.
func (db *DB) Outcomes(ctx context.Context, key uuid.UUID) (map[string]int, error) {
	rows, err := db.Query(ctx, `SELECT outcome, COUNT(*) FROM delivery WHERE rotation_id = $1 GROUP BY outcome`, key)
	if err != nil {
		return nil, fmt.Errorf("reading the deliveries: %w", err)
	}
	defer func() { _ = rows.Close() }()
	outcomes := map[string]int{}
	for rows.Next() {
		var word string
		var n int
		if err := rows.Scan(&word, &n); err != nil {
			return nil, fmt.Errorf("reading the deliveries: %w", err)
		}
		outcomes[word] = n
	}
	return outcomes, rows.Err()
}
