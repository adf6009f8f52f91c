package rotation

import (
	"testing"
	"time"

	"github.com/keyherald/keyherald/protocol"
)

func TestWhenARotationIsDue(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	sent := func(ago time.Duration, stage protocol.Stage) []Attempt {
		return []Attempt{{Device: "a", Sent: now.Add(-ago), Stage: stage}}
	}
	for _, test := range []struct {
		name        string
		state       State
		attempts    []Attempt
		due         bool
		untriedOnly bool
	}{
		{"a new rotation is due", Received, nil, true, false},
		{"one that waits for enrollment is due as soon as a device is there", WaitingForEnrollment, nil, true, false},
		{"one whose device was revoked is due, whatever was tried", Received, sent(time.Hour, protocol.StageFetched), true, false},
		{"a trigger that is on its way is waited for", Working, sent(9*time.Minute, ""), false, true},
		{"a trigger without an answer for ten minutes goes to an untried device", Working, sent(10*time.Minute, ""), true, true},
		{"a device that answered is left to its work", Working, sent(time.Hour, protocol.StageTriggerAccepted), false, true},
		{"a rejection is an answer", Working, sent(time.Hour, protocol.StageRejected), false, true},
		{"what the homeserver has not taken is not the device's fault", Working, []Attempt{{Device: "a"}}, false, true},
		{"the last attempt counts", Working, append(sent(time.Hour, ""), Attempt{Device: "b", Sent: now}), false, true},
		{"what is done is never due", Done, nil, false, false},
		{"what was cancelled is never due", Cancelled, sent(time.Hour, ""), false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			due, untriedOnly := Due(test.state, test.attempts, now, AckTimeout)
			if due != test.due || untriedOnly != test.untriedOnly {
				t.Errorf("got %v, %v; want %v, %v", due, untriedOnly, test.due, test.untriedOnly)
			}
		})
	}
}
