package device

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// Handle acts on one message, in the transaction of its decryption.
func (a *Account) Handle(ctx context.Context, message *todevice.Message) error {
	if err := a.noteBegun(ctx, message); err != nil {
		return err
	}
	switch message.Type {
	case protocol.TypeTrigger.Type:
		return a.trigger(ctx, message)
	case protocol.TypeCancel.Type:
		return a.cancel(ctx, message)
	case protocol.TypeEnrollResponse.Type:
		return a.reenrolled(ctx, message)
	case protocol.TypeRevoked.Type:
		return a.revoked(ctx, message)
	case string(msc4385.FormSend), string(msc4385.FormPush):
		return a.receive(ctx, message)
	case event.ToDeviceSecretRequest.Type:
		return a.requested(ctx, message)
	case event.ToDeviceDummy.Type:
		return a.greeting(ctx, message)
	}
	// Room keys, dummies and whatever else a client sends its user's devices: read, and let go.
	return nil
}

// noteBegun notices a device of the user that began an Olm session with this one.
func (a *Account) noteBegun(ctx context.Context, message *todevice.Message) error {
	if !message.Began || message.Sender != a.config.UserID {
		return nil
	}
	p, err := a.pin(ctx)
	if err != nil || !p.Accepted || !message.Identity.PinnedTo(p.OwnMasterKey) {
		return err
	}
	sender, known := message.SenderDevice()
	if !known || !sender.CrossSigned {
		return nil
	}
	return a.began(ctx, sender)
}

// greeting is an empty message: from the pinned bot it says which of its devices reports go to now, since a restored
// server speaks through a new one. Where it begins an Olm session, the bot may have been unable to read what it was sent.
func (a *Account) greeting(ctx context.Context, message *todevice.Message) error {
	p, err := a.pin(ctx)
	if err != nil || !a.fromPinnedBot(message, p) {
		return err
	}
	if p.Accepted {
		if err := a.learnBot(ctx, message); err != nil {
			return err
		}
	}
	if !message.Began {
		return nil
	}
	bot, _ := message.SenderDevice()
	n, err := a.endpoint.QueueAgain(ctx, bot, func(eventType string, content []byte) bool {
		if p.Accepted {
			return eventType == protocol.TypeStatus.Type || eventType == protocol.TypeProgress.Type
		}
		// Then it is told nothing but that the device asks to be enrolled again, if it does.
		var request protocol.EnrollRequest
		return p.Asked != "" && eventType == protocol.TypeEnrollRequest.Type && json.Unmarshal(content, &request) == nil && request.UserMasterKey == p.Asked
	})
	if n > 0 {
		a.log.Warn().Int("messages", n).Msg("The server could not read a message: what it was told in the last day is sent again")
	}
	return err
}

// learnBot keeps the device of the bot that this message came from.
func (a *Account) learnBot(ctx context.Context, message *todevice.Message) error {
	sender, _ := message.SenderDevice()
	encoded, err := json.Marshal(sender)
	if err != nil {
		return fmt.Errorf("keeping the bot's device: %w", err)
	}
	if err := a.store.set(ctx, "bot_keys", string(encoded)); err != nil {
		return err
	}
	return a.store.set(ctx, "bot_device", sender.DeviceID.String())
}

func (a *Account) trigger(ctx context.Context, message *todevice.Message) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	if !p.Accepted || !a.fromPinnedBot(message, p) {
		// There is nobody to report to: a stranger gets no answer.
		a.log.Warn().Stringer("sender", message.Sender).Msg("A trigger that is not from the pinned bot was ignored")
		return fmt.Errorf("%w: %s", todevice.ErrUnusable, protocol.RejectedNotPinnedBot)
	}
	if err := a.learnBot(ctx, message); err != nil {
		return err
	}
	var trigger protocol.Trigger
	if json.Unmarshal(message.Content, &trigger) != nil || trigger.Validate() != nil {
		return fmt.Errorf("%w: %s", todevice.ErrUnusable, protocol.RejectedMalformed)
	}
	if own, err := a.mark(ctx); err != nil {
		return err
	} else if trigger.Reported != nil && own.Behind(*trigger.Reported) {
		return a.standStill(ctx, standstill{Rotation: trigger.RotationID, Attempt: trigger.Attempt})
	}
	markText, err := a.store.get(ctx, "sequence")
	if err != nil {
		return err
	}
	mark, _ := strconv.ParseInt(markText, 10, 64)
	if code := a.judge(trigger, mark); code != "" {
		return a.report(ctx, protocol.Progress{RotationID: trigger.RotationID, Attempt: trigger.Attempt, Stage: protocol.StageRejected,
			SequenceMark: mark, Error: &protocol.ErrorReport{Code: code}})
	}
	if err := a.store.set(ctx, "sequence", strconv.FormatInt(trigger.Sequence, 10)); err != nil {
		return err
	}
	j, err := a.job(ctx, trigger.RotationID)
	if err != nil {
		return err
	}
	if trigger.Action == protocol.ActionRepeat {
		return a.repeat(ctx, trigger, j)
	}
	if j == nil {
		j = &job{Rotation: trigger.RotationID, Stage: protocol.StageTriggerAccepted}
	}
	if slices.ContainsFunc(j.Plan, func(d protocol.Delivery) bool { return d.Outcome == protocol.OutcomeSuperseded }) {
		// What was withdrawn when the rotation was cancelled is pushed again, in another round.
		j.Plan = nil
	}
	if err := a.setExcluded(ctx, trigger.Exclude); err != nil {
		return err
	}
	// A new attempt at a known rotation goes on from where it is.
	j.Trigger, j.Attempt, j.Ended, j.Tries, j.NextTry = trigger, trigger.Attempt, false, 0, a.now()
	// The trigger's sequence is the highest, so its key is the newest.
	if err := a.supersede(ctx, trigger); err != nil {
		return err
	}
	if err := a.store.putJob(ctx, j, a.now()); err != nil {
		return err
	}
	return a.report(ctx, protocol.Progress{RotationID: j.Rotation, Attempt: j.Attempt, Stage: protocol.StageTriggerAccepted})
}

