// Package notice is what the bot says in Matrix rooms: to a user what became of his key, one room a user, and to admins how
// things stand, in one room for all of them. Nobody but the bot can write there, and it reads nothing that somebody wrote:
// the homeserver's token could forge it.
//
// What is to be said is decided from rows and kept as a row, with its audit event in the same transaction (the texts are made
// by pure rules, ForUser and Digest); whoever holds the bot sends it after the commit, under the notice's own transaction id.
// Making a room cannot be repeated in Matrix, so each carries in its m.room.create whom it is for, and whoever does not know
// what came of a request looks among the bot's rooms first.
package notice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
)

// DefaultRoomsPerMinute is how many rooms are made in a minute where the configuration says nothing.
const DefaultRoomsPerMinute = 10

// Config is what Notices stand on. Send is when users are told, and Admins are who is in the admin room; there is none where
// Admins is empty. Sealed says that the audit log is to be signed.
type Config struct {
	DB             *postgres.DB
	Bot            id.UserID
	Send           Send
	Admins         []id.UserID
	RoomsPerMinute int
	Sealed         bool
	Now            func() time.Time
	Log            zerolog.Logger
}

// Notices say things in rooms, through the Session of whoever holds the bot.
type Notices struct {
	Config
	rooms *rate.Limiter
	wake  chan struct{}
}

// New makes Notices.
func New(config Config) (*Notices, error) {
	if config.DB == nil || config.Bot == "" {
		return nil, errors.New("notice: a database and the bot's user id are needed")
	}
	if config.Send == "" {
		config.Send = SendOnProblem
	}
	if !config.Send.Valid() {
		return nil, fmt.Errorf("notice: %q is no choice: write never, on_problem or always", string(config.Send))
	}
	if config.RoomsPerMinute == 0 {
		config.RoomsPerMinute = DefaultRoomsPerMinute
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Notices{Config: config, rooms: rate.NewLimiter(rate.Limit(float64(config.RoomsPerMinute)/60), config.RoomsPerMinute), wake: make(chan struct{}, 1)}, nil
}

// Wake says that something may be to be said. It never blocks, and wakes nobody where there are no Notices.
func (n *Notices) Wake() {
	if n == nil {
		return
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// TellAdmins keeps a text for the admin room in the transaction of what it tells of, or does nothing where there is no such
// room. Key names it for good: what was told under it is not told again.
func (n *Notices) TellAdmins(ctx context.Context, key string, about audit.NoticeAbout, text Text) error {
	if n == nil || len(n.Admins) == 0 {
		return nil
	}
	_, err := n.put(ctx, "admins/"+key, postgres.AudienceAdmins, uuid.Nil, about, text)
	return err
}

// put keeps a notice and its audit event.
func (n *Notices) put(ctx context.Context, key, audience string, rotation uuid.UUID, about audit.NoticeAbout, text Text) (fresh bool, err error) {
	notice, err := uuid.NewV7()
	if err != nil {
		return false, fmt.Errorf("naming a notice: %w", err)
	}
	now := n.Now()
	err = n.DB.Txn(ctx, func(ctx context.Context) error {
		fresh, err = n.DB.PutNotice(ctx, postgres.Notice{ID: notice, Key: key, Audience: audience, Rotation: rotation, Plain: text.Plain(), HTML: text.HTML(), CreatedAt: now})
		if err != nil || !fresh {
			return err
		}
		return n.DB.Append(ctx, audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.NoticeQueued, Subject: subjectOf(audience), Rotation: rotation,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.ID("notice", notice), audit.Word("about", about)}})
	})
	return fresh, err
}

func subjectOf(audience string) audit.Subject {
	if audience == postgres.AudienceAdmins {
		return audit.OfAdmins()
	}
	return audit.OfUser(id.UserID(audience))
}

// Session is Notices while this replica holds the bot.
type Session struct {
	*Notices
	client *mautrix.Client
	// fence fails the transaction of whoever does not hold the bot any more.
	fence func(ctx context.Context) error

	// unsure is set while a room of the bot's may be there that no row has: at the beginning, since the database may have been
	// restored or the former holder ended in the middle of something, and when a request to make one had no clear answer.
	unsure bool
	// admitted is set when the members of the admin room are those of the configuration.
	admitted   bool
	admitAgain time.Time
	// frozen and counted are who had stopped all triggers when things were looked at for the admin room, and when that was.
	frozen  string
	counted time.Time
	// pausedUntil is when the homeserver takes requests again.
	pausedUntil time.Time
}

// Session binds Notices to the client of the bot's device, and to the fence of its lease.
func (n *Notices) Session(client *mautrix.Client, fence func(ctx context.Context) error) *Session {
	return &Session{Notices: n, client: client, fence: fence, unsure: true}
}

// txn runs fn in a transaction that fails where another replica holds the bot by now.
func (s *Session) txn(ctx context.Context, fn func(ctx context.Context) error) error {
	return s.DB.Txn(ctx, func(ctx context.Context) error {
		if err := s.fence(ctx); err != nil {
			return err
		}
		return fn(ctx)
	})
}
