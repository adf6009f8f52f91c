package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// wrongTries burn a code.
const wrongTries = 5

// Revoke ends a device's enrollment; a reason may be given. The bot tells the device when it next holds the lease; what
// else is to be done is for the admin, and Revoke's callers say so.
func (e *Engine) Revoke(ctx context.Context, user id.UserID, device id.DeviceID, reason string, actor audit.Actor) error {
	event := audit.Event{Actor: actor, Action: audit.DeviceRevoked, Subject: audit.OfDevice(user, device), Outcome: audit.Accepted}
	return refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		event.Time = e.now()
		if reason != "" {
			why, err := refusal.Reason(reason)
			if err != nil {
				return err
			}
			event.Detail = audit.Detail{audit.Text("reason", why)}
		}
		devices, err := e.db.Devices(ctx, user)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(devices, func(d postgres.Device) bool { return d.UserID == user && d.DeviceID == device })
		if i < 0 {
			return refusal.New(refusal.NotFound, audit.RefusedUnknownDevice, "%s has no enrolled device %s: `keyherald devices list` shows them", user, device)
		}
		d, err := e.db.LockDevice(ctx, devices[i].ID)
		if err != nil {
			return err
		}
		if d.State == postgres.Revoked {
			return refusal.New(refusal.Conflict, audit.RefusedAlreadySo, "%s of %s is revoked already: %w", device, user, ErrNotPossible)
		}
		if err := e.db.RevokeDevices(ctx, []postgres.Device{d}); err != nil {
			return err
		}
		if err := e.db.Append(ctx, event); err != nil {
			return err
		}
		if err := errors.Join(e.turnAway(ctx, []postgres.Device{d}, event.Detail...), e.takeAway(ctx, d, "")); err != nil {
			return err
		}
		return e.db.Notify(ctx, WorkChannel, "")
	})
}

// takeAway makes the open rotations that a device was working on due again, since it is enrolled no more: another device
// acts, or none. The cause, if there is one, stands until a device accepts the rotation.
func (e *Engine) takeAway(ctx context.Context, d postgres.Device, cause protocol.ErrorCode) error {
	return e.ofDevice(ctx, d, func(r postgres.Rotation, _ []postgres.Attempt) error {
		r.Facts.State, r.Facts.Attention, r.NextAction = rotation.Received, cause, ""
		if cause != "" {
			r.NextAction = rotation.NextAction(cause)
		}
		if err := e.db.UpdateRotation(ctx, r, e.now()); err != nil {
			return err
		}
		return e.db.Append(ctx, audit.Event{Time: e.now(), Actor: audit.ByRelay(), Action: audit.RotationReassigned, Subject: audit.OfUser(r.UserID), Rotation: r.ID,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.ID("from", d.DeviceID)}})
	})
}

// ofDevice locks the open rotations that a device works on, newest first, and hands each over with its attempts: the last
// one is the device's.
func (e *Engine) ofDevice(ctx context.Context, d postgres.Device, do func(r postgres.Rotation, attempts []postgres.Attempt) error) error {
	open, err := e.db.Rotations(ctx, d.UserID, true)
	if err != nil {
		return err
	}
	for _, candidate := range open {
		r, ok, err := e.db.LockRotation(ctx, candidate.ID)
		if err != nil {
			return err
		}
		attempts, err := e.db.Attempts(ctx, candidate.ID)
		if err != nil {
			return err
		}
		if !ok || r.Facts.State != rotation.Working || len(attempts) == 0 || attempts[len(attempts)-1].Device != d.ID {
			continue
		}
		if err := do(r, attempts); err != nil {
			return err
		}
	}
	return nil
}

// verdict is what becomes of a request to be enrolled: the device where it is accepted, else why not.
type verdict struct {
	device  postgres.Device
	refusal protocol.Refusal
	// grant is the one that it is about; zero for none.
	grant uuid.UUID
	// repeated is an answer that changes nothing, or whose event stands elsewhere.
	repeated bool
}

func (s *Session) enroll(ctx context.Context, message *todevice.Message) error {
	var request protocol.EnrollRequest
	if json.Unmarshal(message.Content, &request) != nil || request.Validate() != nil {
		return s.unusable(ctx, message, audit.RefusedMalformedEnrollment)
	}
	now := s.now()
	judge := s.byCode
	switch {
	case request.Again:
		judge = s.again
	case request.Proof != nil:
		judge = s.byProof
	}
	v, err := judge(ctx, message, request, now)
	if err != nil {
		return err
	}
	response := protocol.EnrollResponse{Accepted: v.refusal == "", Reason: v.refusal, UserMasterKey: request.UserMasterKey, Again: request.Again, RequestID: request.RequestID}
	event := audit.Event{Time: now, Actor: audit.ByDevice(message.Sender, request.DeviceID), Subject: audit.OfDevice(message.Sender, request.DeviceID)}
	if v.refusal == "" {
		if response.SequenceFloor, err = s.db.LastSequence(ctx, message.Sender); err != nil {
			return err
		}
		event.Action, event.Outcome, event.Detail = audit.DeviceEnrolled, audit.Accepted, enrolledDetail(v.device)
	} else {
		event.Action, event.Outcome, event.Detail = audit.EnrollmentRefused, audit.Refused, audit.Detail{audit.Word("refusal", v.refusal)}
		if request.Proof != nil {
			event.Action, event.Detail = audit.GrantRefused, append(event.Detail, audit.Word("proof_type", request.Proof.Type))
		}
		if v.grant != uuid.Nil {
			event.Detail = append(event.Detail, audit.ID("grant", v.grant))
		}
	}
	if !v.repeated {
		if err := s.db.Append(ctx, event); err != nil {
			return err
		}
	}
	// The answer goes to the keys the request came with: the Olm session is there, so no key is claimed.
	to := crosssigning.Device{UserID: message.Sender, DeviceID: request.DeviceID, IdentityKey: message.SenderKey, SigningKey: message.SenderSigningKey}
	err = s.endpoint.Queue(ctx, todevice.Outgoing{Key: "enroll/" + message.ID, To: to, Type: protocol.TypeEnrollResponse.Type, Content: response}, nil)
	if err != nil {
		return err
	}
	return s.db.Notify(ctx, WorkChannel, "")
}

