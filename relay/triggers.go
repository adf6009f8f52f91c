package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// triggerBatch is how many rotations are triggered in one transaction: their messages leave in a few requests, and
// while they do, the next batch is encrypted.
const triggerBatch = 200

// Work sends a trigger for every rotation that is due, unless triggers are frozen. What stops one does not stop the others.
func (s *Session) Work(ctx context.Context) error {
	all := errors.Join(s.tellRevoked(ctx), s.tellCancelled(ctx), s.greet(ctx), s.settleReenrollments(ctx), s.tellRepeats(ctx), s.tellDropped(ctx), s.lookBack(ctx))
	after := uuid.Nil
	for {
		if _, frozen, err := s.db.Frozen(ctx, false); err != nil || frozen {
			return errors.Join(all, err)
		}
		due, err := s.db.DueRotations(ctx, s.now(), s.ackTimeout, after, triggerBatch)
		if err != nil {
			return errors.Join(all, err)
		}
		if len(due) == 0 {
			// Between two batches of users whoever became due meanwhile has his turn.
			more, err := s.verifySome(ctx)
			if err != nil || !more {
				return errors.Join(all, err)
			}
			continue
		}
		// After they were found due: each is held by now if it must be, and is left out when it is locked.
		if err := s.holdUnsigned(ctx); err != nil {
			return errors.Join(all, err)
		}
		s.unverified = append(s.unverified, users(due)...)
		all = errors.Join(all, s.triggerAll(ctx, due))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		after = due[len(due)-1].ID
	}
}

// triggerAll triggers these rotations together. If that fails they are tried by halves, so that the one at fault stays
// alone with its error.
func (s *Session) triggerAll(ctx context.Context, due []postgres.Rotation) error {
	err := s.triggerTogether(ctx, due)
	if err == nil || ctx.Err() != nil || errors.Is(err, postgres.ErrLeaseLost) {
		return err
	}
	if len(due) == 1 {
		if errors.Is(err, todevice.ErrNoOneTimeKey) {
			// It is gone, most likely: then it is found so now, and the rotation is another device's.
			err = errors.Join(err, s.verify(ctx, users(due)))
		}
		return fmt.Errorf("rotation %s: %w", due[0].ID, err)
	}
	middle := len(due) / 2
	return errors.Join(s.triggerAll(ctx, due[:middle]), s.triggerAll(ctx, due[middle:]))
}

// choice is the device that is to act for a rotation, with the keys to encrypt to.
type choice struct {
	device postgres.Device
	keys   crosssigning.Device
}

func (s *Session) triggerTogether(ctx context.Context, due []postgres.Rotation) error {
	keys := ids(due)
	attempts, err := s.db.AttemptsOf(ctx, keys)
	if err != nil {
		return err
	}
	devices, err := s.db.DevicesOf(ctx, users(due))
	if err != nil {
		return err
	}
	chosen := s.choose(due, attempts, devices)
	targets := make([]crosssigning.Device, 0, len(chosen))
	for _, c := range chosen {
		targets = append(targets, c.keys)
	}
	claims, err := s.endpoint.Claim(ctx, false, targets...)
	if err != nil {
		return err
	}
	return s.endpoint.InTxn(ctx, func(ctx context.Context) error { return s.trigger(ctx, keys, chosen, claims) })
}

func ids(rotations []postgres.Rotation) []uuid.UUID {
	keys := make([]uuid.UUID, len(rotations))
	for i, r := range rotations {
		keys[i] = r.ID
	}
	return keys
}

func users(rotations []postgres.Rotation) []id.UserID {
	all := make([]id.UserID, len(rotations))
	for i, r := range rotations {
		all[i] = r.UserID
	}
	return all
}

// choose picks an enrolled device for each rotation; a rotation without one is missing in the answer. Nothing is asked of
// the homeserver: a trigger holds no secret and is encrypted to the keys that were pinned at enrollment.
func (s *Session) choose(due []postgres.Rotation, attempts map[uuid.UUID][]postgres.Attempt, devices map[id.UserID][]postgres.Device) map[uuid.UUID]choice {
	chosen := map[uuid.UUID]choice{}
	for _, r := range due {
		_, untriedOnly := rotation.Due(r.Facts.State, rules(attempts[r.ID]), s.now(), s.ackTimeout)
		tried := map[uuid.UUID]int{}
		for _, a := range attempts[r.ID] {
			tried[a.Device]++
		}
		var candidates []rotation.Candidate
		choices := map[string]choice{}
		for _, d := range devices[r.UserID] {
			if d.State == postgres.Enrolled && (!untriedOnly || tried[d.ID] == 0) {
				candidates = append(candidates, rotation.Candidate{ID: d.ID.String(), LastSeen: d.LastSeen, Tried: tried[d.ID]})
				choices[d.ID.String()] = choice{d, pinned(d)}
			}
		}
		if best, ok := rotation.Choose(candidates); ok {
			chosen[r.ID] = choices[best.ID]
		}
	}
	return chosen
}

