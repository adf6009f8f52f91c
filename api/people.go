package api

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/roster"
	"github.com/keyherald/keyherald/rotation"
)

// User is whom Keyherald has to do with, and how his newest rotation stands.
type User struct {
	UserID         id.UserID       `json:"user_id"`
	OnRoster       bool            `json:"on_roster"`
	ManagedDevices int             `json:"managed_devices"`
	Rotation       *NewestRotation `json:"rotation,omitempty"`
	LastDone       *time.Time      `json:"last_done,omitempty"`
	// Standing is where he stands on the roster, and missing where he is not on it. In a list it is there where it was asked
	// for: what it follows from takes three times as long to read as the rest.
	Standing *roster.Standing `json:"standing,omitempty"`
	// Devices and Excluded are only there where one user is asked for.
	Devices  []Device      `json:"devices,omitempty"`
	Excluded []id.DeviceID `json:"excluded,omitempty"`
}

// NewestRotation is what a list of users says of a rotation.
type NewestRotation struct {
	ID             uuid.UUID      `json:"id"`
	State          rotation.State `json:"state"`
	Held           bool           `json:"held,omitempty"`
	Stage          protocol.Stage `json:"stage,omitempty"`
	NeedsAttention string         `json:"needs_attention,omitempty"`
	NextAction     string         `json:"next_action,omitempty"`
	UpdatedAt      time.Time      `json:"updated_at"`
}

// Device is a managed device. Status is the newest one that it sent.
type Device struct {
	UserID          id.UserID            `json:"user_id"`
	DeviceID        id.DeviceID          `json:"device_id"`
	Name            string               `json:"name"`
	State           postgres.DeviceState `json:"state"`
	SoftwareVersion string               `json:"software_version,omitempty"`
	EnrolledAt      time.Time            `json:"enrolled_at"`
	LastSeen        *time.Time           `json:"last_seen,omitempty"`
	Status          json.RawMessage      `json:"status,omitempty"`
}

func deviceOf(d postgres.Device) Device {
	view := Device{UserID: d.UserID, DeviceID: d.DeviceID, Name: d.Name, State: d.State, SoftwareVersion: d.SoftwareVersion, EnrolledAt: d.EnrolledAt, LastSeen: optional(d.LastSeen)}
	if string(d.Status) != "null" {
		view.Status = d.Status
	}
	return view
}

func userOf(u postgres.UserRow) User {
	view := User{UserID: u.UserID, OnRoster: u.OnRoster, ManagedDevices: u.Enrolled, LastDone: optional(u.LastDone)}
	if n := u.Newest; n.ID != uuid.Nil {
		view.Rotation = &NewestRotation{n.ID, n.State, n.Held, n.Stage, string(n.Attention), n.NextAction, n.UpdatedAt}
	}
	return view
}

func listUsers(c *call) (answer, error) {
	q := c.query()
	withStanding := q.flag("standing")
	var after id.UserID
	limit, filters := q.page(&after)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	rows, err := c.deps.DB.ListUsers(c.ctx, after, limit+1)
	if err != nil {
		return answer{}, err
	}
	var standings map[id.UserID]*roster.Standing
	if withStanding {
		if standings, err = c.standings(rows[:min(limit, len(rows))]); err != nil {
			return answer{}, err
		}
	}
	page, err := pageOf(rows, limit, filters, func(u postgres.UserRow) User {
		view := userOf(u)
		view.Standing = standings[u.UserID]
		return view
	}, func(u postgres.UserRow) any { return u.UserID })
	return ok(page), err
}

// standings is where those of users stand who are on the roster, in one look for all of them.
func (c *call) standings(users []postgres.UserRow) (map[id.UserID]*roster.Standing, error) {
	var filter enforce.StandingFilter
	for _, u := range users {
		if u.OnRoster {
			filter.Users = append(filter.Users, u.UserID)
		}
	}
	if filter.Users == nil {
		return nil, nil // which in the filter would be everybody
	}
	standings, err := c.deps.Enforcer.Standings(c.ctx, filter)
	of := make(map[id.UserID]*roster.Standing, len(standings))
	for i := range standings {
		of[standings[i].UserID] = &standings[i]
	}
	return of, err
}

