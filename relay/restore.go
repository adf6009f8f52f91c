package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// sequenceJump is how far above the clock the sequences go after a restore: a lost trigger may have come from a
// replica whose clock was ahead.
const sequenceJump = time.Hour

// Restored is what a declared restore found and did, by whose word and why.
type Restored struct {
	By     audit.Actor
	Reason string
	// Since is when the newest event that survived was appended, zero where the log is empty: what happened between then
	// and At, when the restore was declared, is not known here.
	Since, At  time.Time
	OldDevice  id.DeviceID
	NewDevice  id.DeviceID
	Retriggers int
	// Paused are the campaigns that were running.
	Paused []postgres.Campaign
}

// Restore declares that the database was put back to an earlier state. The bot gets a new device, since a ratchet that
// went back must not be used; sequences jump; rotations that were under way are triggered again, and their devices
// answer from their own journals; campaigns that were running pause; and the gap stands in the log.
func (e *Engine) Restore(ctx context.Context, fresh id.DeviceID, reason string, actor audit.Actor) (Restored, error) {
	var restored Restored
	event := audit.Event{Actor: actor, Action: audit.DatabaseRestored, Subject: audit.OfDatabase(), Outcome: audit.Accepted}
	err := refusal.Asked(ctx, e.db, e.now, &event, func(ctx context.Context) error {
		now := e.now()
		why, err := refusal.Reason(reason)
		if err != nil {
			return err
		}
		restored = Restored{By: actor, Reason: reason, At: now, NewDevice: fresh}
		last, since, err := e.db.LastEvent(ctx)
		if err != nil {
			return err
		}
		restored.Since = since
		if restored.OldDevice, err = e.db.RetireBot(ctx, fresh, now); err != nil {
			return err
		}
		if err := e.db.JumpSequences(ctx, now.Add(sequenceJump).UnixMicro()); err != nil {
			return err
		}
		// Whom they came to after what survived is not known here: whoever looked into that resumes them. Campaigns before
		// rotations, as their steps lock them.
		if restored.Paused, err = e.db.PauseCampaigns(ctx, string(audit.CauseRestored), now); err != nil {
			return err
		}
		working, err := e.db.LockWorking(ctx)
		if err != nil {
			return err
		}
		restored.Retriggers = len(working)
		if err := e.db.MoveRotations(ctx, ids(working), rotation.Received, "", now); err != nil {
			return err
		}
		event.Time, event.Detail = now, audit.Detail{audit.Text("reason", why), audit.ID("last_event", last), audit.Time("gap_from", since), audit.Time("gap_to", now),
			audit.ID("old_bot_device", restored.OldDevice), audit.ID("new_bot_device", fresh), audit.Number("retriggered", len(working))}
		events := []audit.Event{event}
		for _, r := range working {
			events = append(events, audit.Event{Time: now, Actor: actor, Action: audit.RotationRetried, Subject: audit.OfUser(r.UserID), Rotation: r.ID,
				Outcome: audit.Accepted, Detail: audit.Detail{audit.Word("from", r.Facts.State), audit.Flag("restored", true)}})
		}
		for _, campaign := range restored.Paused {
			events = append(events, audit.Event{Time: now, Actor: actor, Action: audit.CampaignPaused, Subject: audit.OfCampaign(campaign.ID), Outcome: audit.Accepted,
				Detail: audit.Detail{audit.Word("why", audit.CauseRestored)}})
		}
		if err := e.db.Append(ctx, events...); err != nil {
			return err
		}
		if e.restored != nil {
			if err := e.restored(ctx, restored); err != nil {
				return err
			}
		}
		return e.db.Notify(ctx, WorkChannel, "")
	})
	if err != nil {
		return Restored{}, fmt.Errorf("declaring the restore: %w", err)
	}
	return restored, nil
}

// greet sends every enrolled device an empty message after a restore: it opens an Olm session, and the device learns
// from it which device of the bot, signed by the pinned master key, its reports go to now.
func (s *Session) greet(ctx context.Context) error {
	devices, err := s.db.Ungreeted(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, d := range devices {
		out := todevice.Outgoing{Key: "greet/" + d.ID.String() + "/" + s.endpoint.DeviceID().String(), Type: event.ToDeviceDummy.Type, Content: struct{}{}}
		err := s.tell(ctx, d, out, audit.Event{Action: audit.DeviceGreeted}, func(ctx context.Context, _ time.Time) error { return s.db.Greeted(ctx, d.ID) })
		all = errors.Join(all, err)
	}
	return all
}
