package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

func (w *world) onlyRotation(t *testing.T) postgres.Rotation {
	t.Helper()
	rotations, err := w.db.Rotations(t.Context(), w.alice, false)
	check(t, err)
	if len(rotations) == 0 {
		return postgres.Rotation{}
	}
	return rotations[0]
}

func (w *world) currentVersion(t *testing.T) string {
	t.Helper()
	current, err := w.stock.GetKeyBackupLatestVersion(t.Context())
	check(t, err)
	return current.Version.String()
}

func (w *world) logHas(t *testing.T, action, word string) bool {
	t.Helper()
	lines, err := w.db.Log(t.Context(), "", 1000)
	check(t, err)
	for _, line := range lines {
		if line.Action == action && strings.Contains(string(line.Detail), word) {
			return true
		}
	}
	return false
}

func TestARotationWaitsForEnrollmentAndThenGoesOnByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newKey(t, "1")
	w.notify(t, "n1", "1")
	wait(t, "the rotation to wait", func() bool { return w.onlyRotation(t).Facts.State == rotation.WaitingForEnrollment })
	w.manage(t, "managed")
	w.waitDone(t)
}

func TestASecondVersionSupersedesAndASecondManagedDeviceAdopts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, "1", first, first.PublicKey())
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	wait(t, "the first rotation to be done", func() bool { return w.onlyRotation(t).Facts.State == rotation.Done })
	w.manage(t, "second")
	second, err := backupkey.Generate()
	check(t, err)
	w.putKey(t, "2", second, second.PublicKey())
	w.notify(t, "n2", "2")
	wait(t, "the second rotation to be done", func() bool {
		r := w.onlyRotation(t)
		return r.KMS.Version == "2" && r.Facts.State == rotation.Done
	})
	wait(t, "the other managed device to report that it holds the key", func() bool {
		outcomes, err := w.db.Outcomes(t.Context(), w.onlyRotation(t).ID)
		check(t, err)
		return outcomes["adopted"] == 1
	})
}

func TestNothingIsCreatedWithoutTheOldKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.ownBackup(t)
	// The recovery copy goes away, as when a client blanks it: the old key is nowhere now.
	check(t, w.stock.SetAccountData(ctx, backupSecret.Type, map[string]any{}))
	before := w.currentVersion(t)
	w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionOldKeyMissing)
	if after := w.currentVersion(t); after != before {
		t.Errorf("version %s was created", after)
	}
}

func TestNothingIsCreatedWhereTheKMSContradictsItself(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		publicKey func(backupkey.Key) string
		raw       string
		want      protocol.ErrorCode
	}{
		{"the metadata names another public key", func(backupkey.Key) string { return strings.Repeat("A", 43) }, "", protocol.AttentionKeyMismatch},
		{"the key is not 32 bytes", backupkey.Key.PublicKey, "c2hvcnQ", protocol.AttentionKeyNotUsable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			key, err := backupkey.Generate()
			check(t, err)
			w.putKey(t, "1", key, test.publicKey(key))
			if test.raw != "" {
				w.putRaw(t, "1", test.raw)
			}
			w.manage(t, "managed")
			w.notify(t, "n1", "1")
			w.caused(t, test.want)
			if _, err := w.stock.GetKeyBackupLatestVersion(t.Context()); err == nil {
				t.Error("a key-backup version was created")
			}
			// Mended, the rotation goes on by itself.
			w.putKey(t, "1", key, key.PublicKey())
			w.waitDone(t)
		})
	}
}

func TestAnEnrollmentIsRefusedWithItsReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.hs.CreateUser(ctx, "bob", password)
	check(t, err)
	account := w.open(t, "managed")
	_, err = account.Verify(ctx, nil)
	check(t, err)
	bobs, err := w.engine.NewCode(ctx, id.NewUserID("bob", keyheraldtest.ServerName), time.Hour, keyheraldtest.Admin())
	check(t, err)
	open, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	expired, err := w.engine.NewCode(ctx, w.alice, time.Millisecond, keyheraldtest.Admin())
	check(t, err)
	invented, err := protocol.NewCode(open.BotUserID, open.BotMasterKey)
	check(t, err)
	imposter, err := protocol.NewCode(open.BotUserID, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	check(t, err)
	tests := []struct {
		name string
		code protocol.Code
		want string
	}{
		{"a code that was never made", invented, string(protocol.RefusedCodeUnknown)},
		{"a code for another user", bobs, string(protocol.RefusedOtherUser)},
		{"a code that timed out", expired, string(protocol.RefusedCodeExpired)},
		{"a code that names another master key of the bot", imposter, "not the pinned one"},
		{"the right code", open, ""},
		{"the same device with the same code again", open, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			limited, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			err := account.Enroll(limited, test.code)
			if test.want == "" {
				check(t, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %s", err, test.want)
			}
			if strings.Contains(err.Error(), test.code.RevealRandom()) {
				t.Error("the error contains the code")
			}
			if strings.HasPrefix(test.want, "code") && !w.logHas(t, "enrollment.refused", test.want) {
				t.Error("the refusal is not in the audit log")
			}
		})
	}
}
