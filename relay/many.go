package relay

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// ExcludeMany keeps devices of several users from every push from now on, for a campaign and in the caller's transaction.
// Those that were excluded before stay so, and are not told of again.
func (e *Engine) ExcludeMany(ctx context.Context, devices []campaign.Device, of uuid.UUID) error {
	if len(devices) == 0 {
		return nil
	}
	now := e.now()
	fresh, err := e.db.ExcludeMany(ctx, devices, "campaign:"+of.String(), now)
	if err != nil {
		return err
	}
	events := make([]audit.Event, len(fresh))
	for i, d := range fresh {
		events[i] = audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.ExclusionSet, Subject: audit.OfDevice(d.UserID, d.DeviceID), Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("campaign", of)}}
	}
	return e.db.Append(ctx, events...)
}

// RotateMany opens rotations for a campaign, which the storm limit neither holds nor counts, whose keys the users' devices make, in the caller's transaction, which holds
// the locks of their users (postgres.LockArrivals) and found none of theirs open. Each request names its KMS and path, and
// excludes no device: a campaign does that before anybody's turn comes (ExcludeMany). It returns the rotations' ids in the
// order of the requests.
func (e *Engine) RotateMany(ctx context.Context, requests []RotateRequest, campaign uuid.UUID) ([]uuid.UUID, error) {
	now, actor := e.now(), audit.ByRelay()
	changes := make([]Change, len(requests))
	for i, request := range requests {
		changes[i] = Change{Source: postgres.SourceCampaign, Actor: actor, UserID: request.UserID, Secret: protocol.SecretMegolmBackup, Reason: request.Reason,
			Action: protocol.ActionRotate, ReplaceRecovery: request.ReplaceRecovery, KMS: protocol.KMSRef{Name: request.KMS, Path: request.Path}}
		if request.OldBackupGrace != nil {
			seconds := protocol.Seconds(request.OldBackupGrace.Seconds())
			changes[i].OldBackupGrace = &seconds
		}
	}
	opened, events, err := e.open(ctx, changes, now)
	if err != nil {
		return nil, err
	}
	for i, request := range requests {
		detail := audit.Detail{audit.ID("campaign", campaign), audit.ID("kms", audit.KMSName(request.KMS)), audit.ID("path", audit.KMSPath(request.Path))}
		if request.Reason != rotation.ReasonChanged {
			detail = append(detail, audit.Word("reason", request.Reason))
		}
		events = append(events, audit.Event{Time: now, Actor: actor, Action: audit.RotationAsked, Subject: audit.OfUser(request.UserID), Rotation: opened[i], Outcome: audit.Accepted, Detail: detail})
	}
	return opened, e.db.Append(ctx, events...)
}

// ReleaseMany lets those of these rotations go that are held, for a campaign and in the caller's transaction, and returns
// their ids.
func (e *Engine) ReleaseMany(ctx context.Context, keys []uuid.UUID, campaign uuid.UUID) ([]uuid.UUID, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	now := e.now()
	held, err := e.db.ReleaseRotations(ctx, keys, now)
	if err != nil || len(held) == 0 {
		return nil, err
	}
	events := make([]audit.Event, len(held))
	for i, r := range held {
		events[i] = audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.RotationReleased, Subject: audit.OfUser(r.UserID), Rotation: r.ID, Outcome: audit.Accepted,
			Detail: audit.Detail{audit.ID("campaign", campaign)}}
	}
	if err := e.db.Append(ctx, events...); err != nil {
		return nil, err
	}
	return ids(held), e.db.Notify(ctx, WorkChannel, "")
}

// CancelMany ends those of these rotations that are open, with a campaign and in the caller's transaction, as Cancel does:
// the devices are told to stop where they are. It returns their ids.
func (e *Engine) CancelMany(ctx context.Context, keys []uuid.UUID, campaign uuid.UUID, actor audit.Actor) ([]uuid.UUID, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	now := e.now()
	cancelled, err := e.db.CancelRotations(ctx, keys, now)
	if err != nil || len(cancelled) == 0 {
		return nil, err
	}
	order := make([]uuid.UUID, 0, len(cancelled))
	for key := range cancelled {
		order = append(order, key)
	}
	slices.SortFunc(order, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	events := make([]audit.Event, len(order))
	for i, key := range order {
		events[i] = audit.Event{Time: now, Actor: actor, Action: audit.RotationCancelled, Subject: audit.OfUser(cancelled[key]), Rotation: key, Outcome: audit.Accepted,
			Detail: audit.Detail{audit.Word("state", rotation.Cancelled), audit.ID("campaign", campaign)}}
	}
	if err := e.db.Append(ctx, events...); err != nil {
		return nil, err
	}
	return order, e.db.Notify(ctx, WorkChannel, "")
}

// Successors are, of these superseded rotations, the newest at their places.
func (e *Engine) Successors(ctx context.Context, of []postgres.Rotation) (map[uuid.UUID]postgres.Rotation, error) {
	if len(of) == 0 {
		return nil, nil
	}
	places := make([]postgres.Place, len(of))
	for i, r := range of {
		places[i] = r.Place()
	}
	standing, err := e.db.RotationsAt(ctx, places)
	if err != nil {
		return nil, err
	}
	newest := map[postgres.Place]postgres.Rotation{}
	for _, r := range standing {
		if _, known := newest[r.Place()]; !known && r.Facts.State != rotation.Superseded {
			newest[r.Place()] = r
		}
	}
	successors := map[uuid.UUID]postgres.Rotation{}
	for _, r := range of {
		if next, ok := newest[r.Place()]; ok {
			successors[r.ID] = next
		}
	}
	return successors, nil
}
