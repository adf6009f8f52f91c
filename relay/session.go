package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/sabotage"
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
		if json.Unmarshal(message.Content, &status) != nil || status.Validate() != nil {
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

// Sent records what the homeserver said of messages, in the transaction that marks them in the outbox.
func (s *Session) Sent(ctx context.Context, keys []string, refusal string) error {
	now := s.now()
	var taken []postgres.Attempt
	var events []audit.Event
	for _, key := range keys {
		kind, rest, _ := strings.Cut(key, "/")
		if kind != "trigger" {
			continue
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
		event := audit.Event{Time: now, Actor: "relay", Action: audit.TriggerSent, Subject: string(s.bot), Rotation: rotationID,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("attempt", attempt)}}
		if refusal != "" {
			event.Action, event.Outcome = audit.TriggerRefused, audit.Refused
			if err := s.refused(ctx, rotationID); err != nil {
				return err
			}
		} else {
			taken = append(taken, postgres.Attempt{RotationID: rotationID, Number: attempt})
		}
		events = append(events, event)
	}
	if len(taken) > 0 {
		if err := s.db.AttemptsSent(ctx, taken, now); err != nil {
			return err
		}
	}
	if sabotage.EventLeftOut {
		return nil
	}
	return s.db.Append(ctx, events...)
}

// refused marks a rotation whose trigger the homeserver will not take: nobody works on it, and somebody must look.
func (s *Session) refused(ctx context.Context, rotationID uuid.UUID) error {
	r, ok, err := s.db.LockRotation(ctx, rotationID)
	if err != nil || !ok || r.Facts.State.Ended() {
		return err
	}
	r.Facts.Attention, r.NextAction = protocol.AttentionTriggerRefused, rotation.NextAction(protocol.AttentionTriggerRefused)
	return s.db.UpdateRotation(ctx, r, s.now())
}
