package notice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

const (
	// every is how often rows are looked at where nobody says that they changed.
	every = 5 * time.Second
	// countEvery is how often all rotations are counted for the admin room.
	countEvery = 30 * time.Second
	// perDay bounds the notices to a user within a day, whatever his rotations do.
	perDay = 5
	// tooLate is how old something may be that is still told: after a day without a bot it is no news.
	tooLate = 24 * time.Hour
)

// Run says what is to be said until ctx ends.
func (s *Session) Run(ctx context.Context) {
	loop.Persist(ctx, s.wake, every, func() error {
		err := s.Step(ctx)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn().Err(err).Msg("Notices could not be sent yet")
		}
		return err
	})
}

// Step looks once at what is to be said, and sends what is due. What fails does not stop the rest.
func (s *Session) Step(ctx context.Context) error {
	return errors.Join(s.queueForUsers(ctx), s.queueForAdmins(ctx), s.deliver(ctx))
}

// queueForUsers keeps a notice for each rotation that its user is to be told of.
func (s *Session) queueForUsers(ctx context.Context) error {
	if s.Send == SendNever {
		return nil
	}
	err := s.DB.NoticesTooLate(ctx, s.Now().Add(-tooLate))
	if err != nil {
		return err
	}
	untold, err := s.DB.UntoldRotations(ctx, 50)
	if err != nil {
		return err
	}
	for _, r := range untold {
		if err := s.queueForUser(ctx, r); err != nil {
			return fmt.Errorf("telling a user of rotation %s: %w", r.ID, err)
		}
	}
	return nil
}

func (s *Session) queueForUser(ctx context.Context, r postgres.Rotation) error {
	targets, err := s.targets(ctx, r)
	if err != nil {
		return err
	}
	return s.txn(ctx, func(ctx context.Context) error {
		now, ok, err := s.DB.LockRotation(ctx, r.ID)
		if err != nil || !ok {
			return err
		}
		if now.Facts.State != r.Facts.State || now.Facts.Attention != r.Facts.Attention {
			return nil // it moved on, and is looked at again
		}
		if err := s.DB.NoticeTold(ctx, r.ID); err != nil {
			return err
		}
		about, text, tell := ForUser(r.Facts, targets, s.Send)
		if !tell {
			return nil
		}
		told, err := s.DB.NoticesSince(ctx, string(r.UserID), s.Now().Add(-24*time.Hour))
		if err != nil {
			return err
		}
		if told >= perDay {
			s.Log.Warn().Stringer("user", r.UserID).Stringer("rotation", r.ID).Msg("The user has had so many notices within a day that he is not told of this rotation")
			return nil
		}
		cause := string(r.Facts.State)
		if !r.Facts.State.Ended() {
			cause = string(r.Facts.Attention)
		}
		_, err = s.put(ctx, "rotation/"+r.ID.String()+"/"+cause, string(r.UserID), r.ID, about, text)
		return err
	})
}

// targets are the devices of a rotation that is done, with the names that their user gave them. A device that is gone by now
// has none.
func (s *Session) targets(ctx context.Context, r postgres.Rotation) ([]Target, error) {
	if r.Facts.State != rotation.Done {
		return nil, nil
	}
	deliveries, err := s.DB.Deliveries(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	targets := make([]Target, len(deliveries))
	for i, d := range deliveries {
		targets[i] = Target{DeviceID: d.DeviceID, Outcome: d.Outcome}
	}
	if _, _, tell := ForUser(r.Facts, targets, s.Send); !tell {
		return targets, nil
	}
	if s.Now().Before(s.pausedUntil) {
		return nil, errors.New("the homeserver asked for a pause")
	}
	answer, err := s.client.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{r.UserID: mautrix.DeviceIDList{}}, Timeout: 10_000})
	if err != nil {
		return nil, s.paused(fmt.Errorf("asking for the names of devices: %w", err))
	}
	devices := crosssigning.Read(answer, r.UserID).Devices
	for i := range targets {
		targets[i].Name = devices[targets[i].DeviceID].Name
	}
	return targets, nil
}

// queueForAdmins keeps a notice of how things stand where that changed.
func (s *Session) queueForAdmins(ctx context.Context) error {
	if len(s.Admins) == 0 {
		return nil
	}
	frozen := ""
	freeze, is, err := s.DB.Frozen(ctx, false)
	if err != nil {
		return err
	}
	if is {
		frozen = freeze.By
	}
	// Counting reads every rotation; whether triggers are stopped is one row.
	now := s.Now()
	if frozen == s.frozen && now.Sub(s.counted) < countEvery {
		return nil
	}
	status, err := s.status(ctx, frozen)
	if err != nil {
		return err
	}
	err = s.tellStatus(ctx, status, now)
	if err == nil {
		s.frozen, s.counted = frozen, now
	}
	return err
}

func (s *Session) tellStatus(ctx context.Context, status Status, now time.Time) error {
	return s.txn(ctx, func(ctx context.Context) error {
		raw, toldAt, err := s.DB.NoticeDigest(ctx)
		if err != nil {
			return err
		}
		var told Status
		if raw != nil {
			if err := json.Unmarshal(raw, &told); err != nil {
				return fmt.Errorf("reading what the admin room was told: %w", err)
			}
		}
		text, tell := Digest(told, status, toldAt, now)
		if !tell {
			return nil
		}
		if raw, err = json.Marshal(status); err != nil {
			return fmt.Errorf("keeping what the admin room is told: %w", err)
		}
		if err := s.DB.SetNoticeDigest(ctx, raw, now); err != nil {
			return err
		}
		return s.TellAdmins(ctx, "status/"+now.UTC().Format(time.RFC3339Nano), audit.NoticeStatus, text)
	})
}

func (s *Session) status(ctx context.Context, frozen string) (Status, error) {
	counts, err := s.DB.Counts(ctx)
	if err != nil {
		return Status{}, err
	}
	status := Status{Held: counts.Held, Failed: counts.Rotations[string(rotation.Failed)] + counts.Rotations[string(rotation.TimedOut)],
		NeedEnrollment: counts.Devices[string(postgres.NeedsEnrollment)], Reenrollments: counts.Reenrollments, Frozen: frozen}
	if len(counts.Attention) > 0 {
		status.Attention = counts.Attention
	}
	if s.Sealed {
		waiting, oldest, err := s.DB.Unsealed(ctx)
		if err != nil {
			return Status{}, err
		}
		status.Unsigned = waiting > 0 && time.Since(oldest) > UnsignedAfter
	}
	return status, nil
}

// isUser tells a user's room from the admin room.
func isUser(audience string) (id.UserID, bool) {
	return id.UserID(audience), audience != postgres.AudienceAdmins
}
