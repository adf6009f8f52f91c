package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/sabotage"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// strangersPerMinute is how many messages of users who have neither a device nor had a code are decrypted in a minute
// while a code is open: enough to tell somebody that his code is another user's, and no flood of the log.
const strangersPerMinute = 60

// grantedPerMinute is how many messages of a user who has no device and may enroll by a grant are decrypted in a minute, and
// allGrantedPerMinute how many of all such users together: a fleet may come at once, and the accounts of a company are not
// an attacker's to make. A message costs well under a millisecond.
const (
	grantedPerMinute    = 10
	allGrantedPerMinute = 3000
)

// Session is the engine while this replica holds the bot: it reads what devices send and writes what they are to do.
type Session struct {
	*Engine
	endpoint *todevice.Endpoint

	// unverified are users who were triggered and whose devices were not looked at since; lookedBack tells that those whom an
	// earlier lease triggered are among them. Work alone uses both.
	unverified []id.UserID
	lookedBack bool

	mu        sync.Mutex // guards the rest
	minute    time.Time
	strangers int
	// granted counts by users, in the same minute, allGranted all of them.
	granted    map[id.UserID]int
	allGranted int
	// looks are messages that are to be handled with their sender looked up.
	looks map[string]bool
	told  time.Time // the minute of the last look at what was dropped
	// moved are rotations that reports changed, of which MovedChannel was not told yet.
	moved map[uuid.UUID]bool
}

// Session binds the engine to the bot's endpoint, whose fence is the bot's lease.
func (e *Engine) Session(endpoint *todevice.Endpoint) *Session {
	return &Session{Engine: e, endpoint: endpoint, granted: map[id.UserID]int{}, looks: map[string]bool{}, moved: map[uuid.UUID]bool{}}
}

// Admit drops what is not encrypted, and what comes from users who have nothing to do with us, before decryption.
// tellDropped counts in the audit log what was dropped.
func (s *Session) Admit(ctx context.Context, envelope todevice.Envelope) (todevice.Admission, error) {
	drop := func(why audit.Refusal) (todevice.Admission, error) {
		return todevice.Admission{Drop: string(why)}, nil
	}
	if envelope.Type != event.ToDeviceEncrypted.Type {
		return drop(audit.RefusedNotEncrypted)
	}
	ours, anyone, err := s.db.Knows(ctx, envelope.Sender, s.now())
	if err != nil {
		return todevice.Admission{}, err
	}
	var grants []postgres.Grant
	if !ours {
		if grants, err = s.grantsFor(ctx, envelope.Sender); err != nil {
			return todevice.Admission{}, err
		}
	}
	switch {
	case ours:
	case len(grants) > 0 && !s.mayGranted(envelope.Sender):
		return drop(audit.RefusedTooMany)
	case len(grants) > 0:
	case !anyone:
		return drop(audit.RefusedUnknownSender)
	case !s.mayStranger():
		return drop(audit.RefusedTooMany)
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
	if err != nil {
		return todevice.Admission{}, err
	}
	if ours && !enrolled {
		if grants, err = s.grantsFor(ctx, envelope.Sender); err != nil {
			return todevice.Admission{}, err
		}
	}
	s.ready(ctx, grants)
	return todevice.Admission{Identity: !enrolled || enrolling || device.State != postgres.Enrolled || s.looked(envelope.ID)}, nil
}

// looked reports whether a message is to be handled with its sender looked up, once.
func (s *Session) looked(envelope string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.looks[envelope]
	delete(s.looks, envelope)
	return asked
}

// mayGranted counts one message of a user who may enroll by a grant, and reports whether it may be decrypted.
func (s *Session) mayGranted(user id.UserID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	s.granted[user]++
	s.allGranted++
	return s.granted[user] <= grantedPerMinute && s.allGranted <= allGrantedPerMinute
}

// turn begins another minute's counts. The caller holds the lock.
func (s *Session) turn() {
	if minute := s.now().Truncate(time.Minute); !minute.Equal(s.minute) {
		s.minute, s.strangers, s.allGranted = minute, 0, 0
		clear(s.granted)
	}
}

// mayStranger counts one message of a stranger, and reports whether it may be decrypted.
func (s *Session) mayStranger() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	s.strangers++
	return s.strangers <= strangersPerMinute
}

