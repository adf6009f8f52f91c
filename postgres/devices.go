package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"
)

// DeviceState is where an enrolled device stands.
type DeviceState string

// The states of a device.
const (
	Enrolled        DeviceState = "enrolled"
	NeedsEnrollment DeviceState = "needs_enrollment"
	Revoked         DeviceState = "revoked"
)

// Device is a managed device as it was enrolled: its keys are pinned.
type Device struct {
	ID              uuid.UUID
	UserID          id.UserID
	DeviceID        id.DeviceID
	IdentityKey     id.Curve25519
	SigningKey      id.Ed25519
	MasterKey       id.Ed25519
	Name            string
	SoftwareVersion string
	State           DeviceState
	EnrolledAt      time.Time
	LastSeen        time.Time
	Status          json.RawMessage
	// WentBack devices were seen with an earlier state of their store: their keys are never trusted again.
	WentBack bool
}

const deviceColumns = `id, user_id, device_id, identity_key, signing_key, master_key, name, software_version, state, enrolled_at, last_seen, COALESCE(status, 'null'), went_back_at IS NOT NULL`

func scanDevice(row interface{ Scan(...any) error }) (Device, error) {
	var d Device
	var seen sql.NullTime
	var status []byte
	err := row.Scan(&d.ID, &d.UserID, &d.DeviceID, &d.IdentityKey, &d.SigningKey, &d.MasterKey, &d.Name, &d.SoftwareVersion,
		&d.State, &d.EnrolledAt, &seen, &status, &d.WentBack)
	d.LastSeen, d.Status = seen.Time, json.RawMessage(status)
	return d, err
}

// Devices lists the devices of a user, or of everybody for an empty user, in the order of enrollment.
func (db *DB) Devices(ctx context.Context, user id.UserID) ([]Device, error) {
	return db.devices(ctx, `$1 = '' OR user_id = $1 ORDER BY user_id, enrolled_at, id`, user)
}

func (db *DB) devices(ctx context.Context, where string, args ...any) ([]Device, error) {
	return collect(ctx, db, "the devices", scanDevice, `SELECT `+deviceColumns+` FROM device WHERE `+where, args...)
}

// Device reads one device.
func (db *DB) Device(ctx context.Context, key uuid.UUID) (Device, error) {
	device, err := scanDevice(db.QueryRow(ctx, `SELECT `+deviceColumns+` FROM device WHERE id = $1`, key))
	if err != nil {
		return device, fmt.Errorf("reading device %s: %w", key, err)
	}
	return device, nil
}

// LockDevice is Device, and locks it until the transaction ends. Whoever locks a device does it before its re-enrollments and
// before rotations.
func (db *DB) LockDevice(ctx context.Context, key uuid.UUID) (Device, error) {
	device, err := scanDevice(db.QueryRow(ctx, `SELECT `+deviceColumns+` FROM device WHERE id = $1 FOR NO KEY UPDATE`, key))
	if err != nil {
		return device, fmt.Errorf("locking device %s: %w", key, err)
	}
	return device, nil
}

// DeviceByKey finds the device of a user with this Curve25519 key; ok is false if there is none.
func (db *DB) DeviceByKey(ctx context.Context, user id.UserID, identityKey id.Curve25519) (device Device, ok bool, err error) {
	device, err = scanDevice(db.QueryRow(ctx, `SELECT `+deviceColumns+` FROM device WHERE user_id = $1 AND identity_key = $2`, user, identityKey))
	if errors.Is(err, sql.ErrNoRows) {
		return device, false, nil
	} else if err != nil {
		return device, false, fmt.Errorf("finding a device by its key: %w", err)
	}
	return device, true, nil
}

// PutDevice keeps a newly enrolled device; one of the same user and device id with the same keys is enrolled again,
// one with other keys is an error the caller must have excluded.
func (db *DB) PutDevice(ctx context.Context, d Device) error {
	_, err := db.Exec(ctx, `INSERT INTO device (id, user_id, device_id, identity_key, signing_key, master_key, name, software_version, state, enrolled_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'enrolled', $9)
		ON CONFLICT (user_id, device_id) DO UPDATE SET identity_key = excluded.identity_key, signing_key = excluded.signing_key,
			master_key = excluded.master_key, name = excluded.name, software_version = excluded.software_version,
			state = 'enrolled', enrolled_at = excluded.enrolled_at`,
		d.ID, d.UserID, d.DeviceID, d.IdentityKey, d.SigningKey, d.MasterKey, d.Name, d.SoftwareVersion, d.EnrolledAt)
	if err != nil {
		return fmt.Errorf("keeping device %s of %s: %w", d.DeviceID, d.UserID, err)
	}
	return nil
}

