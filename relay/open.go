package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Change is a secret's new version in a KMS, as a source told it.
type Change struct {
	Source string
	Actor  audit.Actor
	UserID id.UserID
	Secret string
	KMS    protocol.KMSRef
	Reason rotation.Reason
	// Action is push if it is empty; for rotate the version is not known yet, and the rest is what the device is to heed.
	Action          protocol.Action
	OldBackupGrace  *protocol.Seconds
	ReplaceRecovery bool
}

func (c Change) place() postgres.Place {
	return postgres.Place{UserID: c.UserID, Secret: c.Secret, KMS: c.KMS.Name, Path: c.KMS.Path}
}

// open makes or finds the rotation of each change, in the caller's transaction, which holds the locks of their users.
// It returns the rotations' ids in the order of the changes, and what is to be audited.
func (e *Engine) open(ctx context.Context, changes []Change, now time.Time) ([]uuid.UUID, []audit.Event, error) {
	if len(changes) == 0 {
		return nil, nil, nil
	}
	var places []postgres.Place
	for _, change := range changes {
		places = append(places, change.place())
	}
	standing, err := e.db.RotationsAt(ctx, places)
	if err != nil {
		return nil, nil, err
	}
	o := newOpening(standing, now)
	rotations := make([]uuid.UUID, len(changes))
	for i, change := range changes {
		if rotations[i], err = o.take(change); err != nil {
			return nil, nil, err
		}
	}
	if err := e.db.BindVersions(ctx, o.bound, now); err != nil {
		return nil, nil, err
	}
	superseded, err := e.db.Supersede(ctx, o.overtaken, now)
	if err != nil {
		return nil, nil, err
	}
	opened := make([]postgres.Rotation, len(o.opened))
	for i, r := range o.opened {
		opened[i] = *r
		superseded[r.ID] = r.Facts.State == rotation.Superseded // by one of the same group
	}
	events, err := e.holdStorm(ctx, opened, now)
	if err != nil {
		return nil, nil, err
	}
	if err := e.db.InsertRotations(ctx, opened); err != nil {
		return nil, nil, err
	}
	for _, event := range o.events {
		// One may have ended by itself since it was read: then it was not superseded.
		if superseded[event.Rotation] {
			events = append(events, event)
		}
	}
	if len(opened) == 0 {
		return rotations, events, nil
	}
	return rotations, events, e.db.Notify(ctx, WorkChannel, "")
}

// opening is the rule of what changes come to beside the rotations that stand at their places: it says what is to be
// written, and writes nothing.
type opening struct {
	now       time.Time
	at        map[postgres.Place][]*postgres.Rotation
	opened    []*postgres.Rotation
	overtaken []uuid.UUID
	// bound are rotations whose key a device made, by the version that it is told to be.
	bound  map[uuid.UUID]string
	events []audit.Event
}

func newOpening(standing []postgres.Rotation, now time.Time) *opening {
	o := &opening{now: now, at: map[postgres.Place][]*postgres.Rotation{}, bound: map[uuid.UUID]string{}}
	for i := range standing {
		r := &standing[i]
		o.at[r.Place()] = append(o.at[r.Place()], r)
	}
	return o
}

// take opens a change's rotation, unless its version has one, and supersedes older ones of the same place. A change
// that is older than what is known becomes a rotation that is superseded from the start.
func (o *opening) take(change Change) (uuid.UUID, error) {
	others := o.at[change.place()]
	for _, other := range others {
		if other.KMS.Version == change.KMS.Version {
			return other.ID, nil
		}
	}
	if echoed, ok := o.echo(change, others); ok {
		return echoed, nil
	}
	rotationID, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, fmt.Errorf("making a rotation id: %w", err)
	}
	if change.Action == "" {
		change.Action = protocol.ActionPush
	}
	if change.Action == protocol.ActionRotate {
		change.KMS.Version = postgres.PendingVersion(rotationID)
	}
	fresh := &postgres.Rotation{ID: rotationID, UserID: change.UserID, Secret: change.Secret, KMS: change.KMS, Source: change.Source, Reason: change.Reason, Action: change.Action,
		OldBackupGrace: change.OldBackupGrace, ReplaceRecovery: change.ReplaceRecovery,
		Facts: rotation.Facts{State: rotation.Received}, CreatedAt: o.now}
	late := false
	for _, other := range others {
		// Versions without an order are newer than each other: then the later notification wins.
		if rotation.Newer(other.KMS.Version, change.KMS.Version) && !rotation.Newer(change.KMS.Version, other.KMS.Version) {
			late = true
		} else if !other.Facts.State.Ended() {
			o.overtaken = append(o.overtaken, other.ID)
			o.supersede(other, change.Actor, audit.ID("by", rotationID))
		}
	}
	if late {
		o.supersede(fresh, change.Actor, audit.Flag("older_than_known", true))
	}
	o.opened = append(o.opened, fresh)
	o.at[change.place()] = append(others, fresh)
	return rotationID, nil
}

// echo finds the open rotation whose key a device is making: what the KMS tells of a new version at its place then is the
// device's own writing, and no change beside it.
func (o *opening) echo(change Change, others []*postgres.Rotation) (uuid.UUID, bool) {
	if change.Action == protocol.ActionRotate {
		return uuid.Nil, false
	}
	for _, other := range others {
		if other.Pending() && other.Facts.State == rotation.Working {
			other.KMS.Version, o.bound[other.ID] = change.KMS.Version, change.KMS.Version
			return other.ID, true
		}
	}
	return uuid.Nil, false
}

func (o *opening) supersede(r *postgres.Rotation, actor audit.Actor, why audit.Field) {
	r.Facts.State, r.EndedAt = rotation.Superseded, o.now
	o.events = append(o.events, audit.Event{Time: o.now, Actor: actor, Action: audit.RotationSuperseded, Subject: audit.OfUser(r.UserID), Rotation: r.ID,
		Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("state", r.Facts.State), why}})
}
