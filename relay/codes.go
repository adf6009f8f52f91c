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

// NewCodes makes a code for each of these users, all or none. keep is called before they count, with all of them, for a
// caller that must not lose them: what it writes is there when they do, and where it fails none is made. It is called at
// most once, and may take a while; nil keeps nothing.
func (e *Engine) NewCodes(ctx context.Context, users []id.UserID, life time.Duration, actor audit.Actor, keep func([]UserCode) error) ([]UserCode, error) {
	var codes []UserCode
	event := audit.Event{Actor: actor, Action: audit.CodeCreated, Subject: audit.OfUsers(), Outcome: audit.Accepted}
	err := refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		if len(users) == 0 || len(users) > maxCodes {
			return refusal.New(refusal.Invalid, audit.RefusedBounds, "codes are made for 1 to %d users at once, and not for %d", maxCodes, len(users))
		}
		var events []audit.Event
		var err error
		if codes, events, err = e.makeCodes(ctx, users, life, actor); err != nil {
			return err
		}
		if err := e.db.Append(ctx, events...); err != nil {
			return err
		}
		if keep == nil {
			return nil
		}
		return keep(codes)
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

func (e *Engine) makeCodes(ctx context.Context, users []id.UserID, life time.Duration, actor audit.Actor) ([]UserCode, []audit.Event, error) {
	if life <= 0 || life > maxCodeLife {
		return nil, nil, refusal.New(refusal.Invalid, audit.RefusedLife, "an enrollment code lives between a moment and 30 days, and not %s", life)
	}
	now := e.now()
	codes, events, rows := make([]UserCode, len(users)), make([]audit.Event, len(users)), make([]postgres.Code, len(users))
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
		events[i] = audit.Event{Time: now, Actor: actor, Action: audit.CodeCreated, Subject: audit.OfUser(user), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("code", key), audit.Time("expires_at", codes[i].ExpiresAt)}}
	}
	return codes, events, e.db.PutCodes(ctx, rows)
}
