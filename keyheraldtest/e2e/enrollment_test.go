package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
	"github.com/keyherald/keyherald/todevice"
)

// The managed device refuses to ask before it is cross-signed, so this one is made by hand.
func TestADeviceThatIsNotCrossSignedIsNotEnrolled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	receiver := w.receiver(t, "UNSIGNED")
	endpoint := receiver.Endpoint
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	identities, err := endpoint.Identities(ctx, w.alice, code.BotUserID)
	check(t, err)
	var bot crosssigning.Device
	for _, d := range identities[code.BotUserID].Devices {
		bot = d
	}
	signing, identity, err := endpoint.Keys(ctx)
	check(t, err)
	claims, err := endpoint.Claim(ctx, false, bot)
	check(t, err)
	check(t, endpoint.InTxn(ctx, func(ctx context.Context) error {
		return endpoint.Queue(ctx, todevice.Outgoing{Key: "enroll", To: bot, Type: protocol.TypeEnrollRequest.Type, Content: protocol.EnrollRequest{
			ProtocolVersion: protocol.Version, Code: code.RevealRandom(), BotUserID: code.BotUserID, BotMasterKey: code.BotMasterKey,
			UserMasterKey: identities[w.alice].MasterKey, DeviceID: "UNSIGNED", IdentityKey: identity, SigningKey: signing, Name: "x", SoftwareVersion: "x"}}, claims)
	}))
	_, err = endpoint.Flush(ctx, nil)
	check(t, err)
	wait(t, "the answer", func() bool {
		check(t, receiver.Receive(ctx))
		return receiver.Payloads()[protocol.TypeEnrollResponse.Type] != ""
	})
	var answer protocol.EnrollResponse
	check(t, json.Unmarshal([]byte(receiver.Payloads()[protocol.TypeEnrollResponse.Type]), &answer))
	if answer.Accepted || answer.Reason != protocol.RefusedNotCrossSigned {
		t.Errorf("got %+v", answer)
	}
	if !w.logHas(t, "enrollment.refused", string(protocol.RefusedNotCrossSigned)) {
		t.Error("the refusal is not in the audit log")
	}
}

func TestACodeIsForOneDeviceAndBurnsAfterFiveWrongTries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	try := func(name string, code protocol.Code, want protocol.Refusal) {
		t.Helper()
		account := w.open(t, name)
		defer func() { _ = account.Close() }()
		_, err := account.Verify(ctx, nil)
		check(t, err)
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := account.Enroll(limited, code); err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), string(want))) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	used, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	try("first", used, "")
	try("second", used, protocol.RefusedCodeUsed)
	open, err := w.engine.NewCode(ctx, w.alice, time.Hour, keyheraldtest.Admin())
	check(t, err)
	for range 5 {
		wrong, err := protocol.NewCode(open.BotUserID, open.BotMasterKey)
		check(t, err)
		try("second", wrong, protocol.RefusedCodeUnknown)
	}
	try("second", open, protocol.RefusedCodeBurned)
	if !w.logHas(t, "enrollment_code.burned", `"codes"`) {
		t.Error("the burned code is not in the audit log")
	}
}

func TestARevokedDeviceIsToldAndItsRotationGoesToAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.manage(t, "managed")
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	// No key in the KMS: the rotation stays with the device.
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionKMSForbidden)
	check(t, w.engine.Revoke(ctx, w.alice, devices[0].DeviceID, "lost", keyheraldtest.Admin()))
	wait(t, "the device to know", func() bool {
		enrolled, err := account.Enrolled(ctx)
		check(t, err)
		return !enrolled
	})
	wait(t, "the rotation to wait for another device", func() bool { return w.onlyRotation(t).Facts.State == rotation.WaitingForEnrollment })
	for _, action := range []string{"device.revoked", "device.revocation_queued", "rotation.reassigned"} {
		if !w.logHas(t, action, "") {
			t.Errorf("the audit log has no %s", action)
		}
	}
}

// A user who resets his identity makes his managed device a stranger: never silent trust, and a way back.
func TestAfterAnIdentityResetADeviceNeedsEnrollmentAndMayEnrollAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	account := w.open(t, "managed")
	w.enroll(t, account)
	var err error
	w.recoveryKey, err = w.stock.Bootstrap(ctx, password)
	check(t, err)
	w.notify(t, "n1", "1")
	wait(t, "the rotation to wait", func() bool { return w.onlyRotation(t).Facts.State == rotation.WaitingForEnrollment })
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	if devices[0].State != postgres.NeedsEnrollment {
		t.Errorf("the device is %s", devices[0].State)
	}
	check(t, os.WriteFile(filepath.Join(w.dir, "recovery"), []byte(w.recoveryKey), 0o600))
	w.enroll(t, account)
	run(t, account.Run)
	w.waitDone(t)
}
