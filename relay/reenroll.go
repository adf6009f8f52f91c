package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// errLook asks for a message once more, with its sender as the homeserver presents him.
var errLook = errors.New("the sender's identity is needed: it is looked up, and the message handled again")

// ReleaseReenrollment lets a device that asked again be enrolled, with the identity that it asked with and no other: the bot
// looks at the homeserver once more, and tells the device. What is to be checked before is in docs/provisioning.md.
func (e *Engine) ReleaseReenrollment(ctx context.Context, key uuid.UUID, actor audit.Actor) error {
	return e.decide(ctx, key, postgres.ReenrollmentReleased, audit.ReenrollmentReleased, "", actor)
}

// RejectReenrollment turns a device away that asked again; a reason may be given. It needs a code then.
func (e *Engine) RejectReenrollment(ctx context.Context, key uuid.UUID, reason string, actor audit.Actor) error {
	return e.decide(ctx, key, postgres.ReenrollmentRejected, audit.ReenrollmentRejected, reason, actor)
}

func (e *Engine) decide(ctx context.Context, key uuid.UUID, state postgres.ReenrollmentState, action audit.Action, reason string, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: action, Subject: audit.OfDevices(), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time = e.now()
		r, ok, err := e.db.LockReenrollment(ctx, key)
		if err != nil {
			return err
		}
		if !ok {
			return refusal.New(refusal.NotFound, audit.RefusedUnknownReenrollment, "nobody asks to be enrolled again as %s: `keyherald reenrollments list` shows who does", key)
		}
		event.Subject = audit.OfDevice(r.UserID, r.DeviceID)
		if r.State != postgres.ReenrollmentWaiting {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "it is %s, and does not wait any more: %w", r.State, ErrNotPossible)
		}
		event.Detail = masterKeys(r)
		if reason != "" {
			why, err := refusal.Reason(reason)
			if err != nil {
				return err
			}
			event.Detail = append(event.Detail, audit.Text("reason", why))
		}
		if err := e.db.DecideReenrollment(ctx, key, state, event.Time, actor.String()); err != nil {
			return err
		}
		if err := e.db.Append(ctx, event); err != nil {
			return err
		}
		return e.db.Notify(ctx, WorkChannel, "")
	})
}

func masterKeys(r postgres.Reenrollment) audit.Detail {
	return audit.Detail{audit.ID("reenrollment", r.ID), audit.Fingerprint("old_master_key_sha256", r.OldMasterKey), audit.Fingerprint("new_master_key_sha256", r.NewMasterKey)}
}

// again puts a device into the queue whose user's identity was reset. Nothing is trusted by that: until an admin releases
// it the device is not obeyed, nor triggered.
func (s *Session) again(ctx context.Context, message *todevice.Message, request protocol.EnrollRequest, now time.Time) (verdict, error) {
	device, known, err := s.db.DeviceByKey(ctx, message.Sender, message.SenderKey)
	if err == nil && known {
		// Who revokes it meanwhile, or takes its user off the roster, comes before this or finds what is queued here.
		device, err = s.db.LockDevice(ctx, device.ID)
	}
	switch {
	case err != nil:
		return verdict{}, err
	case !known || device.SigningKey != message.SenderSigningKey || device.State == postgres.Revoked || device.WentBack:
		return verdict{refusal: protocol.RefusedNotBefore}, nil
	case message.Identity == nil:
		s.look(message.ID)
		return verdict{}, errLook
	}
	if why := s.fits(message, request); why != "" {
		return verdict{refusal: why}, nil
	}
	if device.State == postgres.Enrolled && device.MasterKey == request.UserMasterKey {
		return verdict{device: device, repeated: true}, nil
	}
	last, ok, err := s.db.LastReenrollment(ctx, device.ID)
	if err != nil {
		return verdict{}, err
	}
	if ok && last.NewMasterKey == request.UserMasterKey {
		switch last.State {
		case postgres.ReenrollmentWaiting, postgres.ReenrollmentReleased:
			return verdict{refusal: protocol.RefusedQueued}, nil
		case postgres.ReenrollmentRejected:
			return verdict{refusal: protocol.RefusedRejected}, nil
		}
	}
	if device.State == postgres.Enrolled {
		if err := s.stopTrusting(ctx, device); err != nil {
			return verdict{}, err
		}
	}
	key, err := uuid.NewV7()
	if err != nil {
		return verdict{}, fmt.Errorf("making the id of a re-enrollment: %w", err)
	}
	r := postgres.Reenrollment{ID: key, Device: device.ID, OldMasterKey: device.MasterKey, NewMasterKey: request.UserMasterKey, AskedAt: now}
	if err := s.db.QueueReenrollment(ctx, r); err != nil {
		return verdict{}, err
	}
	return verdict{refusal: protocol.RefusedQueued, repeated: true}, s.db.Append(ctx, audit.Event{Time: now, Actor: actorOf(device), Action: audit.ReenrollmentQueued,
		Subject: subjectOf(device), Outcome: audit.Accepted, Detail: masterKeys(r)})
}

