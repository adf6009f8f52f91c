package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// happened are the causes of needs_attention that tests of this run made happen.
var happened sync.Map

// caused waits until the newest rotation needs attention for this cause, and checks that the admin is told what to do
// and that the audit log has it.
func (w *world) caused(t *testing.T, cause protocol.ErrorCode) {
	t.Helper()
	var last rotation.Facts
	wait(t, "needs_attention: "+string(cause), func() bool {
		r := w.onlyRotation(t)
		if r.Facts.Attention == cause && r.NextAction != rotation.NextAction(cause) {
			t.Errorf("%s: the next action is %q", cause, r.NextAction)
		}
		last = r.Facts
		return r.Facts.Attention == cause
	})
	if !w.logHas(t, "progress.reported", string(cause)) {
		t.Errorf("the audit log does not have %s (%+v)", cause, last)
	}
	happened.Store(cause, true)
}

// missingCauses is the exit status of a run of all tests: 1 where a cause in the table was made to happen by none.
func missingCauses() int {
	status := 0
	for _, a := range rotation.Attentions() {
		if _, ok := happened.Load(a.Cause); !ok {
			fmt.Fprintf(os.Stderr, "no test makes needs_attention: %s happen\n", a.Cause)
			status = 1
		}
	}
	return status
}

func TestABackupThatTheUserChangesDuringARotationStopsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := newGate(t, w.hs.URL)
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })
	g.set(true)
	w.newKey(t, "1")
	w.notify(t, "n1", "1")
	wait(t, "pushes in the outbox", func() bool { return w.inStore(t, "managed", pendingPushes) > 0 })
	_, version := w.ownBackup(t)
	g.set(false)
	w.caused(t, protocol.AttentionBackupChanged)
	if now := w.currentVersion(t); now != version.String() {
		t.Errorf("the user's version %s was replaced by %s", version, now)
	}
}

func TestADeviceThatIsNotCrossSignedAnyMoreDuringARotationStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.manage(t, "managed")
	// The KMS has no key yet, so that the rotation is under way when the user resets his identity.
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionKMSForbidden)
	_, err := w.stock.Bootstrap(ctx, password)
	check(t, err)
	w.newKey(t, "1")
	w.caused(t, protocol.AttentionNotCrossSigned)
	if _, err := w.stock.GetKeyBackupLatestVersion(ctx); err == nil {
		t.Error("a key-backup version was created")
	}
}

func TestARoomKeyThatTheOldKeyDoesNotOpenKeepsTheOldVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	key, version := w.ownBackup(t)
	_, _, err := w.stock.WriteHistory(ctx, version, key, "readable")
	check(t, err)
	foreign, err := backupkey.Generate()
	check(t, err)
	other, err := backup.MegolmBackupKeyFromBytes(foreign.Reveal())
	check(t, err)
	_, _, err = w.stock.WriteHistory(ctx, version, other, "encrypted to another key")
	check(t, err)
	w.newKey(t, "1")
	w.manage(t, "managed", func(c *device.AccountConfig) { c.OldBackup.Grace = time.Second })
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionCarryOverIncomplete)
	if w.currentVersion(t) == version.String() {
		t.Error("the rotation did not go on with the room keys it could read")
	}
	// And it is never deleted by itself, long after its grace.
	before := w.status(t).At.Time()
	wait(t, "its grace to be over", func() bool { return w.status(t).At.Time().Sub(before) > 4*time.Second })
	var kept struct {
		Count int `json:"count"`
	}
	_, err = w.stock.MakeRequest(ctx, "GET", w.stock.BuildURL(mautrix.ClientURLPath{"v3", "room_keys", "version", version}), nil, &kept)
	check(t, err)
	if kept.Count != 2 {
		t.Errorf("the old version has %d room keys, want both", kept.Count)
	}
}

// The server cannot be made to send these two, so the bot's endpoint sends what a wrong server would.
func TestADeviceRejectsWhatOnlyAWrongServerSends(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.manage(t, "managed")
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	target := crosssigning.Device{UserID: w.alice, DeviceID: devices[0].DeviceID, IdentityKey: devices[0].IdentityKey, SigningKey: devices[0].SigningKey}
	// The KMS has no key, so that the rotation stays under way.
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionKMSForbidden)
	r := w.onlyRotation(t)
	for _, test := range []struct {
		cause  protocol.ErrorCode
		change func(*protocol.Trigger)
	}{
		{protocol.RejectedOtherUser, func(t *protocol.Trigger) { t.UserID = id.UserID("@bob:" + strings.SplitN(string(w.alice), ":", 2)[1]) }},
		{protocol.RejectedAction, func(t *protocol.Trigger) { t.Action = "dance" }},
	} {
		t.Run(string(test.cause), func(t *testing.T) {
			trigger := protocol.Trigger{RotationID: r.ID, Attempt: 1, Sequence: time.Now().UnixMicro(), UserID: w.alice, Secret: r.Secret, Action: protocol.ActionPush, KMS: r.KMS,
				IssuedAt: protocol.At(time.Now()), ExpiresAt: protocol.At(time.Now().Add(time.Hour))}
			test.change(&trigger)
			endpoint := w.endpoint.Load()
			out := todevice.Outgoing{Key: "wrong/" + uuid.NewString(), Type: protocol.TypeTrigger.Type, Content: trigger, To: target}
			check(t, endpoint.InTxn(ctx, func(ctx context.Context) error { return endpoint.Queue(ctx, out, nil) }))
			w.caused(t, test.cause)
		})
	}
}
