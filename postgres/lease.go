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

// Reconnection bounds of Listen.
const (
	listenMin = time.Second
	listenMax = 30 * time.Second
)

// ErrLeaseLost means that another replica holds the bot now; nothing more may be decrypted, encrypted or sent here.
var ErrLeaseLost = errors.New("another replica holds the bot's lease")

// TakeLease takes the bot's lease if it is free, expired or ours already, and prolongs it. It returns the epoch, which
// grows with every change of holder, and 0 where another replica holds it; taken says that the holder is another than
// before. The database's clock decides. It must run in a transaction.
func (db *DB) TakeLease(ctx context.Context, holder string, life time.Duration) (epoch int64, taken bool, err error) {
	var before string
	err = db.QueryRow(ctx, `SELECT holder FROM bot_lease FOR UPDATE`).Scan(&before)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, false, fmt.Errorf("reading the bot's lease: %w", err)
	}
	err = db.QueryRow(ctx, `
		INSERT INTO bot_lease (singleton, epoch, holder, expires_at) VALUES (1, 1, $1, now() + $2 * interval '1 millisecond')
		ON CONFLICT (singleton) DO UPDATE SET
			epoch = CASE WHEN bot_lease.holder = $1 THEN bot_lease.epoch ELSE bot_lease.epoch + 1 END,
			holder = $1, expires_at = now() + $2 * interval '1 millisecond'
		WHERE bot_lease.holder = $1 OR bot_lease.expires_at < now()
		RETURNING epoch`, holder, life.Milliseconds()).Scan(&epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, fmt.Errorf("taking the bot's lease: %w", err)
	}
	return epoch, before != holder, nil
}

// ReleaseLease lets another replica take over at once; released is false where the holder did not have the lease.
func (db *DB) ReleaseLease(ctx context.Context, holder string) (released bool, err error) {
	result, err := db.Exec(ctx, `UPDATE bot_lease SET expires_at = now() - interval '1 second', holder = '' WHERE holder = $1`, holder)
	if err != nil {
		return false, fmt.Errorf("releasing the bot's lease: %w", err)
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

// ErrWentBack means that the database is older than what was seen of it before: it was restored, and the Olm ratchets
// in it must not be used.
var ErrWentBack = errors.New("the database went back to an earlier state: if it was restored on purpose, run `keyherald restore --reason …`, which gives the bot a new device")

// HoldLease fails the transaction unless the epoch is still ours and the audit log still has the event (none for
// uuid.Nil); it returns the newest event, to be asked for next time. The share lock makes a takeover wait until this
// transaction has ended, so that two replicas never move the same ratchet.
func (db *DB) HoldLease(ctx context.Context, epoch int64, seen uuid.UUID) (newest uuid.UUID, err error) {
	var current int64
	var has bool
	var last uuid.NullUUID
	err = db.QueryRow(ctx, `SELECT epoch, $1 = '00000000-0000-0000-0000-000000000000'::uuid OR EXISTS (SELECT 1 FROM audit_event WHERE id = $1),
		(SELECT id FROM audit_event ORDER BY id DESC LIMIT 1) FROM bot_lease WHERE singleton = 1 FOR SHARE`, seen).Scan(&current, &has, &last)
	switch {
	case err != nil:
		return seen, fmt.Errorf("checking the bot's lease: %w", err)
	case current != epoch:
		return seen, ErrLeaseLost
	case !has:
		return seen, ErrWentBack
	}
	return last.UUID, nil
}

// BotDevice returns the bot's device id, and keeps fresh where there is none yet.
func (db *DB) BotDevice(ctx context.Context, user id.UserID, fresh id.DeviceID) (id.DeviceID, error) {
	_, err := db.Exec(ctx, `INSERT INTO bot_device (singleton, user_id, device_id, created_at) VALUES (1, $1, $2, now()) ON CONFLICT DO NOTHING`, user, fresh)
	if err != nil {
		return "", fmt.Errorf("keeping the bot's device: %w", err)
	}
	var haveUser id.UserID
	var device id.DeviceID
	if err := db.QueryRow(ctx, `SELECT user_id, device_id FROM bot_device WHERE singleton = 1`).Scan(&haveUser, &device); err != nil {
		return "", fmt.Errorf("reading the bot's device: %w", err)
	}
	if haveUser != user {
		return "", fmt.Errorf("the database belongs to the bot %s, and the config names %s: use a database of its own for each bot", haveUser, user)
	}
	return device, nil
}