// rules are attempts as package rotation sees them.
func rules(attempts []postgres.Attempt) []rotation.Attempt {
	seen := make([]rotation.Attempt, len(attempts))
	for i, a := range attempts {
		seen[i] = rotation.Attempt{Device: a.Device.String(), Stage: a.Stage, Sent: a.SentAt}
	}
	return seen
}

// trigger locks the rotations and looks again, and leaves attempts, messages, states and events behind together. The
// order of locks is that of every Olm transaction: the account, then rotations, then sequences.
func (s *Session) trigger(ctx context.Context, keys []uuid.UUID, chosen map[uuid.UUID]choice, claims todevice.Claims) error {
	if _, frozen, err := s.db.Frozen(ctx, true); err != nil || frozen {
		return err
	}
	locked, err := s.db.LockFreeRotations(ctx, keys)
	if err != nil {
		return err
	}
	attempts, err := s.db.AttemptsOf(ctx, keys)
	if err != nil {
		return err
	}
	devices, err := s.db.DevicesOf(ctx, users(locked))
	if err != nil {
		return err
	}
	also, err := s.db.Excluded(ctx, users(locked))
	if err != nil {
		return err
	}
	marks, err := s.db.HighestMarks(ctx, deviceIDs(chosen))
	if err != nil {
		return err
	}
	now := s.now()
	batch := newTriggers(now)
	for _, r := range locked {
		due, _ := rotation.Due(r.Facts.State, rules(attempts[r.ID]), now, s.ackTimeout)
		c, ok := chosen[r.ID]
		switch {
		case !due || r.Held:
		case ok && enrolled(devices[r.UserID], c.device.ID):
			batch.add(r, c, len(attempts[r.ID])+1, excluded(devices[r.UserID], also[r.UserID]), marks[c.device.ID])
		case !ok && r.Facts.State == rotation.Received:
			batch.wait(r)
		}
	}
	if err := batch.number(ctx, s.db); err != nil {
		return err
	}
	messages := make([]todevice.Outgoing, len(batch.triggers))
	for i, t := range batch.triggers {
		messages[i] = t.message(now)
	}
	if err := s.endpoint.QueueAll(ctx, messages, claims); err != nil {
		return err
	}
	return batch.keep(ctx, s.db)
}

func enrolled(devices []postgres.Device, key uuid.UUID) bool {
	for _, d := range devices {
		if d.ID == key {
			return d.State == postgres.Enrolled
		}
	}
	return false
}

func deviceIDs(chosen map[uuid.UUID]choice) []uuid.UUID {
	keys := make([]uuid.UUID, 0, len(chosen))
	for _, c := range chosen {
		keys = append(keys, c.device.ID)
	}
	return keys
}

// excluded are the user's devices that must not get the next key: the revoked, those whose store may be in two places, and
// those that an admin excluded.
func excluded(devices []postgres.Device, also []id.DeviceID) []id.DeviceID {
	revoked := slices.Clone(also)
	for _, d := range devices {
		if d.State == postgres.Revoked || d.WentBack {
			revoked = append(revoked, d.DeviceID)
		}
	}
	return revoked
}

// triggers is what one transaction leaves behind, gathered so that it is written in a few statements.
type triggers struct {
	now      time.Time
	triggers []trigger
	waiting  []postgres.Rotation
}

type trigger struct {
	rotation postgres.Rotation
	choice   choice
	attempt  postgres.Attempt
	exclude  []id.DeviceID
	reported *protocol.StoreMark
}

func newTriggers(now time.Time) *triggers { return &triggers{now: now} }

func (b *triggers) add(r postgres.Rotation, c choice, number int, exclude []id.DeviceID, reported *protocol.StoreMark) {
	b.triggers = append(b.triggers, trigger{r, c, postgres.Attempt{RotationID: r.ID, Number: number, Device: c.device.ID}, exclude, reported})
}

