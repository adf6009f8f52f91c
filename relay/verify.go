package relay

import (
	"context"
	"errors"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/postgres"
)

// verifyBatch is how many users are asked for in one request.
const verifyBatch = 100

// verifySome verifies a batch of those who were triggered, and tells whether there are more. It waits until the triggers
// have left: the homeserver would take them more slowly. Whoever could not be looked at is the next time.
func (s *Session) verifySome(ctx context.Context) (more bool, err error) {
	if len(s.unverified) == 0 {
		return false, nil
	}
	s.endpoint.AwaitFlush()
	slices.Sort(s.unverified)
	s.unverified = slices.Compact(s.unverified)
	n := min(verifyBatch, len(s.unverified))
	if err := s.verify(ctx, s.unverified[:n]); err != nil {
		return false, err
	}
	s.unverified = s.unverified[n:]
	return len(s.unverified) > 0, nil
}

// lookBack takes in, once, whom an earlier lease triggered, as it may have ended before it looked at them.
func (s *Session) lookBack(ctx context.Context) error {
	if s.lookedBack {
		return nil
	}
	before, err := s.db.WorkingUsers(ctx)
	if err != nil {
		return err
	}
	s.lookedBack, s.unverified = true, append(s.unverified, before...)
	return nil
}

// verify looks whether the enrolled devices of users who were just triggered still are what was pinned: there, with
// their keys, cross-signed by the pinned identity. It comes after the triggers, since it takes the homeserver longer
// than they do; until then nobody but the pinned device can have read one. A device that is something else now needs
// enrollment, and its rotations are due again.
func (s *Session) verify(ctx context.Context, of []id.UserID) error {
	devices, err := s.db.DevicesOf(ctx, of)
	if err != nil {
		return err
	}
	identities, err := s.endpoint.Identities(ctx, of...)
	if err != nil {
		return err
	}
	var all error
	for user, owned := range devices {
		for _, d := range owned {
			if d.State == postgres.Enrolled && !stillPinned(identities[user], d) {
				all = errors.Join(all, s.needsEnrollment(ctx, d))
			}
		}
	}
	return all
}

func stillPinned(identity crosssigning.Identity, d postgres.Device) bool {
	keys, ok := identity.Devices[d.DeviceID]
	return ok && identity.PinnedTo(d.MasterKey) && keys.CrossSigned && keys.IdentityKey == d.IdentityKey && keys.SigningKey == d.SigningKey
}

// pinned is a device as it was enrolled.
func pinned(d postgres.Device) crosssigning.Device {
	return crosssigning.Device{UserID: d.UserID, DeviceID: d.DeviceID, IdentityKey: d.IdentityKey, SigningKey: d.SigningKey}
}

func (s *Session) needsEnrollment(ctx context.Context, d postgres.Device) error {
	return s.db.Txn(ctx, func(ctx context.Context) error {
		// It may have been revoked while the homeserver was asked, and stays so; or enrolled anew.
		now, err := s.db.LockDevice(ctx, d.ID)
		if err != nil || now.State != postgres.Enrolled || now.MasterKey != d.MasterKey {
			return err
		}
		return s.stopTrusting(ctx, now)
	})
}

// stopTrusting is needsEnrollment in the caller's transaction, which has locked the device.
func (s *Session) stopTrusting(ctx context.Context, d postgres.Device) error {
	if err := s.db.SetDeviceState(ctx, d.ID, postgres.NeedsEnrollment); err != nil {
		return err
	}
	err := s.db.Append(ctx, audit.Event{Time: s.now(), Actor: audit.ByRelay(), Action: audit.DeviceNeedsEnrollment, Subject: subjectOf(d),
		Outcome: audit.Refused, Detail: audit.Detail{audit.Word("refusal", audit.RefusedIdentityChanged)}})
	if err != nil {
		return err
	}
	if err := s.takeAway(ctx, d, ""); err != nil {
		return err
	}
	return s.db.Notify(ctx, WorkChannel, "")
}
