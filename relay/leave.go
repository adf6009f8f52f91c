package relay

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
)

// Left is what ended for a user whom nothing is done for any more.
type Left struct{ Rotations, Devices, Codes int }

// Leave ends everything that is under way for users, within the caller's transaction: open enrollment codes are void, devices
// revoked, those that asked to be enrolled again turned away, and rotations cancelled, all of them told as Revoke,
// RejectReenrollment and Cancel have them told. The reason stands with each device.
func (e *Engine) Leave(ctx context.Context, users []id.UserID, reason audit.Reason, actor audit.Actor) (map[id.UserID]Left, error) {
	left := map[id.UserID]Left{}
	if len(users) == 0 {
		return left, nil
	}
	// Codes before devices and devices before rotations, as enrollments and reports lock them. A device that enrolls
	// meanwhile has locked its code: it is among the devices then. One that asks again has locked itself.
	codes, err := e.db.BurnCodes(ctx, users, e.now())
	if err != nil {
		return nil, err
	}
	for user, n := range codes {
		left[user] = Left{Codes: n}
	}
	devices, err := e.db.LockDevicesOf(ctx, users)
	if err != nil {
		return nil, err
	}
	// All at once: a department that leaves is thousands, and others wait for these locks.
	if err := e.db.RevokeDevices(ctx, devices); err != nil {
		return nil, err
	}
	revoked := make([]audit.Event, len(devices))
	for i, d := range devices {
		revoked[i] = audit.Event{Time: e.now(), Actor: actor, Action: audit.DeviceRevoked, Subject: subjectOf(d), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.Text("reason", reason)}}
		l := left[d.UserID]
		l.Devices++
		left[d.UserID] = l
	}
	if err := e.db.Append(ctx, revoked...); err != nil {
		return nil, err
	}
	if err := e.turnAway(ctx, devices, audit.Text("reason", reason)); err != nil {
		return nil, err
	}
	rotations, err := e.db.LockOpenRotations(ctx, users)
	if err != nil {
		return nil, err
	}
	for _, r := range rotations {
		if err := e.cancel(ctx, r, actor); err != nil {
			return nil, err
		}
		l := left[r.UserID]
		l.Rotations++
		left[r.UserID] = l
	}
	return left, e.db.Notify(ctx, WorkChannel, "")
}

// turnAway rejects by the server's own word what devices that are revoked asked: nobody is left to decide it.
func (e *Engine) turnAway(ctx context.Context, devices []postgres.Device, because ...audit.Field) error {
	now := e.now()
	waiting, err := e.db.RejectReenrollmentsOf(ctx, devices, now, audit.ByRelay().String())
	if err != nil {
		return err
	}
	rejected := make([]audit.Event, len(waiting))
	for i, r := range waiting {
		rejected[i] = audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.ReenrollmentRejected, Subject: audit.OfDevice(r.UserID, r.DeviceID), Outcome: audit.Accepted,
			Detail: append(masterKeys(r), because...)}
	}
	return e.db.Append(ctx, rejected...)
}