func enrolledDetail(d postgres.Device) audit.Detail {
	return audit.Detail{audit.Fingerprint("signing_key_sha256", d.SigningKey), audit.Fingerprint("master_key_sha256", d.MasterKey), audit.ID("device", d.ID)}
}

// byCode decides on an enrollment by a code and, if it is accepted, keeps the device. The order matters: a wrong code is
// counted before anything else is looked at, so that nothing can be probed without a code.
func (s *Session) byCode(ctx context.Context, message *todevice.Message, request protocol.EnrollRequest, now time.Time) (verdict, error) {
	code, ok, err := s.db.LockCode(ctx, protocol.HashCode(request.Code))
	if err != nil {
		return verdict{}, err
	}
	if !ok {
		burned, err := s.db.WrongTry(ctx, message.Sender, now, wrongTries)
		if err == nil && burned > 0 {
			err = s.db.Append(ctx, audit.Event{Time: now, Actor: audit.BySender(message.Sender), Action: audit.CodeBurned, Subject: audit.OfUser(message.Sender),
				Outcome: audit.Refused, Detail: audit.Detail{audit.Word("refusal", audit.RefusedWrongTries), audit.Number("codes", burned)}})
		}
		return verdict{refusal: protocol.RefusedCodeUnknown}, err
	}
	existing, known, err := s.db.DeviceByKey(ctx, message.Sender, message.SenderKey)
	if err != nil {
		return verdict{}, err
	}
	switch {
	case code.UserID != message.Sender:
		return verdict{refusal: protocol.RefusedOtherUser}, nil
	case code.Burned:
		return verdict{refusal: protocol.RefusedCodeBurned}, nil
	case code.UsedBy != uuid.Nil && known && existing.ID == code.UsedBy && existing.State == postgres.Enrolled:
		return verdict{device: existing, repeated: true}, nil
	case code.UsedBy != uuid.Nil:
		return verdict{refusal: protocol.RefusedCodeUsed}, nil
	case !now.Before(code.ExpiresAt):
		return verdict{refusal: protocol.RefusedCodeExpired}, nil
	}
	if why := s.fits(message, request); why != "" {
		return verdict{refusal: why}, nil
	}
	device, why, err := s.keep(ctx, message, request, now)
	if err != nil || why != "" {
		return verdict{refusal: why}, err
	}
	return verdict{device: device}, errors.Join(s.db.DropReenrollment(ctx, device.ID), s.db.UseCode(ctx, code.ID, device.ID))
}

// fits says what of a request does not fit its sender, as the homeserver has signed him; empty where all of it does.
func (s *Session) fits(message *todevice.Message, request protocol.EnrollRequest) protocol.Refusal {
	if request.ProtocolVersion != protocol.Version {
		return protocol.RefusedProtocolVersion
	}
	if request.BotUserID != s.bot || request.BotMasterKey != s.masterKey {
		return protocol.RefusedWrongBot
	}
	signed, ok := message.SenderDevice()
	switch {
	case !ok || signed.DeviceID != request.DeviceID || request.IdentityKey != message.SenderKey || request.SigningKey != message.SenderSigningKey:
		return protocol.RefusedKeysMismatch
	case !message.Identity.PinnedTo(request.UserMasterKey):
		return protocol.RefusedMasterKeyMismatch
	case !signed.CrossSigned || signed.Dehydrated:
		return protocol.RefusedNotCrossSigned
	}
	return ""
}

// keep makes the device an enrolled one, unless another with other keys has its id.
func (s *Session) keep(ctx context.Context, message *todevice.Message, request protocol.EnrollRequest, now time.Time) (postgres.Device, protocol.Refusal, error) {
	var none postgres.Device
	deviceID, err := uuid.NewV7()
	if err != nil {
		return none, "", fmt.Errorf("making a device's id: %w", err)
	}
	devices, err := s.db.Devices(ctx, message.Sender)
	if err != nil {
		return none, "", err
	}
	for _, d := range devices {
		if d.DeviceID != request.DeviceID {
			continue
		}
		// Locked, since it may be revoked meanwhile: codes before devices, as Leave locks them.
		if d, err = s.db.LockDevice(ctx, d.ID); err != nil {
			return none, "", err
		}
		if d.WentBack {
			return none, protocol.RefusedStoreWentBack, nil
		}
		// The same device may enroll again with a fresh code, after its user's identity was reset. Other keys under its
		// id are not it, and what was revoked stays so.
		if d.IdentityKey != message.SenderKey || d.SigningKey != message.SenderSigningKey || d.State == postgres.Revoked {
			return none, protocol.RefusedIdentityKeyChanged, nil
		}
		deviceID = d.ID
	}
	device := postgres.Device{ID: deviceID, UserID: message.Sender, DeviceID: request.DeviceID, IdentityKey: message.SenderKey,
		SigningKey: message.SenderSigningKey, MasterKey: request.UserMasterKey, Name: request.Name, SoftwareVersion: request.SoftwareVersion, EnrolledAt: now}
	return device, "", s.db.PutDevice(ctx, device)
}
