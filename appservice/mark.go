package appservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/postgres"
)

// markType is the bot's account data that remembers, outside the database, how far the database was.
const markType = "io.keyherald.mark"

// markInterval is how often the mark is written, so that a restore to a moment before the last one is noticed.
const markInterval = time.Minute

type mark struct {
	Device id.DeviceID `json:"device_id"`
	Event  uuid.UUID   `json:"audit_event"`
}

// checkMark refuses a database that does not have the event which this device of the bot last marked, in its account
// data or in this process. A restore that was declared gave the bot another device, so that older marks are void.
func (b *Bot) checkMark(ctx context.Context, client *mautrix.Client) error {
	var written mark
	if err := client.GetAccountData(ctx, markType, &written); err != nil && !errors.Is(err, mautrix.MNotFound) {
		return fmt.Errorf("reading the bot's mark: %w", err)
	}
	for _, m := range []mark{written, b.lastMark()} {
		if m.Device != client.DeviceID {
			continue
		}
		if err := b.has(ctx, m.Event); errors.Is(err, postgres.ErrWentBack) {
			// What only this process saw, the other replicas must know as well.
			return errors.Join(err, client.SetAccountData(ctx, markType, m))
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (b *Bot) has(ctx context.Context, event uuid.UUID) error {
	if event == uuid.Nil {
		return nil
	}
	has, err := b.config.DB.HasEvent(ctx, event)
	if err == nil && !has {
		err = postgres.ErrWentBack
	}
	return err
}

func (b *Bot) lastMark() mark {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mark
}

func (b *Bot) setMark(m mark) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark = m
}

// fence is the first thing in every Olm transaction: it ends it unless the lease is ours and the database still has
// what the last such transaction saw. Olm transactions of a process run one after the other.
func (b *Bot) fence(ctx context.Context, epoch int64) error {
	m := b.lastMark()
	newest, err := b.config.DB.HoldLease(ctx, epoch, m.Event)
	if err == nil {
		b.setMark(mark{m.Device, newest})
	}
	return err
}

// remember writes the mark now and then, while the log grows.
func (b *Bot) remember(ctx context.Context, client *mautrix.Client) {
	var written mark
	loop.Repeat(ctx, nil, markInterval, func() {
		m := b.lastMark()
		if m == written {
			return
		}
		if err := client.SetAccountData(ctx, markType, m); err == nil {
			written = m
		} else if ctx.Err() == nil {
			b.config.Log.Warn().Err(err).Msg("The bot's mark could not be written yet")
		}
	})
}

// logOutRetired logs the bot's former devices out, so that nobody encrypts to them.
func (b *Bot) logOutRetired(ctx context.Context, current *mautrix.Client) error {
	retired, err := b.config.DB.RetiredBotDevices(ctx)
	if err != nil {
		return err
	}
	for _, device := range retired {
		if err := b.logOut(ctx, current, device); err != nil {
			return fmt.Errorf("logging the bot's retired device %s out: %w", device, err)
		}
		err = b.config.DB.Txn(ctx, func(ctx context.Context) error {
			if err := b.config.DB.RetiredBotLoggedOut(ctx, device); err != nil {
				return err
			}
			return b.tell(ctx, audit.BotDeviceLoggedOut, audit.ID("device", device))
		})
		if err != nil {
			return err
		}
	}
	return nil
}
