package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
)

// maxCodes is how many codes are made at once.
const maxCodes = 100_000

// maxCodeLife is how long a code lives at most.
const maxCodeLife = 30 * 24 * time.Hour

// UserCode is a new code and whose it is.
type UserCode struct {
	UserID    id.UserID
	Code      protocol.Code
	ExpiresAt time.Time
}

// NewCode makes a one-time enrollment code for a user. Only its hash is kept; the caller shows it to the admin once.
func (e *Engine) NewCode(ctx context.Context, user id.UserID, life time.Duration, actor audit.Actor) (protocol.Code, error) {
	var code protocol.Code
	event := audit.Event{Actor: actor, Action: audit.CodeCreated, Subject: audit.OfUser(user), Outcome: audit.Accepted}
	err := refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		codes, events, err := e.makeCodes(ctx, []id.UserID{user}, life, actor)
		if err != nil {
			return err
		}
		code, event = codes[0].Code, events[0]
		return e.db.Append(ctx, events...)
	})
	if err != nil {
		return protocol.Code{}, err
	}
	return code, nil
}

// NewCodes makes a code for each of these users, all or none.
func (e *Engine) NewCodes(ctx context.Context, users []id.UserID, life time.Duration, actor audit.Actor) ([]UserCode, error) {
	var codes []UserCode
	event := audit.Event{Actor: actor, Action: audit.CodeCreated, Subject: audit.OfUsers(), Outcome: audit.Accepted}
	err := refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		if err := countCodes(len(users)); err != nil {
			return err
		}
		var events []audit.Event
		var err error
		if codes, events, err = e.makeCodes(ctx, users, life, actor); err != nil {
			return err
		}
		return e.db.Append(ctx, events...)
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

func countCodes(n int) error {
	if n == 0 || n > maxCodes {
		return refusal.New(refusal.Invalid, audit.RefusedBounds, "codes are made for 1 to %d users at once, and not for %d", maxCodes, n)
	}
	return nil
}

// CodeHash is a code that somebody else made, of which the server gets to know nothing but this.
type CodeHash struct {
	UserID id.UserID
	SHA256 [32]byte
}

// KeepCodes takes codes that somebody made himself and holds already, all or none; protocol.NewCode says how they are made.
// Where they are all there already it is refused (conflict), which for whoever asks again means that it was done.
func (e *Engine) KeepCodes(ctx context.Context, codes []CodeHash, expires time.Time, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: audit.CodeCreated, Subject: audit.OfUsers(), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		if err := countCodes(len(codes)); err != nil {
			return err
		}
		now := e.now()
		if life := expires.Sub(now); life <= 0 || life > maxCodeLife {
			return refusal.New(refusal.Invalid, audit.RefusedLife, "an enrollment code lives between a moment and 30 days, and not %s", life.Round(time.Second))
		}
		hashes, rows := make([][32]byte, len(codes)), make([]postgres.Code, len(codes))
		seen := make(map[[32]byte]bool, len(codes))
		for i, c := range codes {
			if _, _, err := c.UserID.Parse(); err != nil {
				return refusal.New(refusal.Invalid, audit.RefusedNoUserID, "%q is not a Matrix user id (@name:server): %w", c.UserID, err)
			}
			if seen[c.SHA256] {
				return refusal.New(refusal.Invalid, audit.RefusedBounds, "one code is there twice")
			}
			key, err := uuid.NewV7()
			if err != nil {
				return fmt.Errorf("making a code's id: %w", err)
			}
			hashes[i], seen[c.SHA256] = c.SHA256, true
			rows[i] = postgres.Code{ID: key, UserID: c.UserID, SHA256: c.SHA256, CreatedAt: now, CreatedBy: actor.String(), ExpiresAt: expires}
		}
		if there, err := e.db.CountCodes(ctx, hashes); err != nil {
			return err
		} else if there > 0 {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "%d of these %d codes are there already", there, len(codes))
		}
		if err := e.db.PutCodes(ctx, rows); err != nil {
			return err
		}
		return e.db.Append(ctx, codeEvents(rows, now, actor)...)
	})
}

// codeEvents tell of new codes, by their numbers.
func codeEvents(rows []postgres.Code, now time.Time, actor audit.Actor) []audit.Event {
	events := make([]audit.Event, len(rows))
	for i, row := range rows {
		events[i] = audit.Event{Time: now, Actor: actor, Action: audit.CodeCreated, Subject: audit.OfUser(row.UserID), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("code", row.ID), audit.Time("expires_at", row.ExpiresAt)}}
	}
	return events
}

// Bot is whom devices pin when they enroll: the bot and its master key, from its own file and never from the homeserver.
func (e *Engine) Bot() (id.UserID, id.Ed25519) { return e.bot, e.masterKey }

func (e *Engine) makeCodes(ctx context.Context, users []id.UserID, life time.Duration, actor audit.Actor) ([]UserCode, []audit.Event, error) {
	if life <= 0 || life > maxCodeLife {
		return nil, nil, refusal.New(refusal.Invalid, audit.RefusedLife, "an enrollment code lives between a moment and 30 days, and not %s", life)
	}
	now := e.now()
	codes, rows := make([]UserCode, len(users)), make([]postgres.Code, len(users))
	for i, user := range users {
		if _, _, err := user.Parse(); err != nil {
			return nil, nil, refusal.New(refusal.Invalid, audit.RefusedNoUserID, "%q is not a Matrix user id (@name:server): %w", user, err)
		}
		key, err := uuid.NewV7()
		if err != nil {
			return nil, nil, fmt.Errorf("making a code's id: %w", err)
		}
		code, err := protocol.NewCode(e.bot, e.masterKey)
		if err != nil {
			return nil, nil, err
		}
		codes[i] = UserCode{user, code, now.Add(life)}
		rows[i] = postgres.Code{ID: key, UserID: user, SHA256: code.Hash(), CreatedAt: now, CreatedBy: actor.String(), ExpiresAt: codes[i].ExpiresAt}
	}
	return codes, codeEvents(rows, now, actor), e.db.PutCodes(ctx, rows)
}