// SetDeviceState changes where a device stands.
func (db *DB) SetDeviceState(ctx context.Context, key uuid.UUID, state DeviceState) error {
	_, err := db.Exec(ctx, `UPDATE device SET state = $1 WHERE id = $2`, state, key)
	if err != nil {
		return fmt.Errorf("changing the state of device %s: %w", key, err)
	}
	return nil
}

// RevokedUntold lists revoked devices that were not told yet.
func (db *DB) RevokedUntold(ctx context.Context) ([]Device, error) {
	return db.devices(ctx, `state = 'revoked' AND revocation_told_at IS NULL ORDER BY id`)
}

// RevocationTold records that the word to a revoked device is in the outbox.
func (db *DB) RevocationTold(ctx context.Context, key uuid.UUID, at time.Time) error {
	if _, err := db.Exec(ctx, `UPDATE device SET revocation_told_at = $1 WHERE id = $2`, at, key); err != nil {
		return fmt.Errorf("recording that device %s was told: %w", key, err)
	}
	return nil
}

// SawDevice records that a device was heard of, with its status if it sent one.
func (db *DB) SawDevice(ctx context.Context, key uuid.UUID, at time.Time, status json.RawMessage) error {
	_, err := db.Exec(ctx, `UPDATE device SET last_seen = $1, status = COALESCE($2, status), status_at = CASE WHEN $2::jsonb IS NULL THEN status_at ELSE $1 END WHERE id = $3`, at, nullJSON(status), key)
	if err != nil {
		return fmt.Errorf("recording the status of device %s: %w", key, err)
	}
	return nil
}

// ToldStatus is the status of a device that was last an audit event, and when; nothing before the first.
func (db *DB) ToldStatus(ctx context.Context, key uuid.UUID) (status json.RawMessage, at time.Time, err error) {
	var told sql.NullTime
	err = db.QueryRow(ctx, `SELECT COALESCE(status_told, 'null'), status_told_at FROM device WHERE id = $1`, key).Scan(&status, &told)
	if err != nil {
		return nil, at, fmt.Errorf("reading what device %s told: %w", key, err)
	}
	return status, told.Time, nil
}

// TellStatus records that a status is an audit event; report is its id.
func (db *DB) TellStatus(ctx context.Context, key, report uuid.UUID, status json.RawMessage, at time.Time) error {
	_, err := db.Exec(ctx, `UPDATE device SET status_told = $1, status_told_at = $2 WHERE id = $3`, string(status), at, key)
	if err == nil {
		_, err = db.Exec(ctx, `UPDATE report SET news = true WHERE id = $1`, report)
	}
	if err != nil {
		return fmt.Errorf("recording what device %s told: %w", key, err)
	}
	return nil
}

func nullJSON(raw json.RawMessage) any {
	if len(raw) == 0 {
		return nil
	}
	return string(raw)
}

// Code is an enrollment code as the server keeps it: the hash alone.
type Code struct {
	ID         uuid.UUID
	UserID     id.UserID
	SHA256     [32]byte
	CreatedAt  time.Time
	CreatedBy  string
	ExpiresAt  time.Time
	WrongTries int
	Burned     bool
	UsedBy     uuid.UUID
}

// Open reports whether a device may still enroll with the code.
func (c Code) Open(now time.Time) bool {
	return !c.Burned && c.UsedBy == uuid.Nil && now.Before(c.ExpiresAt)
}

// PutCodes keeps new codes that were made together: at the same time, by the same actor, for the same while.
func (db *DB) PutCodes(ctx context.Context, codes []Code) error {
	keys, users, hashes := make([]uuid.UUID, len(codes)), make([]string, len(codes)), make([][]byte, len(codes))
	for i, c := range codes {
		keys[i], users[i], hashes[i] = c.ID, c.UserID.String(), c.SHA256[:]
	}
	_, err := db.Exec(ctx, `INSERT INTO enrollment_code (id, user_id, sha256, created_at, created_by, expires_at)
		SELECT id, user_id, sha256, $4, $5, $6 FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS code (id, user_id, sha256)`,
		pq.Array(keys), pq.Array(users), pq.Array(hashes), codes[0].CreatedAt, codes[0].CreatedBy, codes[0].ExpiresAt)
	if err != nil {
		return fmt.Errorf("keeping enrollment codes: %w", err)
	}
	return nil
}

