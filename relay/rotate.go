package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// RotateRequest asks for a new key, which the user's managed device makes and puts into the KMS.
type RotateRequest struct {
	UserID id.UserID
	// KMS and Path are where the key is; empty is where it was rotated last.
	KMS, Path string
	// Exclude are devices that get no key by this push or a later one, until that is lifted.
	Exclude []id.DeviceID
	Reason  rotation.Reason
	// OldBackupGrace is how long the key backup that is replaced is kept; nil is as the device's account file says.
	OldBackupGrace *time.Duration
	// ReplaceRecovery asks for a new recovery key as well.
	ReplaceRecovery bool
	// Source is who asks, as the rotation shows it; empty is an admin.
	Source string
	// DueAt is when the key reached its greatest age, where a policy asks for that.
	DueAt time.Time
}

// ErrNotPossible means that the rotation is not in a state for what was asked; the error says what to do instead.
var ErrNotPossible = errors.New("not possible now")

// sourceAdmin is the source of rotations that an admin asked for.
const sourceAdmin = "admin"

// Rotate opens a rotation whose key the device makes. Excluded devices, rotation and events commit together.
func (e *Engine) Rotate(ctx context.Context, request RotateRequest, actor audit.Actor) (opened uuid.UUID, err error) {
	event := audit.Event{Actor: actor, Action: audit.RotationAsked, Subject: audit.OfUser(request.UserID), Outcome: audit.Accepted}
	err = refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		if _, _, err := request.UserID.Parse(); err != nil {
			return refusal.New(refusal.Invalid, audit.RefusedNoUserID, "%q is not a Matrix user id (@name:server): %w", request.UserID, err)
		}
		if (request.KMS == "") != (request.Path == "") {
			return refusal.New(refusal.Invalid, audit.RefusedHalfPlace, "the KMS and the path of the key belong together: name both, or neither")
		}
		event.Time = e.now()
		if err := e.db.LockArrivals(ctx, nil, []id.UserID{request.UserID}); err != nil {
			return err
		}
		change, err := e.asChange(ctx, request, actor)
		if err != nil {
			return err
		}
		if err := e.db.Exclude(ctx, request.UserID, request.Exclude, actor.String(), event.Time); err != nil {
			return err
		}
		rotations, events, err := e.open(ctx, []Change{change}, event.Time)
		if err != nil {
			return err
		}
		opened = rotations[0]
		event.Rotation = opened
		event.Detail = audit.Detail{audit.IDs("exclude", request.Exclude), audit.ID("kms", audit.KMSName(change.KMS.Name)), audit.ID("path", audit.KMSPath(change.KMS.Path)),
			audit.Flag("replace_recovery_key", request.ReplaceRecovery)}
		if request.Reason != rotation.ReasonChanged {
			event.Detail = append(event.Detail, audit.Word("reason", request.Reason))
		}
		if !request.DueAt.IsZero() {
			event.Detail = append(event.Detail, audit.Time("due_at", request.DueAt))
		}
		return e.db.Append(ctx, append(events, event)...)
	})
	return opened, err
}

func (e *Engine) asChange(ctx context.Context, request RotateRequest, actor audit.Actor) (Change, error) {
	change := Change{Source: sourceAdmin, Actor: actor, UserID: request.UserID, Secret: protocol.SecretMegolmBackup, Reason: request.Reason,
		Action: protocol.ActionRotate, ReplaceRecovery: request.ReplaceRecovery, KMS: protocol.KMSRef{Name: request.KMS, Path: request.Path}}
	if request.Source != "" {
		change.Source = request.Source
	}
	if request.OldBackupGrace != nil {
		seconds := protocol.Seconds(request.OldBackupGrace.Seconds())
		change.OldBackupGrace = &seconds
	}
	if request.KMS != "" {
		return change, nil
	}
	place, ok, err := e.db.LastPlace(ctx, request.UserID, change.Secret)
	if err == nil && !ok {
		err = refusal.New(refusal.Conflict, audit.RefusedUnknownPlace, "%s had no rotation yet, so it is not known where his key is: name the KMS and the path (--kms, --path), as the device's account file has them", request.UserID)
	}
	change.KMS.Name, change.KMS.Path = place.KMS, place.Path
	return change, err
}

