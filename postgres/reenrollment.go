package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"
)

// ReenrollmentState is where a device stands that asked again.
type ReenrollmentState string

// The states: it waits for an admin; he released it, and the bot has yet to look; he rejected it, or the device was revoked or its user left the
// roster; the device is enrolled again; the device asked once more, with yet another identity; the identity had changed again
// when the bot looked, or the device was enrolled with a code meanwhile.
const (
	ReenrollmentWaiting  ReenrollmentState = "waiting"
	ReenrollmentReleased ReenrollmentState = "released"
	ReenrollmentRejected ReenrollmentState = "rejected"
	ReenrollmentEnrolled ReenrollmentState = "enrolled"
	ReenrollmentReplaced ReenrollmentState = "replaced"
	ReenrollmentVoid     ReenrollmentState = "void"
)

// Reenrollment is a device that asked to be enrolled again after its user's identity was reset.
type Reenrollment struct {
	ID           uuid.UUID         `json:"id"`
	Device       uuid.UUID         `json:"-"`
	UserID       id.UserID         `json:"user_id"`
	DeviceID     id.DeviceID       `json:"device_id"`
	OldMasterKey id.Ed25519        `json:"old_master_key"`
	NewMasterKey id.Ed25519        `json:"new_master_key"`
	AskedAt      time.Time         `json:"asked_at"`
	State        ReenrollmentState `json:"state"`
	// DecidedAt is zero, and DecidedBy empty, until it is decided.
	DecidedAt time.Time `json:"decided_at,omitzero"`
	DecidedBy string    `json:"decided_by,omitempty"`
}

const reenrollmentColumns = `r.id, r.device_id, d.user_id, d.device_id, r.old_master_key, r.new_master_key, r.asked_at, r.state, r.decided_at, r.decided_by`

const reenrollmentSelect = `SELECT ` + reenrollmentColumns + ` FROM reenrollment r JOIN device d ON d.id = r.device_id WHERE `

func scanReenrollment(row interface{ Scan(...any) error }) (r Reenrollment, err error) {
	var decided sql.NullTime
	err = row.Scan(&r.ID, &r.Device, &r.UserID, &r.DeviceID, &r.OldMasterKey, &r.NewMasterKey, &r.AskedAt, &r.State, &decided, &r.DecidedBy)
	r.DecidedAt = decided.Time
	return r, err
}

func (db *DB) reenrollments(ctx context.Context, where string, args ...any) ([]Reenrollment, error) {
	return collect(ctx, db, "who asks to be enrolled again", scanReenrollment, reenrollmentSelect+where, args...)
}

// ReenrollmentFilter is which are listed, and from where on: After is the last of the page before, and Limit 0 is all.
type ReenrollmentFilter struct {
	Waiting bool
	After   uuid.UUID
	Limit   int
}

// Reenrollments lists devices that asked again, in that order.
func (db *DB) Reenrollments(ctx context.Context, f ReenrollmentFilter) ([]Reenrollment, error) {
	return db.reenrollments(ctx, `r.id > $1 AND (NOT $2 OR r.state = 'waiting') ORDER BY r.id LIMIT NULLIF($3, 0)`, f.After, f.Waiting, f.Limit)
}

// UnsettledReenrollments lists those that an admin decided about and the bot has not settled.
func (db *DB) UnsettledReenrollments(ctx context.Context) ([]Reenrollment, error) {
	return db.reenrollments(ctx, `NOT r.settled AND r.state IN ('released', 'rejected') ORDER BY r.id`)
}

// LockReenrollment reads one and locks it until the transaction ends.
func (db *DB) LockReenrollment(ctx context.Context, key uuid.UUID) (r Reenrollment, ok bool, err error) {
	r, err = scanReenrollment(db.QueryRow(ctx, reenrollmentSelect+`r.id = $1 FOR UPDATE OF r`, key))
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	} else if err != nil {
		return r, false, fmt.Errorf("reading re-enrollment %s: %w", key, err)
	}
	return r, true, nil
}

// LastReenrollment is the newest of a device; ok is false where it never asked.
func (db *DB) LastReenrollment(ctx context.Context, device uuid.UUID) (r Reenrollment, ok bool, err error) {
	all, err := db.reenrollments(ctx, `r.device_id = $1 ORDER BY r.id DESC LIMIT 1`, device)
	if err != nil || len(all) == 0 {
		return r, false, err
	}
	return all[0], true, nil
}

// QueueReenrollment keeps that a device asks again. One of its that nobody settled is replaced.
func (db *DB) QueueReenrollment(ctx context.Context, r Reenrollment) error {
	_, err := db.Exec(ctx, `UPDATE reenrollment SET state = 'replaced', settled = true WHERE device_id = $1 AND state IN ('waiting', 'released')`, r.Device)
	if err == nil {
		_, err = db.Exec(ctx, `INSERT INTO reenrollment (id, device_id, old_master_key, new_master_key, asked_at, state) VALUES ($1, $2, $3, $4, $5, 'waiting')`,
			r.ID, r.Device, r.OldMasterKey, r.NewMasterKey, r.AskedAt)
	}
	if err != nil {
		return fmt.Errorf("queuing a re-enrollment: %w", err)
	}
	return nil
}

// DecideReenrollment keeps what an admin decided.
func (db *DB) DecideReenrollment(ctx context.Context, key uuid.UUID, state ReenrollmentState, at time.Time, by string) error {
	if _, err := db.Exec(ctx, `UPDATE reenrollment SET state = $1, decided_at = $2, decided_by = $3 WHERE id = $4`, state, at, by, key); err != nil {
		return fmt.Errorf("deciding about re-enrollment %s: %w", key, err)
	}
	return nil
}

// RejectReenrollmentsOf rejects what devices asked and nobody settled, and returns these. That their events are appended,
// and the devices are told, is for the caller.
func (db *DB) RejectReenrollmentsOf(ctx context.Context, devices []Device, at time.Time, by string) ([]Reenrollment, error) {
	return collect(ctx, db, "the re-enrollments that are rejected", scanReenrollment, `UPDATE reenrollment r SET state = 'rejected', decided_at = $2, decided_by = $3
		FROM device d WHERE d.id = r.device_id AND d.id = ANY ($1::uuid[]) AND r.state IN ('waiting', 'released') RETURNING `+reenrollmentColumns, pq.Array(deviceKeys(devices)), at, by)
}

// SettleReenrollment keeps that the bot did what was decided, and how it ended.
func (db *DB) SettleReenrollment(ctx context.Context, key uuid.UUID, state ReenrollmentState) error {
	if _, err := db.Exec(ctx, `UPDATE reenrollment SET state = $1, settled = true WHERE id = $2`, state, key); err != nil {
		return fmt.Errorf("settling re-enrollment %s: %w", key, err)
	}
	return nil
}

// DropReenrollment voids what a device asked and nobody settled: it was enrolled another way.
func (db *DB) DropReenrollment(ctx context.Context, device uuid.UUID) error {
	if _, err := db.Exec(ctx, `UPDATE reenrollment SET state = 'void', settled = true WHERE device_id = $1 AND state IN ('waiting', 'released')`, device); err != nil {
		return fmt.Errorf("dropping a re-enrollment: %w", err)
	}
	return nil
}