func getUser(c *call) (answer, error) {
	user, err := c.user()
	if err != nil {
		return answer{}, err
	}
	row, there, err := c.deps.DB.User(c.ctx, user)
	if err != nil {
		return answer{}, err
	}
	if !there {
		return answer{}, &Problem{Status: statusOf[refusal.NotFound], Code: CodeNotFound, Detail: "nothing is known of " + user.String() + ": he is not on the roster, and has had no managed device and no rotation"}
	}
	view := userOf(row)
	standings, err := c.standings([]postgres.UserRow{row})
	if err != nil {
		return answer{}, err
	}
	view.Standing = standings[user]
	devices, err := c.deps.DB.Devices(c.ctx, user)
	if err != nil {
		return answer{}, err
	}
	for _, d := range devices {
		view.Devices = append(view.Devices, deviceOf(d))
	}
	excluded, err := c.deps.DB.Excluded(c.ctx, []id.UserID{user})
	view.Excluded = excluded[user]
	return ok(view), err
}

func listDevices(c *call) (answer, error) {
	q := c.query()
	f := postgres.DeviceFilter{User: q.user("user_id"), State: word(q, "state", postgres.Enrolled, postgres.NeedsEnrollment, postgres.Revoked)}
	var after struct {
		User id.UserID `json:"u"`
		ID   uuid.UUID `json:"i"`
	}
	limit, filters := q.page(&after)
	if err := q.end(); err != nil {
		return answer{}, err
	}
	f.AfterUser, f.AfterID, f.Limit = after.User, after.ID, limit+1
	rows, err := c.deps.DB.ListDevices(c.ctx, f)
	if err != nil {
		return answer{}, err
	}
	page, err := pageOf(rows, limit, filters, deviceOf, func(d postgres.Device) any {
		after.User, after.ID = d.UserID, d.ID
		return after
	})
	return ok(page), err
}

// CodeRequest asks for an enrollment code.
type CodeRequest struct {
	// TTL is how long it may be used, in seconds; 0 is a day.
	TTL int64 `json:"ttl_seconds,omitempty"`
}

// NewCode is an enrollment code, which is shown once.
type NewCode struct {
	Code string `json:"code"`
}

func createCode(c *call) (answer, error) {
	user, err := c.user()
	if err != nil {
		return answer{}, err
	}
	asked := CodeRequest{TTL: 24 * 60 * 60}
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	code, err := c.deps.Engine.NewCode(c.ctx, user, seconds(asked.TTL), c.caller.actor)
	if err != nil {
		return answer{}, err
	}
	return created(NewCode{code.Reveal()}), nil
}

// Revoked says what is left to do by others.
type Revoked struct {
	Next string `json:"next"`
}

// revokedNext is what revoking does not do.
const revokedNext = "It is triggered no more, and excluded from every push. Now log the device out, cut its access to the KMS, and rotate the user's key."

func revokeDevice(c *call) (answer, error) {
	user, err := c.user()
	if err != nil {
		return answer{}, err
	}
	var asked Reason
	if err := c.into(&asked); err != nil {
		return answer{}, err
	}
	err = c.deps.Engine.Revoke(c.ctx, user, id.DeviceID(c.param("device_id")), asked.Reason, c.caller.actor)
	return ok(Revoked{revokedNext}), err
}

func excludeDevice(c *call) (answer, error) {
	d, err := c.targetDevice()
	if err != nil {
		return answer{}, err
	}
	if err := c.deps.Engine.Exclude(c.ctx, d.UserID, d.DeviceID, c.caller.actor); err != nil {
		return answer{}, err
	}
	exclusion, err := c.deps.Enforcer.DeviceExclusion(c.ctx, d)
	return ok(exclusionOf(exclusion)), err
}

func includeDevice(c *call) (answer, error) {
	d, err := c.targetDevice()
	if err != nil {
		return answer{}, err
	}
	return done(), c.deps.Engine.Include(c.ctx, d.UserID, d.DeviceID, c.caller.actor)
}

// targetDevice is the device of a user that the path names; there is no body.
func (c *call) targetDevice() (campaign.Device, error) {
	user, err := c.user()
	return campaign.Device{UserID: user, DeviceID: id.DeviceID(c.param("device_id"))}, errors.Join(err, c.none())
}
