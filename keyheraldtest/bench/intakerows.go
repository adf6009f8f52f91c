package bench

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"strings"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/postgres"
)

// sampleNumber stands in the sample for what differs between notifications: twelve digits, which also end an UUID.
const sampleNumber = "100000000000"

// insertScript writes a transaction for pgbench from the rows that the engine made of one notification, so that the
// bytes are the same: the number in them is pgbench's, and it ends the UUIDs as well, which grow as UUIDv7 do.
func insertScript(ctx context.Context, db *postgres.DB) (string, error) {
	engine, err := newEngine(db)
	if err != nil {
		return "", err
	}
	if _, err := engine.Accept(ctx, intake.Notification{Source: "kms", ID: eventID(sampleNumber), KeyID: "k", BodySHA256: [32]byte{1},
		User: "@" + sampleNumber + ":example.org", Secret: "m.megolm_backup.v1", KMS: "corporate", Path: subject(sampleNumber), Version: "1"}); err != nil {
		return "", err
	}
	var rotationID, event string
	var body, salt, detail []byte
	err = db.QueryRow(ctx, `SELECT rotation.id, audit_event.id, body, salt, detail FROM rotation, audit_event JOIN audit_detail ON event_id = audit_event.id
		WHERE audit_event.id IN (SELECT id FROM audit_log WHERE action = 'notification.accepted')`).
		Scan(&rotationID, &event, &body, &salt, &detail)
	if err != nil {
		return "", fmt.Errorf("reading the sample: %w", err)
	}
	// text is a literal in which the number and the ids are the transaction's own. Its colons are escaped, since pgbench
	// looks for variables in literals too.
	text := func(sample string) string {
		for _, own := range []string{rotationID, event} {
			sample = strings.ReplaceAll(sample, own, own[:24]+sampleNumber)
		}
		sample = strings.NewReplacer(`\`, `\\`, `'`, `''`, `:`, `\x3a`).Replace(sample)
		return "E'" + strings.ReplaceAll(sample, sampleNumber, "' || :x::text || E'") + "'"
	}
	raw := func(b []byte) string { return `'\x` + hex.EncodeToString(b) + `'::bytea` }
	return strings.Join([]string{
		`\set n :n + 1`,
		`\set x 100000000000 + :round * 1000000000 + :n * 1000 + :client_id`,
		`BEGIN;`,
		`INSERT INTO notification (source, id, body_sha256, key_id, received_at, rotation_id) VALUES ('kms', ` + text(eventID(sampleNumber)) + `, ` +
			raw(make([]byte, 32)) + `, 'k', now(), (` + text(rotationID) + `)::uuid);`,
		`INSERT INTO rotation (id, user_id, secret, kms, path, version, source, state, created_at, updated_at) VALUES ((` + text(rotationID) + `)::uuid, ` +
			text("@"+sampleNumber+":example.org") + `, 'm.megolm_backup.v1', 'corporate', ` + text(subject(sampleNumber)) + `, '1', 'kms', 'received', now(), now());`,
		`INSERT INTO audit_event (id, body) VALUES ((` + text(event) + `)::uuid, convert_to(` + text(string(body)) + `, 'UTF8'));`,
		`INSERT INTO audit_detail (event_id, salt, detail) VALUES ((` + text(event) + `)::uuid, ` + raw(salt) + `, convert_to(` + text(string(detail)) + `, 'UTF8'));`,
		`COMMIT;`, ``,
	}, "\n"), nil
}

// sameRows fails where the rows of the databases are not of the same size, which they are compared by.
func sameRows(ctx context.Context, ours database, others ...database) error {
	want, err := rowSizes(ctx, ours.db)
	if err != nil {
		return err
	}
	for _, other := range others {
		got, err := rowSizes(ctx, other.db)
		if err != nil {
			return err
		}
		for table, size := range got {
			if math.Abs(size-want[table]) > 2 {
				return fmt.Errorf("a row of %s is %.1f bytes here and %.1f there: the comparison is none", table, want[table], size)
			}
		}
	}
	return nil
}

func rowSizes(ctx context.Context, db *postgres.DB) (map[string]float64, error) {
	sizes := map[string]float64{}
	for _, table := range []string{"notification", "rotation", "audit_event", "audit_detail"} {
		var size float64
		if err := db.QueryRow(ctx, `SELECT AVG(pg_column_size(t.*)) FROM `+table+` t`).Scan(&size); err != nil {
			return nil, fmt.Errorf("measuring the rows of %s: %w", table, err)
		}
		sizes[table] = size
	}
	return sizes, nil
}
