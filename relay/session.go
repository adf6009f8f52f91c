package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// Session is the engine while this replica holds the bot: it reads what devices send and writes what they are to do.
type Session struct {
	*Engine
	endpoint *todevice.Endpoint
}

// Session binds the engine to the bot's endpoint, whose fence is the bot's lease.
func (e *Engine) Session(endpoint *todevice.Endpoint) *Session { return &Session{e, endpoint} }

// Admit drops what is not encrypted, and what comes from users who have nothing to do with us, before decryption.
func (s *Session) Admit(ctx context.Context, envelope todevice.Envelope) (todevice.Admission, error) {
	if envelope.Type != event.ToDeviceEncrypted.Type {
		return todevice.Admission{Drop: "not encrypted"}, nil
	}
	known, err := s.db.Knows(ctx, envelope.Sender, s.now())
	if err != nil {
		return todevice.Admission{}, err
	}
	if !known {
		return todevice.Admission{Drop: "the sender has neither an enrollment nor an open code"}, nil
	}
	var content struct {
		SenderKey id.Curve25519 `json:"sender_key"`
	}
	_ = json.Unmarshal(envelope.Content, &content)
	device, enrolled, err := s.db.DeviceByKey(ctx, envelope.Sender, content.SenderKey)
	if err != nil {
		return todevice.Admission{}, err
	}
	// An enrolled device's keys are pinned: its messages need no word from the homeserver, unless it may be enrolling
	// again, after its user's identity was reset.
	enrolling, err := s.db.HasOpenCode(ctx, envelope.Sender, s.now())
	return todevice.Admission{Identity: !enrolled || enrolling || device.State != postgres.Enrolled}, err
}

// Undecryptable audits what could not be read.
func (s *Session) Undecryptable(ctx context.Context, envelope todevice.Envelope, _ string) error {
	return s.db.Append(ctx, audit.Event{Time: s.now(), Actor: string(envelope.Sender), Action: audit.MessageUndecryptable,
		Subject: string(envelope.Sender), Outcome: audit.Refused, Detail: audit.Detail{audit.ID("envelope", envelope.ID)}})
}

// Handle acts on one message from a device, in the transaction of its decryption.
func (s *Session) Handle(ctx context.Context, message *todevice.Message) error {
	if message.Type == protocol.TypeEnrollRequest.Type {
		return s.enroll(ctx, message)
	}
	device, ok, err := s.db.DeviceByKey(ctx, message.Sender, message.SenderKey)
	if err != nil {
		return err
	}
	if !ok || device.SigningKey != message.SenderSigningKey || device.State != postgres.Enrolled {
		return s.unusable(ctx, message, "not_enrolled")
	}
	switch message.Type {
	case protocol.TypeProgress.Type:
		var report protocol.Progress
		if json.Unmarshal(message.Content, &report) != nil || report.Validate() != nil {
			return s.unusable(ctx, message, "malformed_progress")
		}
		return s.progress(ctx, device, report)
	case protocol.TypeStatus.Type:
		var status protocol.Status
		if json.Unmarshal(message.Content, &status) != nil || status.ReportID == uuid.Nil {
			return s.unusable(ctx, message, "malformed_status")
		}
		return s.status(ctx, device, status, message.Content)
	case event.ToDeviceDummy.Type:
		return nil
	default:
		return s.unusable(ctx, message, "unknown_type")
	}
}

// unusable audits a message and tells the endpoint to put it away: the audit event must commit, so it is no rollback.
func (s *Session) unusable(ctx context.Context, message *todevice.Message, reason string) error {
	err := s.db.Append(ctx, audit.Event{Time: s.now(), Actor: string(message.Sender), Action: audit.MessageUnusable,
		Subject: string(message.Sender), Outcome: audit.Refused,
		Detail: audit.Detail{audit.ID("envelope", message.ID), audit.Word("reason", reason)}})
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", todevice.ErrUnusable, reason)
}

