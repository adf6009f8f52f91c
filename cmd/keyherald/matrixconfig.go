package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/notice"
	"github.com/keyherald/keyherald/postgres"
)

// matrixConfig is what the bot says in Matrix rooms, where it reads nothing (docs/notices.md).
type matrixConfig struct {
	AdminRoom adminRoomConfig `yaml:"admin_room"`
	Notices   noticesConfig   `yaml:"notices"`
}

// adminRoomConfig is the room where admins are told how things stand; there is none where nobody is invited.
type adminRoomConfig struct {
	Invite []id.UserID `yaml:"invite"`
}

// noticesConfig is when a user is told what became of his key.
type noticesConfig struct {
	Send           notice.Send `yaml:"send"`
	RoomsPerMinute int         `yaml:"rooms_per_minute"`
}

func defaultMatrix() matrixConfig {
	return matrixConfig{Notices: noticesConfig{Send: notice.SendOnProblem, RoomsPerMinute: notice.DefaultRoomsPerMinute}}
}

// validate returns errors that begin with the key they are about. The admin room is of the homeserver alone, so nobody else
// can be in it.
func (m matrixConfig) validate(bot id.UserID) error {
	if !m.Notices.Send.Valid() {
		return fmt.Errorf("matrix.notices.send is %q: write never, on_problem or always", string(m.Notices.Send))
	}
	if m.Notices.RoomsPerMinute < 1 || m.Notices.RoomsPerMinute > 600 {
		return fmt.Errorf("matrix.notices.rooms_per_minute is %d: write between 1 and 600", m.Notices.RoomsPerMinute)
	}
	for i, user := range m.AdminRoom.Invite {
		if _, server, err := user.Parse(); err != nil || server != bot.Homeserver() {
			return fmt.Errorf("matrix.admin_room.invite has %q: write users of the bot's own homeserver, such as @admin:%s", user, bot.Homeserver())
		}
		if user == bot || slices.Contains(m.AdminRoom.Invite[:i], user) {
			return fmt.Errorf("matrix.admin_room.invite has %q, who is the bot or is there twice", user)
		}
	}
	return nil
}

// newNotices makes what the bot says; nil where it is to say nothing.
func newNotices(c config, db *postgres.DB, log zerolog.Logger) (*notice.Notices, error) {
	if c.Matrix.Notices.Send == notice.SendNever && len(c.Matrix.AdminRoom.Invite) == 0 {
		return nil, nil
	}
	return notice.New(notice.Config{DB: db, Bot: c.Bot.UserID, Send: c.Matrix.Notices.Send, Admins: c.Matrix.AdminRoom.Invite,
		RoomsPerMinute: c.Matrix.Notices.RoomsPerMinute, Sealed: c.Audit.on(), Log: log})
}

// tellCampaign has the admin room told, in the caller's transaction, that a campaign goes on no more by itself. A campaign
// may be paused more than once: the key names the time.
func tellCampaign(ctx context.Context, notices *notice.Notices, c postgres.Campaign, all campaign.Counts) error {
	at := c.EndedAt
	if at.IsZero() {
		at = c.PausedAt
	}
	return notices.TellAdmins(ctx, fmt.Sprintf("campaign/%s/%s/%d", c.ID, c.State, at.UnixMilli()), audit.NoticeCampaign, notice.CampaignMoved(notice.Campaign{
		ID: c.ID.String(), State: string(c.State), Why: c.StateCause, Reason: c.Parameters.Reason, Done: all.Done, Failing: all.Failing(), UnderWay: all.UnderWay()}))
}
