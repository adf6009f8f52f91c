package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/relay"
)

// The log tells how the bot came to be: who holds it, its login, its identity, its device.
func TestTheBotsBeginIsInTheLog(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.serve(t, w.hs.URL)
	lines, err := w.db.Log(t.Context(), "", 100)
	check(t, err)
	var actions []string
	for _, line := range lines {
		actions = append(actions, line.Action)
		if line.Action != string(audit.DatabaseMigrated) && (line.Actor != "relay" || line.Subject != w.identity.UserID.String()) {
			t.Errorf("%s did %s to %s", line.Actor, line.Action, line.Subject)
		}
	}
	want := []string{"database.migrated", "bot.lease_taken", "bot.login", "bot.identity_published", "bot.device_signed"}
	if strings.Join(actions, " ") != strings.Join(want, " ") {
		t.Errorf("the log has %v", actions)
	}
}

// another is the same world with a database of its own, and no server.
func (w *world) another(t *testing.T) *world {
	t.Helper()
	other := &world{hs: w.hs, clock: w.clock, identity: w.identity, masterKey: w.masterKey, asToken: w.asToken}
	other.db, _, other.database = newDatabase(t)
	return other
}

func TestABotThatTheHomeserverDoesNotTakeForItselfIsInTheLogOnce(t *testing.T) {
	t.Parallel()
	w := newParts(t)
	w.serve(t, w.hs.URL)
	ctx := t.Context()

	t.Run("with another identity", func(t *testing.T) {
		dir := t.TempDir()
		_, err := appservice.Keygen(dir, w.identity.UserID)
		check(t, err)
		other := w.another(t)
		other.identity, err = appservice.LoadIdentity(filepath.Join(dir, appservice.IdentityFile), filepath.Join(dir, appservice.SelfSigningFile))
		check(t, err)
		_, bot := other.server(t, other.db, w.hs.URL)
		if err := bot.Run(ctx); !errors.Is(err, appservice.ErrForeignIdentity) {
			t.Errorf("it ended with %v", err)
		}
		if !other.logHas(t, "bot.identity_refused", `"refusal": "another_identity_at_the_homeserver"`) {
			t.Error("the log does not say so")
		}
	})
	t.Run("with a token that is none", func(t *testing.T) {
		other := w.another(t)
		other.asToken = strings.Repeat("x", 64)
		g := newGate(t, w.hs.URL)
		_, bot := other.server(t, other.db, g.URL)
		running, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan error, 1)
		go func() { ended <- bot.Run(running) }()
		wait(t, "the bot to try three times", func() bool { return g.seen("/register") >= 3 })
		stop()
		check(t, <-ended)
		refused := 0
		lines, err := other.db.Log(ctx, "", 100)
		check(t, err)
		for _, line := range lines {
			if line.Action == "bot.login" && line.Outcome == "refused" {
				refused++
			}
			if strings.Contains(string(line.Detail), other.asToken) {
				t.Error("the log has the token")
			}
		}
		if refused != 1 || lines[len(lines)-1].Action != "bot.lease_released" {
			t.Errorf("%d logins are refused, and the last event is %s", refused, lines[len(lines)-1].Action)
		}
	})
}

// A message that nobody can read is told, and so is the new session that the bot opens because of it.
func TestAMessageThatCannotBeReadIsInTheLogWithTheSessionThatItLeadsTo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	account := w.open(t, "managed")
	w.enroll(t, account)
	devices, err := w.db.Devices(ctx, w.alice)
	check(t, err)
	keys, err := w.stock.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{w.identity.UserID: {}}})
	check(t, err)
	for device, its := range keys.DeviceKeys[w.identity.UserID] {
		content := &event.Content{Raw: map[string]any{"algorithm": id.AlgorithmOlmV1, "sender_key": devices[0].IdentityKey,
			"ciphertext": map[string]any{string(its.Keys[id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, device)]): map[string]any{"type": 1, "body": base64.RawStdEncoding.EncodeToString(make([]byte, 60))}}}}
		_, err := w.stock.SendToDevice(ctx, event.ToDeviceEncrypted, &mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{w.identity.UserID: {device: content}}})
		check(t, err)
	}
	wait(t, "the message to be told", func() bool { return w.logHas(t, "message.undecryptable", `"refusal": "undecryptable"`) })
	wait(t, "the session to be told", func() bool { return w.logHas(t, "device.session_reopened", "") })
	var pair int
	check(t, w.db.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM audit_log WHERE action = 'device.session_reopened') - (SELECT COUNT(*) FROM todevice_outbox WHERE key LIKE 'unwedge/%')`).Scan(&pair))
	if pair != 0 {
		t.Errorf("%d more sessions are told than were opened", pair)
	}
}

// A revocation that never reaches its device is told: it was queued, and that event alone would say more than is so.
func TestAMessageOfTheBotsThatTheHomeserverRefusesIsInTheLog(t *testing.T) {
	t.Parallel()
	w, l, _ := newLimited(t, 1)
	ctx := t.Context()
	devices, err := w.db.Devices(ctx, "")
	check(t, err)
	l.set(func(w http.ResponseWriter, _ []byte) bool {
		http.Error(w, `{"errcode":"M_BAD_JSON","error":"not this one"}`, http.StatusBadRequest)
		return true
	})
	check(t, w.engine.Revoke(ctx, devices[0].UserID, devices[0].DeviceID, "", keyheraldtest.Admin()))
	wait(t, "the refusal", func() bool { return w.logHas(t, "message.refused_by_homeserver", `"message": "revoked"`) })
	if err := w.engine.Revoke(ctx, devices[0].UserID, devices[0].DeviceID, "", keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("revoking again: %v", err)
	}
}