// look has Admit ask for the sender when a message comes the next time.
func (s *Session) look(envelope string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.looks) >= maxLooks {
		clear(s.looks)
	}
	s.looks[envelope] = true
}

// maxLooks bounds what is remembered of messages that are to be handled again.
const maxLooks = 1000

// settleReenrollments does what admins decided about devices that asked again, and tells them.
func (s *Session) settleReenrollments(ctx context.Context) error {
	decided, err := s.db.UnsettledReenrollments(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, r := range decided {
		if err := s.settle(ctx, r); err != nil {
			all = errors.Join(all, fmt.Errorf("settling the re-enrollment of %s: %w", r.UserID, err))
		}
	}
	return all
}

func (s *Session) settle(ctx context.Context, r postgres.Reenrollment) error {
	device, err := s.db.Device(ctx, r.Device)
	if err != nil {
		return err
	}
	identities, err := s.endpoint.Identities(ctx, r.UserID)
	if err != nil {
		return err
	}
	to := pinned(device)
	claims, err := s.endpoint.Claim(ctx, false, to)
	if err != nil {
		return err
	}
	return s.endpoint.InTxn(ctx, func(ctx context.Context) error {
		// The device before what it asked, as Leave locks them: what is revoked meanwhile stays so.
		d, err := s.db.LockDevice(ctx, r.Device)
		if err != nil {
			return err
		}
		locked, ok, err := s.db.LockReenrollment(ctx, r.ID)
		if err != nil || !ok || locked.State != r.State {
			return err
		}
		response, err := s.carryOut(ctx, r, d, identities[r.UserID])
		if err != nil {
			return err
		}
		err = s.endpoint.Queue(ctx, todevice.Outgoing{Key: "enroll/" + r.ID.String(), To: to, Type: protocol.TypeEnrollResponse.Type, Content: response}, claims)
		if err != nil && !errors.Is(err, todevice.ErrNoOneTimeKey) {
			return err
		}
		// A device that cannot be told asks again when it begins the next time.
		return s.db.Notify(ctx, WorkChannel, "")
	})
}

// carryOut enrolls a locked device that was released, if its user's identity is still the one that was looked at, and gives the
// answer to the device.
func (s *Session) carryOut(ctx context.Context, r postgres.Reenrollment, d postgres.Device, identity crosssigning.Identity) (response protocol.EnrollResponse, err error) {
	response = protocol.EnrollResponse{UserMasterKey: r.NewMasterKey, Again: true}
	if r.State == postgres.ReenrollmentRejected {
		response.Reason = protocol.RefusedRejected
		return response, s.db.SettleReenrollment(ctx, r.ID, r.State)
	}
	now := s.now()
	event := audit.Event{Time: now, Actor: actorOf(d), Subject: subjectOf(d), Action: audit.EnrollmentRefused, Outcome: audit.Refused}
	d.MasterKey, d.EnrolledAt = r.NewMasterKey, now
	switch {
	case d.State != postgres.NeedsEnrollment || d.WentBack:
		response.Reason = protocol.RefusedNotBefore
	case !identity.PinnedTo(r.NewMasterKey):
		response.Reason = protocol.RefusedMasterKeyMismatch
	case !stillPinned(identity, d):
		response.Reason = protocol.RefusedNotCrossSigned
	}
	if response.Reason != "" {
		event.Detail = audit.Detail{audit.Word("refusal", response.Reason)}
		return response, errors.Join(s.db.SettleReenrollment(ctx, r.ID, postgres.ReenrollmentVoid), s.db.Append(ctx, event))
	}
	if response.SequenceFloor, err = s.db.LastSequence(ctx, d.UserID); err != nil {
		return response, err
	}
	response.Accepted = true
	if err := s.db.PutDevice(ctx, d); err != nil {
		return response, err
	}
	if err := s.db.SettleReenrollment(ctx, r.ID, postgres.ReenrollmentEnrolled); err != nil {
		return response, err
	}
	event.Action, event.Outcome, event.Detail = audit.DeviceEnrolled, audit.Accepted, enrolledDetail(d)
	return response, s.db.Append(ctx, event)
}
