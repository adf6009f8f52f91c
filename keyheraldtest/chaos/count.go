package chaos

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// tally is what was counted when everything was quiet. Findings name each fault.
type tally struct {
	lost, duplicated, redelivered, auditMismatch int
	// lostRoomKeys are among the lost; checks is how often all of a user's room keys were looked at, and late how many of them
	// arrived in an old version while it was carried over.
	lostRoomKeys, checks, late int
	findings                   []string
}

func (t *tally) find(count *int, n int, format string, args ...any) {
	if n > 0 {
		*count += n
		t.findings = append(t.findings, fmt.Sprintf(format, args...))
	}
}

// quiet reports what is still to come: nil where every accepted notification has an ended rotation, every outbox is
// empty, and every receiving client has the newest key.
func (w *world) quiet(ctx context.Context, book *ledger) error {
	for _, a := range book.all() {
		if state, err := w.stateOf(ctx, a); err != nil {
			return err
		} else if state != "" {
			return fmt.Errorf("notification %s: %s", a.id, state)
		}
	}
	for _, u := range w.users {
		for _, receiver := range u.receivers {
			if !hasNewest(u, receiver) {
				return fmt.Errorf("a receiver of %s does not have the newest key", u.name)
			}
		}
		rows, err := w.pushes(ctx, u)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.state == "pending" {
				return fmt.Errorf("the outbox of %s's device is not empty", u.name)
			}
		}
	}
	return nil
}

// stateOf is empty where the notification's rotation has ended, and else says what is wrong.
func (w *world) stateOf(ctx context.Context, a accepted) (string, error) {
	var state string
	var ended bool
	err := w.db.QueryRow(ctx, `SELECT r.state, r.ended_at IS NOT NULL FROM notification n JOIN rotation r ON r.id = n.rotation_id
		WHERE n.source = 'corporate-kms' AND n.id = $1`, a.id).Scan(&state, &ended)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "unknown", nil
	case err != nil:
		return "", err
	case !ended:
		return state, nil
	}
	return "", nil
}

func hasNewest(u *user, receiver *keyheraldtest.Receiver) bool {
	newest := u.keys[len(u.keys)-1].RevealBase64()
	for _, message := range receiver.Messages() {
		if strings.Contains(message.Content, newest) {
			return true
		}
	}
	return false
}

// pushed is a row of a managed device's outbox.
type pushed struct {
	key, device, state string
	hash               [32]byte
}

