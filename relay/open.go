package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/policy"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Change is a secret's new version in a KMS, as a source told it, or a reason to make one.
type Change struct {
	Source string
	Actor  audit.Actor
	UserID id.UserID
	Secret string
	KMS    protocol.KMSRef
	// Read says that somebody else read the version, or the current one where the KMS did not say which.
	Read   bool
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
// It returns the rotations' ids in the order of the changes, none for a read of a version that was not the current one any
// more, and what is to be audited.
func (e *Engine) open(ctx context.Context, changes []Change, now time.Time) ([]uuid.UUID, []audit.Event, error) {
	if len(changes) == 0 {
		return nil, nil, nil
	}
	var places, read []postgres.Place
	for _, change := range changes {
		places = append(places, change.place())
		if change.Read {
			read = append(read, change.place())
		}
	}
	standing, err := e.db.RotationsAt(ctx, places)
	if err != nil {
		return nil, nil, err
	}
	o := newOpening(standing, now)
	if len(read) > 0 {
		if o.seen, err = e.db.Seen(ctx, read); err != nil {
			return nil, nil, err
		}
		if o.policy, err = e.policy(ctx); err != nil {
			return nil, nil, err
		}
	}
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
		if event.Action != audit.RotationSuperseded || superseded[event.Rotation] {
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
	at        map[postgres.Place][]*postgres.Rotation // newest first
	seen      map[postgres.Place]string               // in the KMS, where a key of the place was read
	policy    *policy.Policy                          // where a key was read, and there is one
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
	if change.Read {
		return o.takeRead(change, others)
	}
	for _, other := range others {
		if other.KMS.Version == change.KMS.Version {
			return other.ID, nil
		}
	}
	if echoed, ok := o.echo(change, others); ok {
		return echoed, nil
	}
	for _, other := range others {
		// It was read before it was told of, and its successor is on its way.
		if other.ReadVersion == change.KMS.Version && !other.Facts.State.Ended() {
			return other.ID, nil
		}
	}
	fresh, err := o.fresh(change)
	if err != nil {
		return uuid.Nil, err
	}
	o.supersedeOthers(fresh, change, others)
	o.put(fresh, others)
	return fresh.ID, nil
}

// takeRead opens the rotation of a key that somebody else read, unless the version that was read has one or is not the
// current one any more.
func (o *opening) takeRead(change Change, others []*postgres.Rotation) (uuid.UUID, error) {
	standing := make([]rotation.Standing, len(others))
	for i, other := range others {
		standing[i] = rotation.Standing{Version: other.KMS.Version, Read: other.ReadVersion, Reason: other.Reason, Open: !other.Facts.State.Ended(), Created: other.CreatedAt}
		if other.Pending() {
			standing[i].Version = ""
		}
	}
	judged := rotation.JudgeRead(change.KMS.Version, standing, o.seen[change.place()], o.now)
	switch judged.Reading {
	case rotation.ReadOutdated:
		return uuid.Nil, nil
	case rotation.ReadCovered:
		return others[judged.Covering].ID, nil
	}
	change.Action, change.Reason = protocol.ActionRotate, rotation.ReasonDisclosed
	fresh, err := o.fresh(change)
	if err != nil {
		return uuid.Nil, err
	}
	fresh.ReadVersion = judged.Version
	hold, nextAction := o.holdRead(fresh, judged.Again)
	if hold != rotation.HoldNone {
		// What is under way goes on: it is not sure that this one ever will.
		fresh.Held, fresh.HeldFor, fresh.NextAction = true, hold, nextAction
		o.events = append(o.events, audit.Event{Time: o.now, Actor: audit.ByRelay(), Action: audit.RotationHeld, Subject: audit.OfUser(fresh.UserID), Rotation: fresh.ID,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("for", hold)}})
	} else {
		o.supersedeOthers(fresh, change, others)
	}
	o.put(fresh, others)
	return fresh.ID, nil
}

// fresh is a change's rotation, which no other knows of yet.
func (o *opening) fresh(change Change) (*postgres.Rotation, error) {
	rotationID, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a rotation id: %w", err)
	}
	if change.Action == "" {
		change.Action = protocol.ActionPush
	}
	if change.Action == protocol.ActionRotate {
		change.KMS.Version = postgres.PendingVersion(rotationID)
	}
	return &postgres.Rotation{ID: rotationID, UserID: change.UserID, Secret: change.Secret, KMS: change.KMS, Source: change.Source, Reason: change.Reason, Action: change.Action,
		OldBackupGrace: change.OldBackupGrace, ReplaceRecovery: change.ReplaceRecovery,
		Facts: rotation.Facts{State: rotation.Received}, CreatedAt: o.now}, nil
}

func (o *opening) put(fresh *postgres.Rotation, others []*postgres.Rotation) {
	o.opened = append(o.opened, fresh)
	o.at[fresh.Place()] = append([]*postgres.Rotation{fresh}, others...)
}

// supersedeOthers ends the open rotations that a fresh one follows, or that one where a newer version was known.
func (o *opening) supersedeOthers(fresh *postgres.Rotation, change Change, others []*postgres.Rotation) {
	late := false
	for _, other := range others {
		// Versions without an order are newer than each other: then the later notification wins.
		if rotation.Newer(other.KMS.Version, fresh.KMS.Version) && !rotation.Newer(fresh.KMS.Version, other.KMS.Version) {
			late = true
		} else if !other.Facts.State.Ended() {
			o.overtaken = append(o.overtaken, other.ID)
			o.supersede(other, change.Actor, audit.ID("by", fresh.ID))
		}
	}
	if late {
		o.supersede(fresh, change.Actor, audit.Flag("older_than_known", true))
	}
}

// echo finds the open rotation whose key a device is making: what the KMS tells of a new version at its place then is the
// device's own writing, and no change beside it.
func (o *opening) echo(change Change, others []*postgres.Rotation) (uuid.UUID, bool) {
	if change.Action == protocol.ActionRotate {
		return uuid.Nil, false
	}
	for _, other := range others {
		if other.Pending() && other.Facts.State == rotation.Working && other.ReadVersion != change.KMS.Version {
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
