package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

// AccountBot names the bot's Olm account among the rows of package todevice and of the crypto store.
const AccountBot = "bot"

// RetireBot replaces the bot's device by a new one and forgets every Olm key of the old: after a restore its ratchets
// are behind those of the devices it spoke with, and must never move again. Whoever holds the lease loses it. What
// waited in the outbox is withdrawn, since it is encrypted by the old device. It must run in a transaction.
func (db *DB) RetireBot(ctx context.Context, fresh id.DeviceID, now time.Time) (old id.DeviceID, err error) {
	// First the lease: the update waits for the Olm transactions under way, and fails those to come.
	for _, statement := range []string{
		`UPDATE bot_lease SET epoch = epoch + 1, holder = '', expires_at = now() - interval '1 second'`,
		`DELETE FROM crypto_account WHERE account_id = 'bot'`,
		`DELETE FROM crypto_olm_session WHERE account_id = 'bot'`,
		`DELETE FROM crypto_olm_message_hash WHERE account_id = 'bot'`,
		`DELETE FROM todevice_account WHERE account_id = 'bot'`,
		`UPDATE todevice_inbox SET state = 'dropped', reason = 'from_before_the_restore', content = '' WHERE account_id = 'bot' AND state = 'pending'`,
		`UPDATE todevice_outbox SET state = 'withdrawn', error = 'the database was restored' WHERE account_id = 'bot' AND state = 'pending'`,
		`UPDATE device SET greet = true WHERE state = 'enrolled'`,
	} {
		if _, err := db.Exec(ctx, statement); err != nil {
			return "", fmt.Errorf("retiring the bot's device: %w", err)
		}
	}
	err = db.QueryRow(ctx, `SELECT device_id FROM bot_device WHERE singleton = 1 FOR UPDATE`).Scan(&old)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("reading the bot's device: %w", err)
	}
	if _, err := db.Exec(ctx, `UPDATE bot_device SET device_id = $1, created_at = $2`, fresh, now); err != nil {
		return "", fmt.Errorf("keeping the bot's new device: %w", err)
	}
	if _, err := db.Exec(ctx, `INSERT INTO retired_bot_device (device_id, retired_at) VALUES ($1, $2)`, old, now); err != nil {
		return "", fmt.Errorf("keeping the bot's retired device: %w", err)
	}
	return old, nil
}

// RetiredBotDevices lists the bot's former devices that the homeserver still has.
func (db *DB) RetiredBotDevices(ctx context.Context) ([]id.DeviceID, error) {
	rows, err := db.Query(ctx, `SELECT device_id FROM retired_bot_device WHERE logged_out_at IS NULL ORDER BY retired_at`)
	if err != nil {
		return nil, fmt.Errorf("reading the bot's retired devices: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var retired []id.DeviceID
	for rows.Next() {
		var device id.DeviceID
		if err := rows.Scan(&device); err != nil {
			return nil, fmt.Errorf("reading the bot's retired devices: %w", err)
		}
		retired = append(retired, device)
	}
	return retired, rows.Err()
}

// RetiredBotLoggedOut records that the homeserver has a retired device no more.
func (db *DB) RetiredBotLoggedOut(ctx context.Context, device id.DeviceID) error {
	if _, err := db.Exec(ctx, `UPDATE retired_bot_device SET logged_out_at = now() WHERE device_id = $1`, device); err != nil {
		return fmt.Errorf("recording that %s is logged out: %w", device, err)
	}
	return nil
}

// JumpSequences raises every sequence to floor, so that the next ones are above any that a lost part of the database
// can have given out.
func (db *DB) JumpSequences(ctx context.Context, floor int64) error {
	if _, err := db.Exec(ctx, `UPDATE sequence_mark SET last = GREATEST(last, $1)`, floor); err != nil {
		return fmt.Errorf("raising the sequences: %w", err)
	}
	return nil
}

// LockWorking locks every rotation a device is at work on, and returns them.
func (db *DB) LockWorking(ctx context.Context) ([]Rotation, error) {
	return db.rotations(ctx, `r.state = 'working' ORDER BY r.id FOR UPDATE`)
}

// Ungreeted lists enrolled devices that do not know the bot's new device yet.
func (db *DB) Ungreeted(ctx context.Context) ([]Device, error) {
	return db.devices(ctx, `greet AND state = 'enrolled' ORDER BY id`)
}

// Greeted records that the word to a device is in the outbox.
func (db *DB) Greeted(ctx context.Context, key uuid.UUID) error {
	if _, err := db.Exec(ctx, `UPDATE device SET greet = false WHERE id = $1`, key); err != nil {
		return fmt.Errorf("recording that device %s was greeted: %w", key, err)
	}
	return nil
}

// LastEvent is the newest event of the audit log: its id, a UUIDv7, and when it was appended. It is zero in an empty log.
func (db *DB) LastEvent(ctx context.Context) (key uuid.UUID, at time.Time, err error) {
	err = db.QueryRow(ctx, `SELECT id FROM audit_event ORDER BY id DESC LIMIT 1`).Scan(&key)
	if errors.Is(err, sql.ErrNoRows) {
		return uuid.Nil, time.Time{}, nil
	} else if err != nil {
		return key, at, fmt.Errorf("reading the newest audit event: %w", err)
	}
	return key, timeOf(key), nil
}

// timeOf is when a UUIDv7 was made, to the millisecond.
func timeOf(key uuid.UUID) time.Time {
	seconds, nanoseconds := key.Time().UnixTime()
	return time.Unix(seconds, nanoseconds).UTC()
}

// HasEvent reports whether the audit log has an event.
func (db *DB) HasEvent(ctx context.Context, key uuid.UUID) (has bool, err error) {
	if err = db.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM audit_event WHERE id = $1)`, key).Scan(&has); err != nil {
		return false, fmt.Errorf("looking for an audit event: %w", err)
	}
	return has, nil
}
