package notice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/todevice"
)

const (
	// marker is the property of a message that has the notice's id.
	marker = "io.keyherald.notice"
	// settle is how long a request may go on at the homeserver whose answer nobody heard, until what it was about is looked for
	// and begun again.
	settle = 30 * time.Second
	// lookBack is how many messages of a room are looked at for one that was sent already.
	lookBack = 100
)

var (
	// errPaused ends a delivery: others would fare no better now.
	errPaused = errors.New("the homeserver takes nothing now")
	// errRoomLater means that the room of a notice is not there yet.
	errRoomLater = errors.New("the room is made later")
	errUserLeft  = errors.New("the user left the room")
)

// paused keeps in mind that the homeserver asked for a pause.
func (s *Session) paused(err error) error {
	if verdict := todevice.Judge(err, 1); verdict.Pause {
		s.pausedUntil = s.Now().Add(verdict.Wait)
		return errors.Join(errPaused, err)
	}
	return err
}

// deliver sends the notices that are due.
func (s *Session) deliver(ctx context.Context) error {
	if s.Now().Before(s.pausedUntil) {
		return nil
	}
	failed := s.paused(s.admit(ctx))
	if errors.Is(failed, errPaused) {
		return failed
	}
	due, err := s.DB.DueNotices(ctx, s.Now(), 200)
	if err != nil {
		return errors.Join(failed, err)
	}
	for _, n := range due {
		err := s.deliverOne(ctx, n)
		if errors.Is(err, errPaused) || ctx.Err() != nil {
			return errors.Join(failed, err)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

func (s *Session) deliverOne(ctx context.Context, n postgres.Notice) error {
	if s.Now().Sub(n.CreatedAt) > tooLate {
		return s.end(ctx, n, "", audit.RefusedTooLate, "it is more than a day old")
	}
	room, err := s.ready(ctx, n.Audience)
	switch {
	case errors.Is(err, errRoomLater):
		return nil
	case errors.Is(err, errUserLeft):
		return s.end(ctx, n, room, audit.RefusedUserLeft, err.Error())
	case err != nil:
		return s.hold(ctx, n, fmt.Errorf("preparing the room of a notice: %w", err))
	}
	sent := false
	if n.Tries > 0 {
		// It was begun before, and nobody knows what came of that. The homeserver remembers transaction ids for a while only,
		// and not of a device that logged in again.
		if sent, err = s.sentBefore(ctx, room, n.ID); err != nil {
			return s.hold(ctx, n, err)
		}
	}
	if !sent {
		if err := s.txn(ctx, func(ctx context.Context) error { return s.DB.TryNotice(ctx, n.ID, s.Now().Add(settle)) }); err != nil {
			return err
		}
		n.Tries++
		if err := s.send(ctx, room, n); err != nil {
			verdict := todevice.Judge(err, n.Tries)
			if !verdict.Again {
				return s.end(ctx, n, room, audit.RefusedByHomeserver, verdict.Refusal)
			}
			return s.hold(ctx, n, err)
		}
	}
	return s.end(ctx, n, room, "", "")
}

// content is a notice as an event (client-server API, "m.room.message"). The empty m.mentions says that it mentions nobody,
// whatever a client finds in the text.
type content struct {
	MsgType       event.MessageType `json:"msgtype"`
	Body          string            `json:"body"`
	Format        event.Format      `json:"format"`
	FormattedBody string            `json:"formatted_body"`
	Mentions      struct{}          `json:"m.mentions"`
	Notice        uuid.UUID         `json:"io.keyherald.notice"`
}

func (s *Session) send(ctx context.Context, room id.RoomID, n postgres.Notice) error {
	message := content{MsgType: event.MsgNotice, Body: n.Plain, Format: event.FormatHTML, FormattedBody: n.HTML, Notice: n.ID}
	url := s.client.BuildClientURL("v3", "rooms", room, "send", event.EventMessage.Type, n.ID.String())
	if _, err := s.client.MakeRequest(ctx, http.MethodPut, url, message, nil); err != nil {
		return fmt.Errorf("sending a notice: %w", err)
	}
	return nil
}

// sentBefore looks for a notice among the bot's own messages.
func (s *Session) sentBefore(ctx context.Context, room id.RoomID, notice uuid.UUID) (bool, error) {
	url := s.client.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "rooms", room, "messages"}, map[string]string{"dir": "b", "limit": number(lookBack)})
	var page struct {
		Chunk []struct {
			Sender  id.UserID      `json:"sender"`
			Content map[string]any `json:"content"`
		} `json:"chunk"`
	}
	if _, err := s.client.MakeRequest(ctx, http.MethodGet, url, nil, &page); err != nil {
		return false, fmt.Errorf("looking whether a notice was sent: %w", err)
	}
	for _, e := range page.Chunk {
		if e.Sender == s.Bot && e.Content[marker] == notice.String() {
			return true, nil
		}
	}
	return false, nil
}

// hold leaves a notice for later. A pause that the homeserver asked for is one of all notices.
func (s *Session) hold(ctx context.Context, n postgres.Notice, problem error) error {
	verdict := todevice.Judge(problem, n.Tries+1)
	wait := max(verdict.Wait, time.Second)
	if !verdict.Again {
		// About the room and not the notice: it is tried again until it is too late.
		wait = time.Minute
	}
	if n.Tries > 0 && !verdict.Pause {
		wait = max(wait, settle)
	}
	problem = s.paused(problem)
	err := s.txn(ctx, func(ctx context.Context) error {
		return s.DB.HoldNotice(ctx, n.ID, s.Now().Add(wait), problem.Error())
	})
	return errors.Join(problem, err)
}

// end records that a notice is sent, or why it never will be.
func (s *Session) end(ctx context.Context, n postgres.Notice, room id.RoomID, refusal audit.Refusal, problem string) error {
	return s.txn(ctx, func(ctx context.Context) error {
		now := s.Now()
		ended, err := s.DB.EndNotice(ctx, n.ID, problem, now)
		if err != nil || !ended {
			return err
		}
		e := audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.NoticeSent, Subject: subjectOf(n.Audience), Rotation: n.Rotation, Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("notice", n.ID)}}
		if room != "" {
			e.Detail = append(e.Detail, audit.ID("room", room))
		}
		if refusal != "" {
			e.Outcome, e.Detail = audit.Refused, append(e.Detail, audit.Word("refusal", refusal))
		}
		return s.DB.Append(ctx, e)
	})
}
