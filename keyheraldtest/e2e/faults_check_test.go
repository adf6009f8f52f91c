package e2e

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"

	"maunium.net/go/mautrix/crypto/backup"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// forms are what each receiver gets of a rotation.
var forms = []string{"m.secret.send", "io.element.msc4385.secret.push"}

func payloadOf(form string, key backupkey.Key) string {
	return form + ` {"name":"m.megolm_backup.v1","secret":"` + key.RevealBase64() + `"}`
}

// checkAnswer checks that an accepted notification is durable, and that its sender is never told it was his fault.
func (w *faulty) checkAnswer(t *testing.T, status int) {
	t.Helper()
	switch kept := w.count(t, `SELECT COUNT(*) FROM notification WHERE rotation_id IS NOT NULL AND id = $1`, fmt.Sprint(w.notifications)); {
	case status == http.StatusAccepted && kept != 1:
		t.Errorf("202 was answered, and %d notifications are kept", kept)
	case status != http.StatusAccepted && status != http.StatusServiceUnavailable:
		t.Errorf("the notification was answered %d", status)
	}
}

func (w *faulty) count(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	check(t, w.db.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}

// inStore counts in the device's store.
func (w *faulty) inStore(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	check(t, w.store.QueryRowContext(t.Context(), query, args...).Scan(&n))
	return n
}

// unsettled says what is still on its way: nothing a device reported may be missing at the server, and nothing that
// was pushed at the receivers.
func (w *faulty) unsettled(t *testing.T, key backupkey.Key) error {
	var waits []error
	must := func(is bool, what string) {
		if !is {
			waits = append(waits, errors.New(what))
		}
	}
	r := w.onlyRotation(t)
	must(r.KMS.Version == w.kmsVersion && r.Facts.State == rotation.Done, "the rotation is "+string(r.Facts.State)+" "+string(r.Facts.Attention))
	must(w.count(t, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'pending'`) == 0, "the bot's inbox is not empty")
	must(w.count(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`) == 0, "the bot's outbox is not empty")
	must(w.inStore(t, `SELECT COUNT(*) FROM todevice_inbox WHERE state = 'pending'`) == 0, "the device's inbox is not empty")
	must(w.inStore(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'pending'`) == 0, "the device's outbox is not empty")
	must(w.inStore(t, `SELECT COUNT(*) FROM journal WHERE NOT ended`) == 0, "the device is not at its end")
	must(w.inStore(t, `SELECT COUNT(*) FROM todevice_outbox WHERE state = 'sent' AND (key LIKE 'report/%' OR key LIKE 'status/%')`) ==
		w.count(t, `SELECT COUNT(*) FROM report`), "a report is not at the server")
	for _, form := range forms {
		n, _ := w.received.ciphertexts(payloadOf(form, key))
		must(n > 0, "RECEIVER has no "+form)
	}
	must(w.stockHas(key) > 0, "STOCK has no push")
	return errors.Join(waits...)
}

func (w *faulty) stockHas(key backupkey.Key) (times int) {
	for _, push := range w.stock.Pushes() {
		if push.Secret == key.RevealBase64() {
			times++
		}
	}
	return times
}

// checkAll checks what must hold after every rotation, whatever failed on its way.
func (w *faulty) checkAll(t *testing.T, key backupkey.Key) {
	w.checkHomeserver(t, key)
	w.checkCiphertexts(t, key)
	w.checkLog(t)
}

// checkHomeserver checks that the rotation made one key-backup version, with the key, the history and the recovery copy.
func (w *faulty) checkHomeserver(t *testing.T, key backupkey.Key) {
	ctx := t.Context()
	current, err := w.stock.GetKeyBackupLatestVersion(ctx)
	check(t, err)
	if string(current.AuthData.PublicKey) != key.PublicKey() {
		t.Error("the current key-backup version is not the rotation's")
	}
	// Dendrite counts the versions of all users, and Alice alone has any.
	version, err := strconv.Atoi(current.Version.String())
	check(t, err)
	if w.backupVersion != 0 && version != w.backupVersion+1 {
		t.Errorf("key-backup version %d follows version %d: others were created between", version, w.backupVersion)
	}
	w.backupVersion = version
	if current.Count != w.roomKeys {
		t.Errorf("the new version has %d room keys, and the history has %d", current.Count, w.roomKeys)
	}
	private, err := backup.MegolmBackupKeyFromBytes(key.Reveal())
	check(t, err)
	keys, err := w.stock.GetKeyBackup(ctx, current.Version)
	check(t, err)
	for _, room := range keys.Rooms {
		for _, session := range room.Sessions {
			if _, err := session.SessionData.Decrypt(private); err != nil {
				t.Errorf("a room key of the new version does not open: %v", err)
			}
		}
	}
	keyID, metadata, err := w.stock.Machine.SSSS.GetDefaultKeyData(ctx)
	check(t, err)
	fourS, err := metadata.VerifyRecoveryKey(keyID, w.recoveryKey)
	check(t, err)
	copied, err := w.stock.Machine.SSSS.GetDecryptedAccountData(ctx, backupSecret, fourS)
	check(t, err)
	if !bytes.Equal(copied, key.Reveal()) {
		t.Error("the recovery copy is not the new key: " + base64.RawStdEncoding.EncodeToString(copied)[:4] + "…")
	}
}

// checkCiphertexts checks that every message was encrypted once and only those bytes were sent, and that the receivers
// could read each and read it once.
func (w *faulty) checkCiphertexts(t *testing.T, key backupkey.Key) {
	w.wire.mu.Lock()
	defer w.wire.mu.Unlock()
	for txn, bodies := range w.wire.bytes {
		if len(bodies) != 1 {
			t.Errorf("%d different bodies were sent under transaction id %s", len(bodies), txn)
		}
	}
	for sender, db := range map[string]*sql.DB{"bot": w.db.RawDB, "device": w.store} {
		committed := outboxOf(t, db)
		for content := range w.wire.sent[sender] {
			if !committed[content] {
				t.Errorf("the %s sent a ciphertext that is in no row of its outbox", sender)
			}
		}
	}
	for _, form := range forms {
		if distinct, decryptions := w.received.ciphertexts(payloadOf(form, key)); distinct != 1 || decryptions != 1 {
			t.Errorf("RECEIVER got %d ciphertexts of %s and decrypted %d times", distinct, form, decryptions)
		}
	}
	if n := w.stockHas(key); n != 1 {
		t.Errorf("STOCK took the key %d times", n)
	}
	w.received.mu.Lock()
	defer w.received.mu.Unlock()
	for _, reason := range w.received.unreadable {
		t.Errorf("RECEIVER could not read a message: %s", reason)
	}
	const unread = `SELECT COUNT(*) FROM todevice_inbox WHERE state IN ('undecryptable', 'unusable')`
	if n := w.count(t, unread) + w.inStore(t, unread); n != 0 {
		t.Errorf("%d messages between server and device could not be read or used", n)
	}
}

// outboxOf are the ciphertexts that were committed; each key has one.
func outboxOf(t *testing.T, db *sql.DB) map[[32]byte]bool {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT content FROM todevice_outbox`)
	check(t, err)
	defer func() { _ = rows.Close() }()
	committed := map[[32]byte]bool{}
	for rows.Next() {
		var content string
		check(t, rows.Scan(&content))
		committed[hashOf([]byte(content))] = true
	}
	check(t, rows.Err())
	return committed
}

// checkLog checks that the log tells what happened, all of it, and nothing else: over all rotations by number, and of
// this one by what was said.
func (w *faulty) checkLog(t *testing.T) {
	for _, pair := range []struct{ actions, effect string }{
		{"notification.accepted", `SELECT COUNT(*) FROM notification`},
		{"trigger.queued", `SELECT COUNT(*) FROM attempt`},
		{"trigger.sent", `SELECT COUNT(*) FROM attempt WHERE sent_at IS NOT NULL`},
		{"rotation.done", `SELECT COUNT(*) FROM rotation WHERE state = 'done'`},
		{"progress.reported", `SELECT COUNT(*) FROM report WHERE rotation_id IS NOT NULL`},
		{"status.reported,drift.reported", `SELECT COUNT(*) FROM report WHERE news`},
		{"delivery.reported", `SELECT COUNT(*) FROM delivery`},
		{"message.undecryptable", `SELECT 0`},
		{"message.unusable", `SELECT 0`},
	} {
		// In one look, as a status may come in at any time.
		var told, happened int
		check(t, w.db.QueryRow(t.Context(), `SELECT (SELECT COUNT(*) FROM audit_log WHERE action = ANY(string_to_array($1, ','))), (`+pair.effect+`)`, pair.actions).
			Scan(&told, &happened))
		if told != happened {
			t.Errorf("the log has %d %s, and it happened %d times", told, pair.actions, happened)
		}
	}
	r := w.onlyRotation(t)
	lines, err := w.db.Log(t.Context(), r.ID.String(), 100)
	check(t, err)
	got := map[string]int{}
	for _, line := range lines {
		what := line.Action
		if line.Action == "progress.reported" {
			what = string(line.Detail)
		}
		got[what]++
	}
	// What was carried and created is the same whichever try it was that could report it.
	details, err := w.db.RawDB.QueryContext(t.Context(), `SELECT detail->>'stage', COUNT(*), bool_and(COALESCE(detail->>'created', 'true') = 'true'),
		MAX((detail->>'carried')::int), MAX((detail->>'total')::int) FROM audit_log WHERE rotation = $1 AND action = 'progress.reported' GROUP BY 1`, r.ID.String())
	check(t, err)
	stages := map[protocol.Stage]int{}
	for details.Next() {
		var stage protocol.Stage
		var n int
		var created bool
		var carried, total sql.NullInt64
		check(t, details.Scan(&stage, &n, &created, &carried, &total))
		stages[stage] = n
		if !created {
			t.Error("the device is said to have found a key-backup version that it made")
		}
		if stage == protocol.StageCarriedOver && (carried.Int64 != int64(w.roomKeys) || total.Int64 != int64(w.roomKeys)) {
			t.Errorf("%d of %d room keys are said to be carried over, and there are %d", carried.Int64, total.Int64, w.roomKeys)
		}
	}
	check(t, errors.Join(details.Err(), details.Close()))
	attempts, err := w.db.Attempts(t.Context(), r.ID)
	check(t, err)
	for _, stage := range []protocol.Stage{protocol.StageTriggerAccepted, protocol.StageFetched, protocol.StageBackupCreated,
		protocol.StageRecoveryCopyWritten, protocol.StageCarriedOver, protocol.StagePushed} {
		if stages[stage] != 1 {
			t.Errorf("stage %s was reported %d times", stage, stages[stage])
		}
	}
	if len(attempts) != 1 || got["trigger.queued"] != 1 || got["trigger.sent"] != 1 || got["rotation.done"] != 1 || got["notification.accepted"] != 1 {
		t.Errorf("%d attempts were made, and the log says %v", len(attempts), got)
	}
	w.checkDerived(t)
	outcomes, err := w.db.Outcomes(t.Context(), r.ID)
	check(t, err)
	if outcomes[string(protocol.OutcomeSent)] != w.targets || len(outcomes) != 1 {
		t.Errorf("the outcomes are %v", outcomes)
	}
}