// Sent records what the homeserver said of a message, in the transaction that marks it in the outbox.
func (s *Session) Sent(ctx context.Context, key, refusal string) error {
	kind, rest, _ := strings.Cut(key, "/")
	if kind != "trigger" {
		return nil
	}
	rotationKey, number, _ := strings.Cut(rest, "/")
	rotationID, err := uuid.Parse(rotationKey)
	if err != nil {
		return fmt.Errorf("reading outbox key %q: %w", key, err)
	}
	attempt, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("reading outbox key %q: %w", key, err)
	}
	now := s.now()
	event := audit.Event{Time: now, Actor: "relay", Action: audit.TriggerSent, Subject: string(s.bot), Rotation: rotationID,
		Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("attempt", attempt)}}
	if refusal != "" {
		event.Action, event.Outcome = audit.TriggerRefused, audit.Refused
	} else if err := s.db.AttemptSent(ctx, rotationID, attempt, now); err != nil {
		return err
	}
	return s.db.Append(ctx, event)
}

// Work sends a trigger for every rotation that is due, unless triggers are frozen. An error on one does not stop the others.
func (s *Session) Work(ctx context.Context) error {
	all := errors.Join(s.tellRevoked(ctx), s.tellCancelled(ctx))
	if _, frozen, err := s.db.Frozen(ctx, false); err != nil || frozen {
		return errors.Join(all, err)
	}
	open, err := s.db.Rotations(ctx, "", true)
	if err != nil {
		return errors.Join(all, err)
	}
	for i := len(open) - 1; i >= 0; i-- {
		if err := s.advance(ctx, open[i]); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			all = errors.Join(all, fmt.Errorf("rotation %s: %w", open[i].ID, err))
		}
	}
	return all
}

// advance triggers a device for a rotation that is due, or finds that nobody can act.
func (s *Session) advance(ctx context.Context, r postgres.Rotation) error {
	attempts, err := s.db.Attempts(ctx, r.ID)
	if err != nil {
		return err
	}
	due, untriedOnly := rotation.Due(r.Facts.State, rules(attempts), s.now(), s.ackTimeout)
	if !due {
		return nil
	}
	devices, err := s.db.Devices(ctx, r.UserID)
	if err != nil {
		return err
	}
	device, keys, err := s.choose(ctx, devices, attempts, untriedOnly)
	if err != nil {
		return err
	}
	if device == nil {
		if r.Facts.State != rotation.Received {
			return nil
		}
		return s.db.Txn(ctx, func(ctx context.Context) error {
			locked, ok, err := s.db.LockRotation(ctx, r.ID)
			if err != nil || !ok || locked.Facts.State != rotation.Received {
				return err
			}
			locked.Facts.State = rotation.WaitingForEnrollment
			locked.NextAction = "admin: enroll a managed device of this user (keyherald enroll --user " + string(r.UserID) + ")"
			return s.db.UpdateRotation(ctx, locked, s.now())
		})
	}
	claims, err := s.endpoint.Claim(ctx, false, keys)
	if err != nil {
		return err
	}
	return s.endpoint.InTxn(ctx, func(ctx context.Context) error { return s.trigger(ctx, r.ID, *device, keys, claims) })
}

// rules are attempts as package rotation sees them.
func rules(attempts []postgres.Attempt) []rotation.Attempt {
	seen := make([]rotation.Attempt, len(attempts))
	for i, a := range attempts {
		seen[i] = rotation.Attempt{Device: a.Device.String(), Stage: a.Stage, Sent: a.SentAt}
	}
	return seen
}

