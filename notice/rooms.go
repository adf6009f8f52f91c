package notice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/todevice"
)

// audienceKey is the property of m.room.create that says whom a room of the bot's is for. It is there from the room's first
// event, and nobody can change it.
const audienceKey = "io.keyherald.audience"

// A user who left his room is invited again when there is something to say, but not often.
const (
	inviteAgainAfter = 30 * 24 * time.Hour
	mostInvites      = 3
)

// MayInvite reports whether a user who left his room is invited to it once more.
func MayInvite(invites int, last, now time.Time) bool {
	return invites < mostInvites && now.Sub(last) >= inviteAgainAfter
}

// levels are the power levels of every room of the bot's: who made it may do everything, everybody else nothing. The users are
// left to the homeserver, since a creator must not stand among them from room version 12 on.
func levels() map[string]any {
	return map[string]any{"users_default": 0, "events_default": 100, "state_default": 100, "invite": 100, "kick": 100, "ban": 100, "redact": 100,
		"events": map[string]any{}, "notifications": map[string]any{"room": 100}}
}

// ready is the room of an audience, made if it is not there, with its user in it or invited.
func (s *Session) ready(ctx context.Context, audience string) (id.RoomID, error) {
	room, err := s.room(ctx, audience)
	if err != nil {
		return "", err
	}
	user, is := isUser(audience)
	if !is {
		return room.RoomID, nil
	}
	membership, err := s.membership(ctx, room.RoomID, user)
	if err != nil || inside(membership) {
		return room.RoomID, err
	}
	if membership != "" && !MayInvite(room.Invites, room.InvitedAt, s.Now()) {
		return room.RoomID, errUserLeft
	}
	err = s.txn(ctx, func(ctx context.Context) error {
		if err := s.DB.NoticeRoomInvited(ctx, audience, s.Now()); err != nil {
			return err
		}
		return s.about(ctx, audit.RoomInvited, audit.OfUser(user), room.RoomID)
	})
	if err != nil {
		return room.RoomID, err
	}
	return room.RoomID, s.invite(ctx, room.RoomID, user)
}

// room finds the room of an audience, or makes it.
func (s *Session) room(ctx context.Context, audience string) (postgres.NoticeRoom, error) {
	room, err := s.DB.NoticeRoom(ctx, audience)
	if err != nil || room.RoomID != "" {
		return room, err
	}
	if !room.TriedAt.IsZero() {
		if s.Now().Sub(room.TriedAt) < settle {
			return room, errRoomLater
		}
		s.unsure = true
	}
	if s.unsure {
		if err := s.look(ctx); err != nil {
			return room, err
		}
		if room, err = s.DB.NoticeRoom(ctx, audience); err != nil || room.RoomID != "" {
			return room, err
		}
	}
	if !s.rooms.AllowN(s.Now(), 1) {
		return room, errRoomLater
	}
	if err := s.txn(ctx, func(ctx context.Context) error { return s.DB.TryNoticeRoom(ctx, audience, s.Now()) }); err != nil {
		return room, err
	}
	room.RoomID, err = s.make(ctx, audience)
	if err != nil {
		if verdict := todevice.Judge(err, 1); verdict.Pause || !verdict.Again {
			// The homeserver said no, so nothing was made.
			return room, errors.Join(err, s.txn(ctx, func(ctx context.Context) error { return s.DB.TryNoticeRoom(ctx, audience, time.Time{}) }))
		}
		s.unsure = true
		return room, err
	}
	room.Invites, room.InvitedAt = 1, s.Now()
	if err := s.keep(ctx, audience, room.RoomID, false); err != nil {
		s.unsure = true
		return room, err
	}
	return room, nil
}

// make asks for the room of an audience: private, for its people alone, on this homeserver alone where they are of it.
// It is not encrypted, since the bot does no Megolm: docs/notices.md says what that means.
func (s *Session) make(ctx context.Context, audience string) (id.RoomID, error) {
	creation := map[string]any{audienceKey: audience, "m.federate": false}
	request := map[string]any{"visibility": "private", "preset": "private_chat", "power_level_content_override": levels(), "creation_content": creation,
		"name": "Keyherald for admins", "topic": "How Keyherald stands. Nobody can write here, and there are no commands."}
	if user, is := isUser(audience); is {
		request["name"], request["topic"] = "Keyherald", "Notices about the key of your message backup. Nobody can write here, and Keyherald never asks for a key, a password or a code."
		request["invite"], request["is_direct"] = []id.UserID{user}, true
		creation["m.federate"] = user.Homeserver() != s.Bot.Homeserver()
	}
	var made struct {
		RoomID id.RoomID `json:"room_id"`
	}
	if _, err := s.client.MakeRequest(ctx, http.MethodPost, s.client.BuildClientURL("v3", "createRoom"), request, &made); err != nil {
		return "", fmt.Errorf("making a room: %w", err)
	}
	return made.RoomID, nil
}

// keep records the room of an audience; found is whether it had been made before.
func (s *Session) keep(ctx context.Context, audience string, room id.RoomID, found bool) error {
	return s.txn(ctx, func(ctx context.Context) error {
		set, err := s.DB.SetNoticeRoom(ctx, audience, room, s.Now())
		if err != nil || !set {
			return err
		}
		return s.about(ctx, audit.RoomCreated, subjectOf(audience), room, audit.Flag("found", found))
	})
}

func (s *Session) about(ctx context.Context, action audit.Action, subject audit.Subject, room id.RoomID, fields ...audit.Field) error {
	return s.DB.Append(ctx, audit.Event{Time: s.Now(), Actor: audit.ByRelay(), Action: action, Subject: subject, Outcome: audit.Accepted,
		Detail: append(audit.Detail{audit.ID("room", room)}, fields...)})
}