// pushes reads the outbox of a user's managed device.
func (w *world) pushes(ctx context.Context, u *user) ([]pushed, error) {
	path := filepath.Join(w.config.Dir, fmt.Sprintf("fleet-%d", u.fleet), "state", u.name+".db")
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	rows, err := db.QueryContext(ctx, `SELECT key, recipient_device, state, content FROM todevice_outbox WHERE key LIKE 'push/%'`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []pushed
	for rows.Next() {
		var row pushed
		var content string
		if err := rows.Scan(&row.key, &row.device, &row.state, &content); err != nil {
			return nil, err
		}
		if row.hash, err = ciphertextHash(content); err != nil {
			return nil, fmt.Errorf("reading %s: %w", row.key, err)
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

// ciphertextHash is how a receiver knows a message: by the SHA-256 of its one ciphertext.
func ciphertextHash(content string) (hash [32]byte, err error) {
	var message struct {
		Ciphertext map[string]struct {
			Body string `json:"body"`
		} `json:"ciphertext"`
	}
	if err := json.Unmarshal([]byte(content), &message); err != nil {
		return hash, err
	}
	for _, ciphertext := range message.Ciphertext {
		raw, err := base64.RawStdEncoding.DecodeString(ciphertext.Body)
		return sha256.Sum256(raw), err
	}
	return hash, errors.New("there is no ciphertext")
}

// count counts from the receiving side and the audit log.
func (w *world) count(ctx context.Context, book *ledger) (tally, error) {
	var t tally
	for _, a := range book.all() {
		state, err := w.stateOf(ctx, a)
		if err != nil {
			return t, err
		}
		if state != "" {
			t.find(&t.lost, 1, "lost: the accepted notification %s has no ended rotation: %s", a.id, state)
		}
	}
	for _, u := range w.users {
		if err := w.countUser(ctx, u, &t); err != nil {
			return t, fmt.Errorf("counting %s: %w", u.name, err)
		}
	}
	for _, table := range []string{`SELECT COUNT(*) FROM todevice_inbox WHERE state = 'duplicate'`} {
		var n int
		if err := w.db.QueryRow(ctx, table).Scan(&n); err != nil {
			return t, err
		}
		t.redelivered += n
	}
	return t, w.countAudit(ctx, &t)
}

func (w *world) countUser(ctx context.Context, u *user, t *tally) error {
	rows, err := w.pushes(ctx, u)
	if err != nil {
		return err
	}
	for i, receiver := range u.receivers {
		device := fmt.Sprintf("%sR%d", strings.ToUpper(u.name), i)
		decrypted := receiver.Decryptions()
		for _, row := range rows {
			if row.device == device && row.state != "withdrawn" && decrypted[row.hash] == 0 {
				t.find(&t.lost, 1, "lost: %s was never decrypted by %s (%s)", row.key, device, row.state)
			}
		}
		if !hasNewest(u, receiver) {
			t.find(&t.lost, 1, "lost: %s does not have the newest key", device)
		}
		for _, times := range decrypted {
			t.find(&t.duplicated, times-1, "duplicated: a ciphertext was decrypted %d times by %s", times, device)
		}
		ciphertexts := map[string]map[[32]byte]bool{}
		for _, message := range receiver.Messages() {
			push := message.Type + message.Content
			if ciphertexts[push] == nil {
				ciphertexts[push] = map[[32]byte]bool{}
			}
			ciphertexts[push][message.CiphertextHash] = true
		}
		for _, distinct := range ciphertexts {
			t.find(&t.duplicated, len(distinct)-1, "duplicated: %s decrypted the same push from %d ciphertexts", device, len(distinct))
		}
		again, err := receiver.PutAway(ctx, "duplicate")
		if err != nil {
			return err
		}
		t.redelivered += again
	}
	current, err := u.laptop.GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return err
	}
	if newest := u.keys[len(u.keys)-1]; !newest.Fits(string(current.AuthData.PublicKey)) {
		t.find(&t.lost, 1, "lost: the current key-backup version of %s is not the newest key's", u.name)
	}
	if err := w.checkHistory(ctx, u); err != nil {
		return err
	}
	t.lost += u.history.missing
	t.lostRoomKeys += u.history.missing
	t.findings = append(t.findings, u.history.findings...)
	t.checks, t.late = t.checks+u.history.checks, t.late+u.history.late
	return nil
}

// effects are counted on both sides: each query returns effects without their event, and events without their effect.
var effects = []struct{ what, query string }{
	{"accepted notifications and notification.accepted", pairs(`SELECT id AS key FROM notification WHERE problem = ''`, `SELECT detail->>'id' AS key FROM audit_log WHERE action = 'notification.accepted'`)},
	{"attempts and trigger.queued", pairs(`SELECT rotation_id || '/' || attempt AS key FROM attempt`, `SELECT rotation || '/' || (detail->>'attempt') AS key FROM audit_log WHERE action = 'trigger.queued'`)},
	{"sent attempts and trigger.sent", pairs(`SELECT rotation_id || '/' || attempt AS key FROM attempt WHERE sent_at IS NOT NULL`, `SELECT rotation || '/' || (detail->>'attempt') AS key FROM audit_log WHERE action = 'trigger.sent'`)},
	{"done rotations and rotation.done", pairs(`SELECT id::text AS key FROM rotation WHERE state = 'done'`, `SELECT rotation AS key FROM audit_log WHERE action = 'rotation.done'`)},
	{"superseded rotations and rotation.superseded", pairs(`SELECT id::text AS key FROM rotation WHERE state = 'superseded'`, `SELECT rotation AS key FROM audit_log WHERE action = 'rotation.superseded'`)},
	{"reports of rotations and progress.reported", pairs(`SELECT id::text AS key FROM report WHERE rotation_id IN (SELECT id FROM rotation)`,
		`SELECT detail->>'report' AS key FROM audit_log WHERE action = 'progress.reported'`)},
	// A device may be at work for a rotation that the database lost when it was put back.
	{"reports of rotations that are not known and message.unusable", pairs(`SELECT rotation_id::text AS key FROM report WHERE rotation_id NOT IN (SELECT id FROM rotation)`,
		`SELECT detail->>'rotation' AS key FROM audit_log WHERE action = 'message.unusable' AND detail->>'refusal' = 'unknown_rotation'`)},
	{"statuses that were news and their events", pairs(`SELECT id::text AS key FROM report WHERE news`, `SELECT detail->>'report' AS key FROM audit_log WHERE action IN ('status.reported', 'drift.reported')`)},
	{"where each user's newest rotation stands and what the log alone says of it", pairs(`SELECT DISTINCT ON (user_id) id || ' ' || CASE WHEN held AND ended_at IS NULL THEN 'held' ELSE state END AS key
		FROM rotation ORDER BY user_id, state = 'superseded', created_at DESC, id DESC`, `SELECT rotation || ' ' || state AS key FROM auditor.compliance_at('2999-01-01') WHERE rotation IS NOT NULL`)},
	{"enrolled devices and device.enrolled", pairs(`SELECT user_id || '/' || device_id AS key FROM device`, `SELECT subject AS key FROM audit_log WHERE action = 'device.enrolled'`)},
}

// pairs compares two lists as multisets.
func pairs(effects, events string) string {
	return `SELECT (SELECT COUNT(*) FROM ((` + effects + `) EXCEPT ALL (` + events + `)) a), (SELECT COUNT(*) FROM ((` + events + `) EXCEPT ALL (` + effects + `)) b)`
}

// sealed says what is not sealed yet: nil where every event is under the newest checkpoint that was published.
func (w *world) sealed(ctx context.Context) error {
	note, err := os.ReadFile(filepath.Join(w.config.Dir, "checkpoints", "latest"))
	if err != nil {
		return err
	}
	keys, err := checkpoint.LoadKeys(logName, filepath.Join(w.config.Dir, "audit.key"))
	if err != nil {
		return err
	}
	published, err := checkpoint.Open(logName, string(note), keys.Verifiers)
	if err != nil {
		return err
	}
	var events, wrong int64
	err = w.db.QueryRow(ctx, `SELECT COUNT(*), COUNT(*) FILTER (WHERE leaf_hash IS DISTINCT FROM sha256('\x00'::bytea || body))
		FROM audit_event LEFT JOIN audit_leaf ON event_id = id`).Scan(&events, &wrong)
	if err != nil {
		return err
	}
	root, err := tree.Root(ctx, published.Size, w.db.TreeNodes)
	if err != nil {
		return err
	}
	if events != published.Size || wrong != 0 || root != published.Root {
		return fmt.Errorf("of %d events %d are not sealed, and the published checkpoint is of %d", events, wrong, published.Size)
	}
	return nil
}

func (w *world) countAudit(ctx context.Context, t *tally) error {
	// Statuses come in at any time, so there is no moment at which the sealing must be through.
	if err := keyheraldtest.Until(ctx, time.Minute, func() error { return w.sealed(ctx) }); err != nil {
		t.find(&t.auditMismatch, 1, "audit: the log is not sealed: %v", err)
	}
	for _, effect := range effects {
		var without, invented int
		if err := w.db.QueryRow(ctx, effect.query).Scan(&without, &invented); err != nil {
			return fmt.Errorf("comparing %s: %w", effect.what, err)
		}
		t.find(&t.auditMismatch, without+invented, "audit: %s: %d effects without event, %d events without effect", effect.what, without, invented)
	}
	return nil
}
