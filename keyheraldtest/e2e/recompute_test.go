package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// newSigner is a signer of a log that is not running.
func newSigner(t *testing.T, database *keyheraldtest.Database) *signer.Signer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.key")
	_, err := checkpoint.WriteKeys(path, "example.org/keyherald")
	check(t, err)
	keys, err := checkpoint.LoadKeys("example.org/keyherald", path)
	check(t, err)
	db, err := postgres.Open(t.Context(), database.SignerURL)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	s, err := signer.New(signer.Config{DB: db, Keys: keys, Log: zerolog.Nop()})
	check(t, err)
	return s
}

func sealAll(t *testing.T, s *signer.Signer) {
	t.Helper()
	for more := true; more; {
		var err error
		more, err = s.Seal(t.Context())
		check(t, err)
	}
}

// The query that recomputes the root says the signed one, for trees of many shapes, and notices one changed byte; so does
// the one about details.
func TestTheRootIsRecomputedInSQLAndOneChangedByteIsNoticed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, database := newDatabase(t)
	super, err := postgres.Open(ctx, database.SuperURL)
	check(t, err)
	t.Cleanup(func() { _ = super.Close() })
	auditor, err := postgres.Open(ctx, database.AuditorURL)
	check(t, err)
	t.Cleanup(func() { _ = auditor.Close() })
	s := newSigner(t, database)
	all := questions(t)
	events, details := all[len(all)-2].sql, all[len(all)-1].sql
	ask1 := func(query string) []string {
		t.Helper()
		_, rows := ask(t, auditor, query)
		if len(rows) != 1 {
			t.Fatalf("it answers %v", rows)
		}
		return rows[0]
	}
	total := 0
	for _, n := range []int{1, 1, 1, 1, 2, 5, 100, 3000} {
		batch := make([]audit.Event, n)
		for i := range batch {
			batch[i] = audit.Event{Time: time.Now(), Actor: audit.ByRelay(), Action: audit.LeaseTaken, Subject: audit.OfUser("@keyherald:example.org"), Outcome: audit.Accepted,
				Detail: audit.Detail{audit.Number("epoch", total+i)}}
		}
		total += n
		check(t, db.Append(ctx, batch...))
		sealAll(t, s)
		got := ask1(events)
		if want := rootOf(t, super); got[4] != "as signed" || got[0] != got[1] || got[3] != base64.StdEncoding.EncodeToString(want[:]) {
			t.Errorf("of %d events it answers %v", total, got)
		}
	}
	if got := ask1(details); got[1] != "0" || got[2] != "0" {
		t.Errorf("of the details it answers %v", got)
	}
	change := func(statements ...string) {
		t.Helper()
		check(t, super.Txn(ctx, func(ctx context.Context) error {
			for _, statement := range append([]string{"SET LOCAL session_replication_role = replica", "ALTER TABLE audit_event DISABLE TRIGGER ALL", "ALTER TABLE audit_detail DISABLE TRIGGER ALL",
				"ALTER TABLE audit_leaf DISABLE TRIGGER ALL"}, statements...) {
				if _, err := super.Exec(ctx, statement); err != nil {
					return fmt.Errorf("%s: %w", statement, err)
				}
			}
			return nil
		}))
	}
	const flip = `set_byte(%[1]s, length(%[1]s) / 2, get_byte(%[1]s, length(%[1]s) / 2) # 1)`
	const at = `(SELECT event_id FROM audit_leaf WHERE leaf_index = 1234)`
	flipBody, flipDetail := fmt.Sprintf(flip, "body"), fmt.Sprintf(flip, "detail")
	change(`UPDATE audit_event SET body = ` + flipBody + ` WHERE id = ` + at)
	if got := ask1(events); got[4] != "altered" || got[2] != "1234" {
		t.Errorf("with a changed byte it answers %v", got)
	}
	change(`UPDATE audit_leaf SET leaf_hash = sha256('\x00'::bytea || body) FROM audit_event WHERE id = event_id AND leaf_index = 1234`)
	if got := ask1(events); got[4] != "altered" || got[2] != "" {
		t.Errorf("with a changed byte, and its leaf with it, it answers %v", got)
	}
	change(`UPDATE audit_event SET body = `+flipBody+` WHERE id = `+at, `UPDATE audit_leaf SET leaf_hash = sha256('\x00'::bytea || body) FROM audit_event WHERE id = event_id AND leaf_index = 1234`)
	if got := ask1(events); got[4] != "as signed" {
		t.Errorf("with the byte as it was it answers %v", got)
	}
	change(`UPDATE audit_detail SET detail = ` + flipDetail + ` WHERE event_id = ` + at)
	if got := ask1(details); got[1] != "1" {
		t.Errorf("with a changed byte of a detail it answers %v", got)
	}
	change(`DELETE FROM audit_detail WHERE event_id = ` + at)
	if got := ask1(details); got[1] != "0" || got[2] != "1" {
		t.Errorf("without a detail it answers %v", got)
	}
	// What is no JSON any more must not keep the rest from being read.
	change(`UPDATE audit_event SET body = '\xff'::bytea || body WHERE id = ` + at)
	if _, rows := ask(t, auditor, `SELECT action, subject FROM auditor.log WHERE index = 1234`); len(rows) != 1 || rows[0][0] != "" {
		t.Errorf("of an event that is no JSON the view shows %v", rows)
	}
	change(`DELETE FROM audit_leaf WHERE leaf_index = 2000`)
	if got := ask1(events); got[4] != "altered" || got[0] == got[1] {
		t.Errorf("without a leaf it answers %v", got)
	}
}

// rootOf computes the root by the definition of RFC 6962, from the bytes of the sealed events.
func rootOf(t *testing.T, db *postgres.DB) tlog.Hash {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT body FROM audit_leaf JOIN audit_event ON id = event_id ORDER BY leaf_index`)
	check(t, err)
	defer func() { _ = rows.Close() }()
	var bodies [][]byte
	for rows.Next() {
		var body []byte
		check(t, rows.Scan(&body))
		bodies = append(bodies, body)
	}
	check(t, rows.Err())
	var root func(bodies [][]byte) tlog.Hash
	root = func(bodies [][]byte) tlog.Hash {
		if len(bodies) == 1 {
			return sha256.Sum256(append([]byte{0}, bodies[0]...))
		}
		k := 1
		for k*2 < len(bodies) {
			k *= 2
		}
		left, right := root(bodies[:k]), root(bodies[k:])
		return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
	}
	return root(bodies)
}
