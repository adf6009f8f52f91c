package device

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/protocol"
)

func TestATriggerIsRejectedUnlessItIsForThisDeviceAndNow(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	a := &Account{config: AccountConfig{UserID: "@alice:example.org", KMS: KMS{Name: "corporate", Path: "keyherald/alice"}}, now: func() time.Time { return now }}
	right := protocol.Trigger{RotationID: uuid.New(), Attempt: 1, Sequence: 11, UserID: "@alice:example.org", Secret: protocol.SecretMegolmBackup,
		Action: protocol.ActionPush, KMS: protocol.KMSRef{Name: "corporate", Path: "keyherald/alice", Version: "1"},
		IssuedAt: protocol.At(now), ExpiresAt: protocol.At(now.Add(time.Hour))}
	tests := []struct {
		name   string
		change func(*protocol.Trigger)
		want   protocol.ErrorCode
	}{
		{"the right trigger is obeyed", func(*protocol.Trigger) {}, ""},
		{"another user", func(t *protocol.Trigger) { t.UserID = "@bob:example.org" }, protocol.RejectedOtherUser},
		{"another secret", func(t *protocol.Trigger) { t.Secret = "m.cross_signing.master" }, protocol.RejectedSecret},
		{"another KMS", func(t *protocol.Trigger) { t.KMS.Name = "attacker" }, protocol.RejectedKMS},
		{"another path", func(t *protocol.Trigger) { t.KMS.Path = "keyherald/bob" }, protocol.RejectedKMS},
		{"the sequence that was seen last", func(t *protocol.Trigger) { t.Sequence = 10 }, protocol.RejectedSequence},
		{"expired beyond the skew", func(t *protocol.Trigger) { t.ExpiresAt = protocol.At(now.Add(-6 * time.Minute)) }, protocol.RejectedExpired},
		{"expired within the skew is obeyed", func(t *protocol.Trigger) { t.ExpiresAt = protocol.At(now.Add(-4 * time.Minute)) }, ""},
		{"issued in the future", func(t *protocol.Trigger) { t.IssuedAt = protocol.At(now.Add(6 * time.Minute)) }, protocol.RejectedNotYetIssued},
		{"an action this device does not know", func(t *protocol.Trigger) { t.Action = "dance" }, protocol.RejectedAction},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			trigger := right
			test.change(&trigger)
			if got := a.judge(trigger, 10); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
