package e2e

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"maunium.net/go/mautrix/crypto/backup"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

func TestARotationReachesEveryCrossSignedDeviceAndLosesNoHistory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	oldKey, version := w.ownBackup(t)
	room, message, err := w.stock.WriteHistory(ctx, version, oldKey, history)
	check(t, err)
	newKey, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, "1", newKey, newKey.PublicKey())

	receiver := w.login(t, "RECEIVER")
	check(t, receiver.Verify(ctx, w.recoveryKey))
	stranger := w.login(t, "STRANGER")
	w.manage(t, "managed")

	w.notify(t, "n1", "1")
	var done postgres.Rotation
	wait(t, "the rotation to be done", func() bool {
		rotations, err := w.db.Rotations(ctx, w.alice, false)
		check(t, err)
		if len(rotations) == 1 {
			done = rotations[0]
		}
		return done.Facts.State == rotation.Done || done.Facts.Attention != ""
	})
	if done.Facts.State != rotation.Done {
		t.Fatalf("the rotation needs attention: %s: %s", done.Facts.Attention, done.NextAction)
	}
	waitCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pushes, err := receiver.WaitForPush(waitCtx)
	check(t, err)
	if pushes[0].Name != "m.megolm_backup.v1" || pushes[0].Secret != newKey.RevealBase64() {
		t.Error("the receiver did not get the new key")
	}
	if raw := string(pushes[0].Raw); strings.Contains(raw, "request_id") {
		t.Error("the push has a request_id")
	}
	if len(stranger.Pushes()) != 0 {
		t.Error("a device that was never verified got a push")
	}
	private, err := backup.MegolmBackupKeyFromBytes(newKey.Reveal())
	check(t, err)
	text, err := receiver.ReadHistory(ctx, room, message, private)
	check(t, err)
	if text != history {
		t.Errorf("the receiver reads %q", text)
	}
	fresh := w.login(t, "FRESH")
	keyID, metadata, err := fresh.Machine.SSSS.GetDefaultKeyData(ctx)
	check(t, err)
	fourS, err := metadata.VerifyRecoveryKey(keyID, w.recoveryKey)
	check(t, err)
	copied, err := fresh.Machine.SSSS.GetDecryptedAccountData(ctx, backupSecret, fourS)
	check(t, err)
	if base64.RawStdEncoding.EncodeToString(copied) != newKey.RevealBase64() {
		t.Error("a new login does not find the new key in secret storage")
	}
	w.checkKeyVersion(t, done)
	outcomes, err := w.db.Outcomes(ctx, done.ID)
	check(t, err)
	if outcomes["sent"] != 2 || outcomes["skipped_unverified"] != 1 {
		t.Errorf("outcomes are %v", outcomes)
	}
	lines, err := w.db.Log(ctx, done.ID.String(), 100)
	check(t, err)
	for _, action := range []string{"notification.accepted", "trigger.queued", "trigger.sent", "progress.reported", "delivery.reported", "rotation.done"} {
		found := false
		for _, line := range lines {
			found = found || line.Action == action
		}
		if !found {
			t.Errorf("the audit log has no %s", action)
		}
	}
}