// CountCodes is how many codes with one of these hashes were ever kept.
func (db *DB) CountCodes(ctx context.Context, hashes [][32]byte) (n int, err error) {
	raw := make([][]byte, len(hashes))
	for i := range hashes {
		raw[i] = hashes[i][:]
	}
	if err = db.QueryRow(ctx, `SELECT COUNT(*) FROM enrollment_code WHERE sha256 = ANY($1::bytea[])`, pq.Array(raw)).Scan(&n); err != nil {
		return 0, fmt.Errorf("looking for enrollment codes: %w", err)
	}
	return n, nil
}

// LockCode finds a code by its hash and locks it until the transaction ends.
func (db *DB) LockCode(ctx context.Context, hash [32]byte) (code Code, ok bool, err error) {
	var used uuid.NullUUID
	err = db.QueryRow(ctx, `SELECT id, user_id, created_at, created_by, expires_at, wrong_tries, burned, used_by FROM enrollment_code WHERE sha256 = $1 FOR UPDATE`,
		hash[:]).Scan(&code.ID, &code.UserID, &code.CreatedAt, &code.CreatedBy, &code.ExpiresAt, &code.WrongTries, &code.Burned, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return code, false, nil
	} else if err != nil {
		return code, false, fmt.Errorf("reading an enrollment code: %w", err)
	}
	code.SHA256, code.UsedBy = hash, used.UUID
	return code, true, nil
}

// UseCode binds a code to the device that enrolled with it.
func (db *DB) UseCode(ctx context.Context, code, device uuid.UUID) error {
	_, err := db.Exec(ctx, `UPDATE enrollment_code SET used_by = $1 WHERE id = $2`, device, code)
	if err != nil {
		return fmt.Errorf("using an enrollment code: %w", err)
	}
	return nil
}

// HasOpenCode reports whether a device of the user may enroll now.
func (db *DB) HasOpenCode(ctx context.Context, user id.UserID, now time.Time) (open bool, err error) {
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM enrollment_code WHERE user_id = $1 AND NOT burned AND used_by IS NULL AND expires_at > $2)`, user, now).Scan(&open)
	if err != nil {
		return false, fmt.Errorf("looking for open codes of %s: %w", user, err)
	}
	return open, nil
}

// WrongTry counts a wrong try against every open code of the user and burns those that had limit of them. It returns
// how many were burned.
func (db *DB) WrongTry(ctx context.Context, user id.UserID, now time.Time, limit int) (burned int, err error) {
	rows, err := db.Query(ctx, `UPDATE enrollment_code SET wrong_tries = wrong_tries + 1, burned = wrong_tries + 1 >= $3
		WHERE user_id = $1 AND NOT burned AND used_by IS NULL AND expires_at > $2 RETURNING burned`, user, now, limit)
	if err != nil {
		return 0, fmt.Errorf("counting a wrong enrollment code: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var is bool
		if err := rows.Scan(&is); err != nil {
			return 0, fmt.Errorf("counting a wrong enrollment code: %w", err)
		}
		if is {
			burned++
		}
	}
	return burned, rows.Err()
}

// Knows reports whether a user may write to the bot at all: ours are those who have a device or lately had a code, and
// anyone may while some code is or was lately open (a code used by the wrong user is refused with its reason, which
// takes decryption).
func (db *DB) Knows(ctx context.Context, user id.UserID, now time.Time) (ours, anyone bool, err error) {
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM device WHERE user_id = $1) OR EXISTS (SELECT 1 FROM enrollment_code WHERE user_id = $1 AND expires_at > $2),
		EXISTS (SELECT 1 FROM enrollment_code WHERE expires_at > $2 AND NOT burned)`, user, now.AddDate(0, -1, 0)).Scan(&ours, &anyone)
	if err != nil {
		return false, false, fmt.Errorf("looking up %s: %w", user, err)
	}
	return ours, anyone, nil
}