// judge is step 1 of the order of work; the empty code means obey.
func (a *Account) judge(t protocol.Trigger, mark int64) protocol.ErrorCode {
	now := a.now()
	switch {
	case t.UserID != a.config.UserID:
		return protocol.RejectedOtherUser
	case t.Secret != protocol.SecretMegolmBackup:
		return protocol.RejectedSecret
	case t.KMS.Name != a.config.KMS.Name || t.KMS.Path != a.config.KMS.Path:
		return protocol.RejectedKMS
	case t.Sequence <= mark:
		return protocol.RejectedSequence
	case now.After(t.ExpiresAt.Time().Add(protocol.Skew)):
		return protocol.RejectedExpired
	case now.Before(t.IssuedAt.Time().Add(-protocol.Skew)):
		return protocol.RejectedNotYetIssued
	case t.Action != protocol.ActionPush && t.Action != protocol.ActionRotate && t.Action != protocol.ActionRepeat:
		return protocol.RejectedAction
	}
	return ""
}

// repeat plans one more push of a rotation's key, as the server asks.
func (a *Account) repeat(ctx context.Context, trigger protocol.Trigger, j *job) error {
	last, ok, err := a.lastPush(ctx)
	if err != nil {
		return err
	}
	if !ok || j == nil || last.NewVersion != j.NewVersion {
		return a.report(ctx, protocol.Progress{RotationID: trigger.RotationID, Attempt: trigger.Attempt, Stage: protocol.StageRejected,
			Error: &protocol.ErrorReport{Code: protocol.RejectedNotPushed}})
	}
	if err := a.setExcluded(ctx, trigger.Exclude); err != nil {
		return err
	}
	return a.again(ctx, causeRequest, nil)
}

func (a *Account) job(ctx context.Context, rotation uuid.UUID) (*job, error) {
	jobs, err := a.store.jobs(ctx, false)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(jobs, func(j *job) bool { return j.Rotation == rotation })
	if i < 0 {
		return nil, nil
	}
	return jobs[i], nil
}

func (a *Account) cancel(ctx context.Context, message *todevice.Message) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	var cancel protocol.Cancel
	if !a.fromPinnedBot(message, p) || json.Unmarshal(message.Content, &cancel) != nil {
		return fmt.Errorf("%w: a cancel that is not the pinned bot's", todevice.ErrUnusable)
	}
	j, err := a.job(ctx, cancel.RotationID)
	if err != nil || j == nil || j.Ended {
		return err
	}
	return a.end(ctx, j, "cancelled")
}

func (a *Account) revoked(ctx context.Context, message *todevice.Message) error {
	p, err := a.pin(ctx)
	if err != nil {
		return err
	}
	if !a.fromPinnedBot(message, p) {
		return fmt.Errorf("%w: a revocation that is not the pinned bot's", todevice.ErrUnusable)
	}
	var word protocol.Revoked
	if json.Unmarshal(message.Content, &word) == nil && word.Reason == string(protocol.StoreWentBackwards) {
		return a.standStill(ctx, standstill{Told: true})
	}
	p.Accepted = false
	if err := a.setPin(ctx, p); err != nil {
		return err
	}
	return a.endAll(ctx, "revoked")
}

// wake starts the work loop, which looks at the journal: call it after a commit.
func (a *Account) wake() {
	select {
	case a.work <- struct{}{}:
	default:
	}
}
