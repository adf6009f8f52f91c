package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/todevice"
)

// managedID is the id of the managed device that was enrolled last.
func (w *world) managedID(t *testing.T) id.DeviceID {
	t.Helper()
	devices, err := w.db.Devices(t.Context(), w.alice)
	check(t, err)
	if len(devices) == 0 {
		t.Fatal("there is no managed device")
	}
	return devices[len(devices)-1].DeviceID
}

// request sends what a device of Alice's would, outside Olm as the specification has it.
func (w *world) request(t *testing.T, to id.DeviceID, request event.SecretRequestEventContent) {
	t.Helper()
	_, err := w.stock.SendToDevice(t.Context(), event.ToDeviceSecretRequest, &mautrix.ReqSendToDevice{
		Messages: map[id.UserID]map[id.DeviceID]*event.Content{w.alice: {to: {Parsed: &request}}}})
	check(t, err)
}

// acts are the audit events of this action, with their details.
func (w *world) acts(t *testing.T, action string) []string {
	t.Helper()
	lines, err := w.db.Log(t.Context(), "", 1000)
	check(t, err)
	var found []string
	for _, line := range lines {
		if line.Action == action {
			found = append(found, line.Subject+" "+string(line.Detail))
		}
	}
	return found
}

func (w *world) waitAct(t *testing.T, action string, words ...string) {
	t.Helper()
	wait(t, fmt.Sprintf("%s %v in the audit log", action, words), func() bool {
		for _, act := range w.acts(t, action) {
			all := true
			for _, word := range words {
				all = all && strings.Contains(act, word)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// answers are the m.secret.send events that a receiver decrypted, by request id.
func answers(t *testing.T, receiver *keyheraldtest.Receiver) map[string][]string {
	t.Helper()
	check(t, receiver.Receive(t.Context()))
	found := map[string][]string{}
	for _, message := range receiver.Messages() {
		var content struct {
			RequestID string `json:"request_id"`
			Secret    string `json:"secret"`
		}
		check(t, json.Unmarshal([]byte(message.Content), &content))
		if message.Type == event.ToDeviceSecretSend.Type && content.RequestID != "" {
			found[content.RequestID] = append(found[content.RequestID], content.Secret)
		}
	}
	return found
}

func TestADeviceAnswersWhatTheConfigAllowsOnceAndReportsTheRest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.newKey(t, "1")
	asker := w.verifiedReceiver(t, "ASKER")
	busy := w.verifiedReceiver(t, "BUSY")
	stranger := w.receiver(t, "STRANGER")
	w.manage(t, "managed", func(c *device.AccountConfig) {
		c.Answer.Names, c.Answer.PerHour = []string{protocol.SecretMegolmBackup, protocol.SecretSelfSigning}, 5
	})
	managed := w.managedID(t)
	w.notify(t, "n1", "1")
	w.waitDone(t)

	ask := func(from id.DeviceID, requestID, name string) {
		t.Helper()
		w.request(t, managed, event.SecretRequestEventContent{Action: event.SecretRequestRequest, Name: id.Secret(name), RequestID: requestID, RequestingDeviceID: from})
	}
	ask("ASKER", "first", protocol.SecretMegolmBackup)
	wait(t, "the answer", func() bool { return len(answers(t, asker)["first"]) > 0 })
	w.waitAct(t, "secret_request.answered", "/ASKER", protocol.SecretMegolmBackup)
	// The same again, and what another device asks with the same id, which is another request.
	ask("ASKER", "first", protocol.SecretMegolmBackup)
	ask("BUSY", "first", protocol.SecretMegolmBackup)
	wait(t, "the other device's answer", func() bool { return len(answers(t, busy)["first"]) > 0 })

	ask("ASKER", "self", protocol.SecretSelfSigning)
	wait(t, "the self-signing key", func() bool { return len(answers(t, asker)["self"]) > 0 })
	ask("ASKER", "master", protocol.SecretMaster)
	w.waitAct(t, "secret_request.refused", "/ASKER", protocol.SecretMaster, "secret_not_allowed")
	ask("ASKER", "diary", "com.example.diary")
	w.waitAct(t, "secret_request.refused", "/ASKER", `"other"`, "secret_not_allowed")
	ask("STRANGER", "stranger", protocol.SecretMegolmBackup)
	w.waitAct(t, "secret_request.refused", "/STRANGER", "device_not_cross_signed")
	ask("NOBODY", "nobody", protocol.SecretMegolmBackup)
	w.waitAct(t, "secret_request.refused", "device_unknown")

	// Five requests of one device are looked at in an hour; the sixth is refused with its reason, and no more is said.
	for i := range 8 {
		ask("BUSY", fmt.Sprint("again-", i), protocol.SecretMegolmBackup)
	}
	w.waitAct(t, "secret_request.refused", "/BUSY", "too_many_requests")
	wait(t, "four more answers", func() bool { return len(answers(t, busy)) == 5 })

	wait(t, "all of it in the log", func() bool {
		return len(w.acts(t, "secret_request.answered")) >= 7 && len(w.acts(t, "secret_request.refused")) >= 5
	})

	got := answers(t, asker)
	if len(got) != 2 || len(got["first"]) != 1 || len(got["self"]) != 1 || got["first"][0] != key.RevealBase64() {
		t.Errorf("the device that may ask got answers to %d requests, %d and %d times", len(got), len(got["first"]), len(got["self"]))
	}
	if n := len(answers(t, stranger)); n != 0 {
		t.Errorf("a device that nobody verified got %d answers", n)
	}
	refused := w.acts(t, "secret_request.refused")
	if n := len(w.acts(t, "secret_request.answered")); n != 7 || len(refused) != 5 {
		t.Errorf("the log has %d answers and %d refusals: %v", n, len(refused), refused)
	}
	if strings.Contains(strings.Join(refused, " "), "diary") || strings.Contains(strings.Join(refused, " "), "NOBODY") {
		t.Error("what somebody made up is in the log")
	}
}

func TestAnExcludedDeviceAndACancelledRequestAreNotAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	asker := w.verifiedReceiver(t, "ASKER")
	_, stop := w.start(t, "second", time.Second)
	second := w.managedID(t)
	stop()
	g := newGate(t, w.hs.URL)
	w.manage(t, "managed", func(c *device.AccountConfig) { c.Homeserver = g.URL })
	managed := w.managedID(t)
	// Revoked, it is on every trigger's exclude list.
	check(t, w.engine.Revoke(ctx, w.alice, second, "lost", keyheraldtest.Admin()))
	w.notify(t, "n1", "1")
	w.waitDone(t)

	ask := func(from id.DeviceID, requestID string, action event.SecretRequestAction) {
		t.Helper()
		w.request(t, managed, event.SecretRequestEventContent{Action: action, Name: protocol.SecretMegolmBackup, RequestID: requestID, RequestingDeviceID: from})
	}
	ask(second, "lost", event.SecretRequestRequest)
	w.waitAct(t, "secret_request.refused", string(second), "device_excluded")
	// Which version is current cannot be asked, so that the request stays open until it is cancelled.
	g.refuse("/room_keys/version")
	ask("ASKER", "cancelled", event.SecretRequestRequest)
	wait(t, "the request in the journal", func() bool { return w.inStore(t, "managed", `SELECT COUNT(*) FROM asked WHERE state = 'open'`) == 1 })
	ask("ASKER", "cancelled", event.SecretRequestCancellation)
	wait(t, "the end of the request", func() bool {
		return w.inStore(t, "managed", `SELECT COUNT(*) FROM asked WHERE state = 'cancelled'`) == 1
	})
	g.refuse("")
	ask("ASKER", "later", event.SecretRequestRequest)
	wait(t, "the answer to the later request", func() bool { return len(answers(t, asker)["later"]) == 1 })
	if n := len(answers(t, asker)["cancelled"]); n != 0 {
		t.Errorf("the cancelled request was answered %d times", n)
	}
}

func TestAStockClientIsAnsweredByItsOwnMeans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	got := ""
	check(t, w.stock.Machine.GetOrRequestSecret(t.Context(), id.SecretMegolmBackupV1, func(secret string) (bool, error) {
		got = secret
		return true, nil
	}, patience))
	if got != key.RevealBase64() {
		t.Error("it is not the key of the current version")
	}
	w.waitAct(t, "secret_request.answered", string(w.stock.DeviceID))
}

// lostKey is a world whose key backup has a key that only the test knows: no recovery copy, and nothing in the KMS.
func lostKey(t *testing.T) (w *world, lost backupkey.Key, version string) {
	t.Helper()
	w = newWorld(t)
	ctx := t.Context()
	key, created := w.ownBackup(t)
	_, _, err := w.stock.WriteHistory(ctx, created, key, "only the lost key opens it")
	check(t, err)
	check(t, w.stock.SetAccountData(ctx, backupSecret.Type, map[string]any{}))
	lost, err = backupkey.FromBytes(key.Bytes())
	check(t, err)
	return w, lost, created.String()
}

func TestTheOldKeyIsAskedOfTheUsersOtherDevices(t *testing.T) {
	t.Parallel()
	w, lost, _ := lostKey(t)
	check(t, w.stock.Machine.CryptoStore.PutSecret(t.Context(), id.SecretMegolmBackupV1, lost.RevealBase64()))
	w.newKey(t, "1")
	w.manage(t, "managed")
	w.notify(t, "n1", "1")
	w.waitDone(t)
	w.waitAct(t, "secret.kept", "/"+string(w.stock.DeviceID), protocol.SecretMegolmBackup)
	if carried := w.onlyRotation(t).Facts; !carried.CarryComplete {
		t.Errorf("the history was not carried over: %+v", carried)
	}
}

// ourRequests are the requests and cancellations that reached a receiver, by request id, in their order.
func ourRequests(t *testing.T, receiver *keyheraldtest.Receiver) (requests, cancelled []string) {
	t.Helper()
	check(t, receiver.Receive(t.Context()))
	for _, message := range receiver.Messages() {
		var content event.SecretRequestEventContent
		if message.Type != event.ToDeviceSecretRequest.Type {
			continue
		}
		check(t, json.Unmarshal([]byte(message.Content), &content))
		if content.Action == event.SecretRequestRequest {
			requests = append(requests, content.RequestID)
		} else {
			cancelled = append(cancelled, content.RequestID)
		}
	}
	return requests, cancelled
}

func TestAnAnswerIsTakenOnlyForTheOpenRequestFromWhomItWentToAndIfItFits(t *testing.T) {
	t.Parallel()
	w, lost, _ := lostKey(t)
	ctx := t.Context()
	peer := w.verifiedReceiver(t, "PEER")
	stranger := w.receiver(t, "STRANGER")
	w.newKey(t, "1")
	clock := &keyheraldtest.Clock{}
	options := w.options(t, "managed")
	options.Now = clock.Now
	account, err := device.Open(ctx, w.account(t, "managed"), options)
	check(t, err)
	t.Cleanup(func() { _ = account.Close() })
	w.enroll(t, account)
	run(t, account.Run)
	w.notify(t, "n1", "1")
	w.caused(t, protocol.AttentionOldKeyMissing)

	var requests []string
	wait(t, "the device to ask", func() bool { requests, _ = ourRequests(t, peer); return len(requests) == 1 })
	identities, err := peer.Endpoint.Identities(ctx, w.alice)
	check(t, err)
	managed := identities[w.alice].Devices[w.managedID(t)]
	sent := 0
	send := func(from *keyheraldtest.Receiver, requestID string, key backupkey.Key) {
		t.Helper()
		sent++
		claims, err := from.Endpoint.Claim(ctx, false, managed)
		check(t, err)
		check(t, from.Endpoint.InTxn(ctx, func(ctx context.Context) error {
			return from.Endpoint.Queue(ctx, todevice.Outgoing{Key: fmt.Sprint("answer-", sent), To: managed, Type: event.ToDeviceSecretSend.Type,
				Content: event.SecretSendEventContent{RequestID: requestID, Secret: key.RevealBase64()}}, claims)
		}))
		_, err = from.Endpoint.Flush(ctx, nil)
		check(t, err)
		wait(t, "the device to read it", func() bool {
			return w.inStore(t, "managed", `SELECT COUNT(*) FROM todevice_inbox WHERE type = 'm.room.encrypted' AND sender = $1 AND state IN ('done', 'unusable')`, w.alice) >= sent &&
				w.inStore(t, "managed", `SELECT COUNT(*) FROM received`) == 0
		})
	}
	still := func(what string) {
		t.Helper()
		if n := w.inStore(t, "managed", `SELECT COUNT(*) FROM asking WHERE state = 'open'`); n != 1 {
			t.Fatalf("after %s there are %d open requests", what, n)
		}
	}
	other, err := backupkey.Generate()
	check(t, err)
	send(peer, "never-asked", lost)
	still("an answer to no request")
	send(stranger, requests[0], lost)
	still("an answer of a device that nobody verified")
	send(peer, requests[0], other)
	still("an answer with another key")

	// Another request takes its place after a while, and the first is cancelled and not answered any more.
	clock.Advance(6 * time.Minute)
	check(t, w.engine.Retry(ctx, w.onlyRotation(t).ID, keyheraldtest.Admin()))
	wait(t, "another request", func() bool {
		all, cancelled := ourRequests(t, peer)
		requests = all
		return len(all) == 2 && len(cancelled) == 1 && cancelled[0] == all[0]
	})
	send(peer, requests[0], lost)
	still("an answer to a cancelled request")
	send(peer, requests[1], lost)
	w.waitDone(t)
	wait(t, "the cancellation", func() bool {
		all, cancelled := ourRequests(t, peer)
		return len(all) == 2 && len(cancelled) == 2 && cancelled[1] == all[1]
	})
	w.waitAct(t, "secret.kept", "/PEER", protocol.SecretMegolmBackup)
}