// tellDropped counts in the audit log, once a minute, the messages that were dropped in minutes that are over.
func (s *Session) tellDropped(ctx context.Context) error {
	now := s.now()
	minute := now.Truncate(time.Minute)
	s.mu.Lock()
	told := s.told.Equal(minute)
	s.mu.Unlock()
	if told {
		return nil
	}
	err := s.db.Txn(ctx, func(ctx context.Context) error {
		dropped, err := s.db.CountDropped(ctx, minute)
		if err != nil {
			return err
		}
		events := make([]audit.Event, len(dropped))
		for i, d := range dropped {
			events[i] = audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.MessageDropped, Subject: audit.OfMessages(), Outcome: audit.Refused,
				Detail: audit.Detail{audit.Word("refusal", audit.Refusal(d.Reason)), audit.Time("minute", d.Minute), audit.Number("count", d.Count)}}
		}
		return s.db.Append(ctx, events...)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = minute
	return nil
}

// Unwedged audits that a new Olm session with a device is opened.
func (s *Session) Unwedged(ctx context.Context, device crosssigning.Device) error {
	return s.db.Append(ctx, audit.Event{Time: s.now(), Actor: audit.ByRelay(), Action: audit.SessionReopened, Subject: audit.OfDevice(device.UserID, device.DeviceID), Outcome: audit.Accepted})
}

// Undecryptable audits what could not be read.
func (s *Session) Undecryptable(ctx context.Context, envelope todevice.Envelope, _ string) error {
	return s.db.Append(ctx, audit.Event{Time: s.now(), Actor: audit.BySender(envelope.Sender), Action: audit.MessageUndecryptable,
		Subject: audit.OfUser(envelope.Sender), Outcome: audit.Refused, Detail: audit.Detail{audit.Word("refusal", audit.RefusedUndecryptable), envelopeID(envelope)}})
}

// envelopeID names a message by the id that it has in the inbox.
func envelopeID(envelope todevice.Envelope) audit.Field {
	parsed, _ := uuid.Parse(envelope.ID)
	return audit.ID("envelope", parsed)
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
		return s.unusable(ctx, message, audit.RefusedNotEnrolled)
	}
	switch message.Type {
	case protocol.TypeProgress.Type:
		var report protocol.Progress
		if json.Unmarshal(message.Content, &report) != nil || report.Validate() != nil {
			return s.unusable(ctx, message, audit.RefusedMalformedProgress)
		}
		return s.progress(ctx, device, report)
	case protocol.TypeStatus.Type:
		var status protocol.Status
		if json.Unmarshal(message.Content, &status) != nil || status.Validate() != nil {
			return s.unusable(ctx, message, audit.RefusedMalformedStatus)
		}
		return s.status(ctx, device, status, message.Content)
	case event.ToDeviceDummy.Type:
		if !message.Began {
			return nil
		}
		return s.triggerUnread(ctx, device)
	default:
		return s.unusable(ctx, message, audit.RefusedUnknownType)
	}
}

// hasMoved keeps for Handled that a report changed a rotation. If its transaction rolls back, somebody looks in vain.
func (s *Session) hasMoved(key uuid.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[key] = true
}

// Handled tells MovedChannel what the messages changed that were handled. A NOTIFY in each report's transaction would let
// these commit one at a time, with those of the intake; one for all that had arrived together costs a commit, and where
// it is lost, or they are many and it is late, who watches looks every second.
func (s *Session) Handled(ctx context.Context) error {
	s.mu.Lock()
	names := make([]string, 0, len(s.moved))
	for key := range s.moved {
		names = append(names, key.String())
	}
	clear(s.moved)
	s.mu.Unlock()
	switch {
	case len(names) == 0:
		return nil
	case len(names) > maxMoved:
		names = nil
	}
	return s.db.Notify(ctx, MovedChannel, strings.Join(names, " "))
}

// unusable audits a message and tells the endpoint to put it away: the audit event must commit, so it is no rollback.
func (s *Session) unusable(ctx context.Context, message *todevice.Message, why audit.Refusal) error {
	err := s.db.Append(ctx, audit.Event{Time: s.now(), Actor: audit.BySender(message.Sender), Action: audit.MessageUnusable,
		Subject: audit.OfUser(message.Sender), Outcome: audit.Refused,
		Detail: audit.Detail{audit.Word("refusal", why), envelopeID(message.Envelope)}})
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", todevice.ErrUnusable, why)
}

// Sent records what the homeserver said of messages, in the transaction that marks them in the outbox.
func (s *Session) Sent(ctx context.Context, keys []string, refusal string) error {
	now := s.now()
	var taken []postgres.Attempt
	var events []audit.Event
	for _, key := range keys {
		kind, rest, _ := strings.Cut(key, "/")
		if kind != "trigger" {
			if refusal != "" {
				events = append(events, audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.MessageRefused, Subject: audit.OfUser(s.bot), Outcome: audit.Refused,
					Detail: audit.Detail{audit.Word("refusal", audit.RefusedByHomeserver), audit.Word("message", audit.Message(kind))}})
			}
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
		event := audit.Event{Time: now, Actor: audit.ByRelay(), Action: audit.TriggerSent, Subject: audit.OfUser(s.bot), Rotation: rotationID,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("attempt", attempt)}}
		if refusal != "" {
			event.Action, event.Outcome, event.Detail = audit.TriggerRefused, audit.Refused, append(event.Detail, audit.Word("refusal", audit.RefusedByHomeserver))
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