// Exclude keeps a device of a user from every push from now on. One that is managed is revoked instead.
func (e *Engine) Exclude(ctx context.Context, user id.UserID, device id.DeviceID, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: audit.ExclusionSet, Subject: audit.OfDevice(user, device), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time = e.now()
		if _, _, err := user.Parse(); err != nil {
			return refusal.New(refusal.Invalid, audit.RefusedNoUserID, "%q is not a Matrix user id (@name:server): %w", user, err)
		}
		if device == "" {
			return refusal.New(refusal.Invalid, audit.RefusedUnknownDevice, "the device's id is missing")
		}
		excluded, err := e.db.Excluded(ctx, []id.UserID{user})
		if err != nil {
			return err
		}
		if slices.Contains(excluded[user], device) {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "%s of %s is excluded already: %w", device, user, ErrNotPossible)
		}
		if err := e.db.Exclude(ctx, user, []id.DeviceID{device}, actor.String(), event.Time); err != nil {
			return err
		}
		return e.db.Append(ctx, event)
	})
}

// Include lifts an exclusion: the device gets the key with the next word to the user's managed device.
func (e *Engine) Include(ctx context.Context, user id.UserID, device id.DeviceID, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: audit.ExclusionLifted, Subject: audit.OfDevice(user, device), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time = e.now()
		lifted, err := e.db.Include(ctx, user, device)
		if err != nil {
			return err
		}
		if !lifted {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "%s of %s is not excluded: %w", device, user, ErrNotPossible)
		}
		return e.db.Append(ctx, event)
	})
}

// Repeat asks the device that did a rotation to push its key to every target once more.
func (e *Engine) Repeat(ctx context.Context, rotationID uuid.UUID, actor audit.Actor) error {
	return e.change(ctx, rotationID, audit.RepeatAsked, actor, func(ctx context.Context, r postgres.Rotation) error {
		if !r.Facts.Pushed || r.Facts.State == rotation.Superseded {
			return refusal.New(refusal.Conflict, audit.RefusedNotPushed, "rotation %s is %s: %w: only the key that was pushed last can be pushed again", r.ID, r.Facts.State, ErrNotPossible)
		}
		now := e.now()
		if err := e.db.AskRepeat(ctx, r.ID, now); err != nil {
			return err
		}
		return e.db.Append(ctx, audit.Event{Time: now, Actor: actor, Action: audit.RepeatAsked, Subject: audit.OfUser(r.UserID), Rotation: r.ID, Outcome: audit.Accepted})
	})
}

// tellRepeats tells the devices of rotations whose key is to be pushed once more.
func (s *Session) tellRepeats(ctx context.Context) error {
	rotations, err := s.db.RepeatsUntold(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, r := range rotations {
		all = errors.Join(all, s.tellRepeat(ctx, r))
	}
	return all
}

func (s *Session) tellRepeat(ctx context.Context, r postgres.Rotation) error {
	attempts, err := s.db.Attempts(ctx, r.ID)
	if err != nil || len(attempts) == 0 {
		return err
	}
	last := attempts[len(attempts)-1]
	d, err := s.db.Device(ctx, last.Device)
	if err != nil {
		return err
	}
	devices, err := s.db.DevicesOf(ctx, []id.UserID{r.UserID})
	if err != nil {
		return err
	}
	also, err := s.db.Excluded(ctx, []id.UserID{r.UserID})
	if err != nil {
		return err
	}
	now := s.now()
	var sequence int64
	if err := s.db.Txn(ctx, func(ctx context.Context) (err error) {
		sequence, err = s.db.NextSequence(ctx, r.UserID, r.Secret, 0, now)
		return err
	}); err != nil {
		return err
	}
	out := todeviceRepeat(r, last.Number, sequence, excluded(devices[r.UserID], also[r.UserID]), now)
	event := audit.Event{Action: audit.RepeatQueued, Rotation: r.ID, Detail: audit.Detail{audit.Number("attempt", last.Number), audit.Number("sequence", sequence)}}
	return s.tell(ctx, d, out, event, func(ctx context.Context, at time.Time) error { return s.db.RepeatTold(ctx, r.ID, at) })
}

// bind gives a rotation whose key the device made the version that it became, unless the KMS told it already. Where the
// KMS's word about that version opened a rotation of its own, that one stands for it.
func (s *Session) bind(ctx context.Context, r *postgres.Rotation, report protocol.Progress, now time.Time) error {
	if !r.Pending() || report.KMSVersion == "" || r.Facts.State.Ended() {
		return nil
	}
	standing, err := s.db.RotationsAt(ctx, []postgres.Place{r.Place()})
	if err != nil {
		return err
	}
	for _, other := range standing {
		if other.KMS.Version == report.KMSVersion {
			return nil
		}
	}
	r.KMS.Version = report.KMSVersion
	return s.db.BindVersions(ctx, map[uuid.UUID]string{r.ID: report.KMSVersion}, now)
}