// look finds rooms of the bot's that no row has. The bot joins no room that it did not make, so there are few.
func (s *Session) look(ctx context.Context) error {
	joined, err := s.client.JoinedRooms(ctx)
	if err != nil {
		return fmt.Errorf("listing the bot's rooms: %w", err)
	}
	known, err := s.DB.NoticeRoomIDs(ctx)
	if err != nil {
		return err
	}
	for _, room := range joined.JoinedRooms {
		if known[room] {
			continue
		}
		var create map[string]any
		if err := s.client.StateEvent(ctx, room, event.StateCreate, "", &create); err != nil {
			return fmt.Errorf("reading whom a room is for: %w", err)
		}
		audience, ok := create[audienceKey].(string)
		if !ok {
			continue
		}
		// The homeserver may have ended in the middle of making it, and then people could write in it.
		if err := s.secure(ctx, room); err != nil {
			return err
		}
		if err := s.keep(ctx, audience, room, true); err != nil {
			return err
		}
	}
	s.unsure = false
	return nil
}

// secure gives a room the power levels that it was to have.
func (s *Session) secure(ctx context.Context, room id.RoomID) error {
	have := map[string]any{}
	err := s.client.StateEvent(ctx, room, event.StatePowerLevels, "", &have)
	if err != nil && !errors.Is(err, mautrix.MNotFound) {
		return fmt.Errorf("reading the power levels of a room: %w", err)
	}
	maps.Copy(have, levels())
	if _, err := s.client.SendStateEvent(ctx, room, event.StatePowerLevels, "", have); err != nil {
		return fmt.Errorf("setting the power levels of a room: %w", err)
	}
	return nil
}

// membership is a user's in a room; empty where he never was in it.
func (s *Session) membership(ctx context.Context, room id.RoomID, user id.UserID) (event.Membership, error) {
	var member struct {
		Membership event.Membership `json:"membership"`
	}
	err := s.client.StateEvent(ctx, room, event.StateMember, user.String(), &member)
	if errors.Is(err, mautrix.MNotFound) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("looking whether the user is in his room: %w", err)
	}
	return member.Membership, nil
}

func (s *Session) invite(ctx context.Context, room id.RoomID, user id.UserID) error {
	if _, err := s.client.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: user}); err != nil {
		return fmt.Errorf("inviting somebody to a room: %w", err)
	}
	return nil
}

// admit makes the members of the admin room those of the configuration, once a lease: who left by himself stays away until
// the configuration has left him out in between.
func (s *Session) admit(ctx context.Context) error {
	if len(s.Admins) == 0 || s.admitted || s.Now().Before(s.admitAgain) {
		return nil
	}
	s.admitAgain = s.Now().Add(time.Minute)
	room, err := s.room(ctx, postgres.AudienceAdmins)
	if errors.Is(err, errRoomLater) {
		return nil
	} else if err != nil {
		return err
	}
	members, err := s.members(ctx, room.RoomID)
	if err != nil {
		return err
	}
	if err := s.txn(ctx, func(ctx context.Context) error { return s.DB.KeepAdmins(ctx, s.Admins) }); err != nil {
		return err
	}
	var failed error
	for _, user := range s.Admins {
		failed = errors.Join(failed, s.admitOne(ctx, room.RoomID, user, members[user]))
	}
	for _, user := range slices.Sorted(maps.Keys(members)) {
		if user != s.Bot && !slices.Contains(s.Admins, user) && inside(members[user]) {
			failed = errors.Join(failed, s.remove(ctx, room.RoomID, user))
		}
	}
	s.admitted = failed == nil
	return failed
}

func inside(m event.Membership) bool { return m == event.MembershipJoin || m == event.MembershipInvite }

func (s *Session) admitOne(ctx context.Context, room id.RoomID, user id.UserID, is event.Membership) error {
	fresh := false
	err := s.txn(ctx, func(ctx context.Context) (err error) {
		if fresh, err = s.DB.InvitedAdmin(ctx, user, s.Now()); err != nil || !fresh || inside(is) {
			return err
		}
		return s.about(ctx, audit.RoomInvited, audit.OfUser(user), room)
	})
	// An invitation that was recorded may not have come to the homeserver; then he was never in the room.
	if err != nil || inside(is) || (!fresh && is != "") {
		return err
	}
	return s.invite(ctx, room, user)
}

func (s *Session) remove(ctx context.Context, room id.RoomID, user id.UserID) error {
	err := s.txn(ctx, func(ctx context.Context) error {
		return s.about(ctx, audit.RoomMemberRemoved, audit.OfUser(user), room)
	})
	if err != nil {
		return err
	}
	if _, err := s.client.KickUser(ctx, room, &mautrix.ReqKickUser{UserID: user}); err != nil {
		return fmt.Errorf("removing somebody from the admin room: %w", err)
	}
	return nil
}

func (s *Session) members(ctx context.Context, room id.RoomID) (map[id.UserID]event.Membership, error) {
	var answer struct {
		Chunk []struct {
			StateKey id.UserID `json:"state_key"`
			Content  struct {
				Membership event.Membership `json:"membership"`
			} `json:"content"`
		} `json:"chunk"`
	}
	if _, err := s.client.MakeRequest(ctx, http.MethodGet, s.client.BuildClientURL("v3", "rooms", room, "members"), nil, &answer); err != nil {
		return nil, fmt.Errorf("reading who is in the admin room: %w", err)
	}
	members := map[id.UserID]event.Membership{}
	for _, m := range answer.Chunk {
		members[m.StateKey] = m.Content.Membership
	}
	return members, nil
}
