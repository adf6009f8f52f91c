// Package relay is the server's engine: it turns an accepted notification into a rotation, a rotation into a trigger
// for an enrolled device, and the device's reports into the rotation's state, one transaction per step, each with its
// audit event. Rows are the truth: every step locks its row and looks again, and Work finds what is due in them.
package relay

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// WorkChannel is the NOTIFY channel that says a rotation may be due.
const WorkChannel = "keyherald_work"

// MovedChannel is the NOTIFY channel that says which rotations devices' reports changed, for who watches them: the payload is
// for Moved. The bot has nothing to do for it.
const MovedChannel = "keyherald_moved"

// maxMoved is how many rotations a payload of MovedChannel names: PostgreSQL takes 8,000 bytes.
const maxMoved = 200

// Moved are the rotations that a payload of MovedChannel names; none is all of them.
func Moved(payload string) (rotations []uuid.UUID) {
	for name := range strings.FieldsSeq(payload) {
		if key, err := uuid.Parse(name); err == nil {
			rotations = append(rotations, key)
		}
	}
	return rotations
}

// Config is what an Engine stands on. BotMasterKey comes from the identity file, never from the homeserver.
type Config struct {
	DB           *postgres.DB
	BotUserID    id.UserID
	BotMasterKey id.Ed25519
	// AckTimeout is how long a device may take to accept a trigger before another one is tried; default rotation.AckTimeout.
	AckTimeout time.Duration
	// Storm is beyond how many changed users rotations are held; default rotation.DefaultStormLimit.
	Storm rotation.StormLimit
	// Sealed says that the audit log is to be signed: where it is not for a day, new rotations wait.
	Sealed bool
	// Proofs are what grants may name, by their names; nil where none is configured.
	Proofs map[string]*enrollment.Verifier
	// Restored, where it is there, is told in the transaction in which a restore is declared.
	Restored func(ctx context.Context, r Restored) error
	Now      func() time.Time
	Log      zerolog.Logger
}

// Engine holds no state of its own.
type Engine struct {
	db         *postgres.DB
	bot        id.UserID
	masterKey  id.Ed25519
	ackTimeout time.Duration
	storm      rotation.StormLimit
	sealed     bool
	proofs     map[string]*enrollment.Verifier
	restored   func(ctx context.Context, r Restored) error
	now        func() time.Time
	log        zerolog.Logger
}

// New makes an Engine.
func New(config Config) (*Engine, error) {
	if config.DB == nil || config.BotUserID == "" || config.BotMasterKey == "" {
		return nil, errors.New("relay: database, bot user id and bot master key are needed")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.AckTimeout == 0 {
		config.AckTimeout = rotation.AckTimeout
	}
	if config.Storm == (rotation.StormLimit{}) {
		config.Storm = rotation.DefaultStormLimit()
	}
	return &Engine{db: config.DB, bot: config.BotUserID, masterKey: config.BotMasterKey, ackTimeout: config.AckTimeout, storm: config.Storm, sealed: config.Sealed, proofs: config.Proofs, restored: config.Restored, now: config.Now, log: config.Log}, nil
}

func (e *Engine) end(ctx context.Context, r postgres.Rotation, action audit.Action, actor audit.Actor, fields ...audit.Field) error {
	now := e.now()
	if err := e.db.UpdateRotation(ctx, r, now); err != nil {
		return err
	}
	return e.db.Append(ctx, audit.Event{Time: now, Actor: actor, Action: action, Subject: audit.OfUser(r.UserID), Rotation: r.ID,
		Outcome: audit.Accepted, Detail: append(audit.Detail{audit.Word("state", r.Facts.State)}, fields...)})
}

// Sweep ends what has timed out and wakes the holder of the bot for what is due. It may run on any replica, any time.
func (e *Engine) Sweep(ctx context.Context) error {
	open, err := e.db.Rotations(ctx, "", true)
	if err != nil {
		return err
	}
	for _, candidate := range open {
		if e.now().Sub(candidate.CreatedAt) < rotation.Timeout {
			continue
		}
		err := e.db.Txn(ctx, func(ctx context.Context) error {
			r, ok, err := e.db.LockRotation(ctx, candidate.ID)
			if err != nil || !ok || r.Facts.State.Ended() {
				return err
			}
			r.Facts.State = rotation.TimedOut
			return e.end(ctx, r, audit.RotationTimedOut, audit.ByRelay())
		})
		if err != nil {
			return err
		}
	}
	if len(open) == 0 {
		return nil
	}
	if err := e.releaseSigned(ctx); err != nil {
		return err
	}
	return e.db.Notify(ctx, WorkChannel, "")
}