func (b *triggers) wait(r postgres.Rotation) { b.waiting = append(b.waiting, r) }

// number gives each trigger its sequence.
func (b *triggers) number(ctx context.Context, db *postgres.DB) error {
	if len(b.triggers) == 0 {
		return nil
	}
	pairs := make([]postgres.UserSecret, len(b.triggers))
	for i, t := range b.triggers {
		pairs[i] = postgres.UserSecret{User: t.rotation.UserID, Secret: t.rotation.Secret}
	}
	last, err := db.LockSequences(ctx, pairs)
	if err != nil {
		return err
	}
	for i, pair := range pairs {
		last[pair] = rotation.NextSequence(last[pair], b.now)
		b.triggers[i].attempt.Sequence = last[pair]
	}
	return db.PutSequences(ctx, last)
}

func (t trigger) message(now time.Time) todevice.Outgoing {
	r := t.rotation
	content := triggerOf(r, t.attempt.Number, t.attempt.Sequence, t.exclude, now)
	content.Action, content.Reason, content.Reported = r.Action, string(r.Reason), t.reported
	content.OldBackupGrace, content.ReplaceRecoveryKey = r.OldBackupGrace, r.ReplaceRecovery
	if r.Pending() {
		content.KMS.Version = ""
	}
	return todevice.Outgoing{Key: fmt.Sprintf("trigger/%s/%d", r.ID, t.attempt.Number), To: t.choice.keys, Type: protocol.TypeTrigger.Type, Content: content}
}

// triggerOf is what all triggers of a rotation have.
func triggerOf(r postgres.Rotation, attempt int, sequence int64, exclude []id.DeviceID, now time.Time) protocol.Trigger {
	return protocol.Trigger{RotationID: r.ID, Attempt: attempt, Sequence: sequence, UserID: r.UserID, Secret: r.Secret, KMS: r.KMS, Exclude: exclude,
		IssuedAt: protocol.At(now), ExpiresAt: protocol.At(now.Add(rotation.TriggerLife))}
}

// todeviceRepeat is the word that a rotation's key is to be pushed once more; each has a sequence of its own.
func todeviceRepeat(r postgres.Rotation, attempt int, sequence int64, exclude []id.DeviceID, now time.Time) todevice.Outgoing {
	content := triggerOf(r, attempt, sequence, exclude, now)
	content.Action = protocol.ActionRepeat
	return todevice.Outgoing{Key: fmt.Sprintf("repeat/%s/%d", r.ID, sequence), Type: protocol.TypeTrigger.Type, Content: content}
}

// keep writes attempts, states and events.
func (b *triggers) keep(ctx context.Context, db *postgres.DB) error {
	var events []audit.Event
	var attempts []postgres.Attempt
	var working []postgres.Rotation
	for _, t := range b.triggers {
		attempts, working = append(attempts, t.attempt), append(working, t.rotation)
		events = append(events, audit.Event{Time: b.now, Actor: audit.ByRelay(), Action: audit.TriggerQueued, Subject: subjectOf(t.choice.device), Rotation: t.rotation.ID,
			Outcome: audit.Accepted, Detail: audit.Detail{audit.Number("attempt", t.attempt.Number), audit.Number("sequence", t.attempt.Sequence),
				audit.ID("kms_version", audit.KMSVersion(t.rotation.KMS.Version))}})
	}
	if len(attempts) > 0 {
		if err := db.InsertAttempts(ctx, attempts, b.now); err != nil {
			return err
		}
		if err := db.MoveRotations(ctx, ids(working), rotation.Working, "", b.now); err != nil {
			return err
		}
	}
	for _, r := range b.waiting {
		next := "admin: enroll a managed device of this user (keyherald enroll --user " + string(r.UserID) + ")"
		if r.Facts.Attention == protocol.StoreWentBackwards {
			next = rotation.NextAction(r.Facts.Attention)
		}
		if err := db.MoveRotations(ctx, []uuid.UUID{r.ID}, rotation.WaitingForEnrollment, next, b.now); err != nil {
			return err
		}
		events = append(events, audit.Event{Time: b.now, Actor: audit.ByRelay(), Action: audit.RotationWaiting, Subject: audit.OfUser(r.UserID), Rotation: r.ID, Outcome: audit.Accepted})
	}
	return db.Append(ctx, events...)
}