// choose picks an enrolled device whose keys and cross-signing still are what was pinned; nil if there is none.
func (s *Session) choose(ctx context.Context, devices []postgres.Device, attempts []postgres.Attempt, untriedOnly bool) (*postgres.Device, crosssigning.Device, error) {
	tried := map[uuid.UUID]int{}
	for _, a := range attempts {
		tried[a.Device]++
	}
	var candidates []rotation.Candidate
	byID := map[string]postgres.Device{}
	for _, d := range devices {
		if d.State == postgres.Enrolled && (!untriedOnly || tried[d.ID] == 0) {
			candidates = append(candidates, rotation.Candidate{ID: d.ID.String(), LastSeen: d.LastSeen, Tried: tried[d.ID]})
			byID[d.ID.String()] = d
		}
	}
	if len(candidates) == 0 {
		return nil, crosssigning.Device{}, nil
	}
	identities, err := s.endpoint.Identities(ctx, devices[0].UserID)
	if err != nil {
		return nil, crosssigning.Device{}, err
	}
	for len(candidates) > 0 {
		choice, _ := rotation.Choose(candidates)
		d := byID[choice.ID]
		identity := identities[d.UserID]
		keys, ok := identity.Devices[d.DeviceID]
		if ok && identity.PinnedTo(d.MasterKey) && keys.CrossSigned && keys.IdentityKey == d.IdentityKey && keys.SigningKey == d.SigningKey {
			return &d, keys, nil
		}
		err := s.db.Txn(ctx, func(ctx context.Context) error {
			if err := s.db.SetDeviceState(ctx, d.ID, postgres.NeedsEnrollment); err != nil {
				return err
			}
			return s.db.Append(ctx, audit.Event{Time: s.now(), Actor: "relay", Action: audit.EnrollmentRefused, Subject: actorOf(d),
				Outcome: audit.Refused, Detail: audit.Detail{audit.Word("reason", "identity_changed_or_not_cross_signed")}})
		})
		if err != nil {
			return nil, crosssigning.Device{}, err
		}
		candidates = slices.DeleteFunc(candidates, func(c rotation.Candidate) bool { return c.ID == choice.ID })
	}
	return nil, crosssigning.Device{}, nil
}

func (s *Session) trigger(ctx context.Context, rotationID uuid.UUID, device postgres.Device, keys crosssigning.Device, claims todevice.Claims) error {
	if _, frozen, err := s.db.Frozen(ctx, true); err != nil || frozen {
		return err
	}
	r, ok, err := s.db.LockRotation(ctx, rotationID)
	if err != nil || !ok {
		return err
	}
	attempts, err := s.db.Attempts(ctx, rotationID)
	if err != nil {
		return err
	}
	now := s.now()
	// Under the lock it may look otherwise: a report came in, or another transaction triggered a device.
	if due, _ := rotation.Due(r.Facts.State, rules(attempts), now, s.ackTimeout); !due {
		return nil
	}
	sequence, err := s.db.NextSequence(ctx, r.UserID, r.Secret, 0, now)
	if err != nil {
		return err
	}
	attempt := postgres.Attempt{RotationID: r.ID, Number: len(attempts) + 1, Device: device.ID, Sequence: sequence}
	if err := s.db.InsertAttempt(ctx, attempt, now); err != nil {
		return err
	}
	exclude, err := s.excluded(ctx, r.UserID)
	if err != nil {
		return err
	}
	err = s.endpoint.Queue(ctx, todevice.Outgoing{
		Key:  fmt.Sprintf("trigger/%s/%d", r.ID, attempt.Number),
		To:   keys,
		Type: protocol.TypeTrigger.Type,
		Content: protocol.Trigger{
			RotationID: r.ID, Attempt: attempt.Number, Sequence: sequence, UserID: r.UserID, Secret: r.Secret, Action: protocol.ActionPush,
			KMS: r.KMS, Exclude: exclude, IssuedAt: protocol.At(now), ExpiresAt: protocol.At(now.Add(rotation.TriggerLife)),
		},
	}, claims)
	if err != nil {
		return err
	}
	r.Facts.State, r.NextAction = rotation.Working, ""
	if err := s.db.UpdateRotation(ctx, r, now); err != nil {
		return err
	}
	return s.db.Append(ctx, audit.Event{Time: now, Actor: "relay", Action: audit.TriggerQueued, Subject: actorOf(device), Rotation: r.ID,
		Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("attempt", attempt.Number), audit.Number("sequence", sequence), audit.ID("kms_version", r.KMS.Version)}})
}

// excluded are the user's revoked devices: they must not get the next key.
func (s *Session) excluded(ctx context.Context, user id.UserID) ([]id.DeviceID, error) {
	devices, err := s.db.Devices(ctx, user)
	if err != nil {
		return nil, err
	}
	var excluded []id.DeviceID
	for _, d := range devices {
		if d.State == postgres.Revoked {
			excluded = append(excluded, d.DeviceID)
		}
	}
	return excluded, nil
}
