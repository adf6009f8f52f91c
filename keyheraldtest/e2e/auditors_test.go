package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/tlog"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// question is a query of docs/auditors.md with the rows that it says the answer has.
type question struct {
	about, sql string
	columns    []string
	rows       [][]string
}

// questions reads the page: each query is followed by its table.
func questions(t *testing.T) []question {
	t.Helper()
	page, err := os.ReadFile("../../docs/auditors.md")
	check(t, err)
	var all []question
	about, inSQL := "", false
	for line := range strings.Lines(string(page)) {
		line = strings.TrimRight(line, "\n")
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case line == "```sql":
			all, inSQL = append(all, question{about: about}), true
		case line == "```":
			inSQL = false
		case inSQL:
			all[len(all)-1].sql += line + "\n"
		case strings.HasPrefix(line, "### "):
			about = strings.TrimPrefix(line, "### ")
		case !strings.HasPrefix(line, "|") || len(all) == 0 || strings.Trim(line, "|- ") == "":
		case all[len(all)-1].columns == nil:
			all[len(all)-1].columns = cells
		default:
			all[len(all)-1].rows = append(all[len(all)-1].rows, cells)
		}
	}
	return all
}

// placeholders are what may stand for what differs.
var placeholders = map[string]string{
	"<time>": `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*Z`, "<uuid>": `[0-9a-f-]{36}`, "<number>": `\d+`, "<version>": `\d+`, "<interval>": `\d\d:\d\d:\d\d[.\d]*`,
	"<device>": `[A-Za-z0-9]+`, "<action>": `[a-z_]+\.[a-z_]+`, "<hash>": `[A-Za-z0-9+/]{43}=`,
}

// fits reports whether a row is the one that the page shows.
func fits(t *testing.T, shown, row []string) bool {
	t.Helper()
	for i, cell := range shown {
		pattern := regexp.QuoteMeta(strings.ReplaceAll(cell, "`", ""))
		for name, of := range placeholders {
			pattern = strings.ReplaceAll(pattern, regexp.QuoteMeta(name), of)
		}
		if strings.Contains(pattern, "<") {
			t.Errorf("the page has a placeholder that nobody knows: %s", cell)
		}
		if !regexp.MustCompile(`^` + pattern + `$`).MatchString(row[i]) {
			return false
		}
	}
	return true
}

// ask runs a query and returns what it answers, as psql would show it.
func ask(t *testing.T, db *postgres.DB, sql string) (columns []string, rows [][]string) {
	t.Helper()
	answer, err := db.RawDB.QueryContext(t.Context(), sql)
	if err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
	defer func() { _ = answer.Close() }()
	columns, err = answer.Columns()
	check(t, err)
	for answer.Next() {
		values, pointers := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			pointers[i] = &values[i]
		}
		check(t, answer.Scan(pointers...))
		row := make([]string, len(columns))
		for i, value := range values {
			switch v := value.(type) {
			case nil:
			case []byte:
				row[i] = string(v)
			case time.Time:
				row[i] = v.UTC().Format(time.RFC3339Nano)
			case bool:
				row[i] = fmt.Sprint(v)[:1]
			default:
				row[i] = fmt.Sprint(v)
			}
		}
		rows = append(rows, row)
	}
	check(t, answer.Err())
	return columns, rows
}

// The page for auditors is true: each of its queries runs as the auditor on the log of a real rotation, and answers what
// the page shows.
func TestTheQueriesForAuditorsAnswerWhatTheirPageShows(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := audit.ByLocal("ada", "bastion")
	old, err := backup.NewMegolmBackupKey()
	check(t, err)
	version, err := w.stock.CreateBackup(ctx, old, w.recoveryKey)
	check(t, err)
	_, _, err = w.stock.WriteHistory(ctx, version, old, "only the first backup knows")
	check(t, err)
	w.newKey(t, "7")
	w.login(t, "STRANGER")
	account := w.open(t, "managed")
	_, err = account.Verify(ctx, nil)
	check(t, err)
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, ada)
	check(t, err)
	enrolling, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	check(t, account.Enroll(enrolling, code))
	run(t, account.Run)
	source := func(n *intake.Notification) { n.Source = "corporate-kms" }
	w.notify(t, "n7", "7", source)
	w.waitDone(t)
	done := w.onlyRotation(t)
	bob := id.NewUserID("bob", keyheraldtest.ServerName)
	w.notify(t, "bob1", "1", source, func(n *intake.Notification) { n.User, n.Path = bob.String(), "keyherald/bob" })
	wait(t, "Bob's rotation to wait", func() bool {
		rotations, err := w.db.Rotations(ctx, bob, true)
		check(t, err)
		return len(rotations) == 1 && rotations[0].Facts.State == rotation.WaitingForEnrollment
	})
	check(t, w.engine.Refused(ctx, "corporate-kms", audit.RefusedWrongSignature, time.Now().Truncate(time.Minute), 1))
	if w.engine.Retry(ctx, done.ID, ada) == nil {
		t.Fatal("what is done was retried")
	}
	s := w.signer(t)
	sealAll(t, s)

	auditor, err := postgres.Open(ctx, w.database.AuditorURL)
	check(t, err)
	t.Cleanup(func() { _ = auditor.Close() })
	revoked := false
	for _, q := range questions(t) {
		t.Run(q.about, func(t *testing.T) {
			if len(q.rows) == 0 {
				t.Fatal("the page shows no row")
			}
			if strings.Contains(q.sql, "admin_actions") && !revoked {
				// Only now, since a user without a device stands otherwise.
				revoked = true
				devices, err := w.db.Devices(ctx, w.alice)
				check(t, err)
				check(t, w.engine.Revoke(ctx, w.alice, devices[0].DeviceID, "the laptop was lost", ada))
				sealAll(t, s)
			}
			local := strings.NewReplacer("example.org", keyheraldtest.ServerName, ":'rotation'", "'"+done.ID.String()+"'")
			columns, rows := ask(t, auditor, local.Replace(q.sql))
			if !slices.Equal(columns, q.columns) {
				t.Errorf("the columns are %v", columns)
			}
			for _, shown := range q.rows {
				for i := range shown {
					shown[i] = local.Replace(shown[i])
				}
				if !slices.ContainsFunc(rows, func(row []string) bool { return fits(t, shown, row) }) {
					t.Errorf("no row is %q, of:\n%s", shown, table(rows))
				}
			}
			if strings.Contains(q.sql, "rotation_story") && len(rows) != len(q.rows) {
				t.Errorf("the story has %d sentences, and the page %d:\n%s", len(rows), len(q.rows), table(rows))
			}
		})
	}
	if len(questions(t)) < 10 || !revoked {
		t.Error("the page was not read whole")
	}
	w.checkDerived(t)
}

func table(rows [][]string) string {
	var b strings.Builder
	for _, row := range rows {
		fmt.Fprintf(&b, "%q\n", row)
	}
	return b.String()
}

// checkDerived checks that what the log alone says of each user's newest rotation is what its row says.
func (w *world) checkDerived(t *testing.T) {
	t.Helper()
	super, err := postgres.Open(t.Context(), w.database.SuperURL)
	check(t, err)
	defer func() { _ = super.Close() }()
	_, wrong := ask(t, super, `SELECT * FROM auditor.compliance_at('2999-01-01') c FULL JOIN (SELECT DISTINCT ON (user_id) user_id, id::text AS rotation, CASE WHEN held AND ended_at IS NULL THEN 'held' ELSE state END AS state
		FROM rotation ORDER BY user_id, state = 'superseded', created_at DESC, id DESC) r USING (user_id) WHERE c.rotation IS DISTINCT FROM r.rotation OR c.state IS DISTINCT FROM r.state`)
	if len(wrong) != 0 {
		t.Errorf("the log says otherwise than the rows:\n%s", table(wrong))
	}
}

// signer is one that is not running.
func (w *world) signer(t *testing.T) *signer.Signer {
	t.Helper()
	return newSigner(t, w.database)
}

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

// How things stand is told from the log alone, at any time that it knows of.
func TestHowThingsStoodIsToldFromTheLogAlone(t *testing.T) {
	ctx := t.Context()
	db, _, database := newDatabase(t)
	clock := &keyheraldtest.Clock{}
	engine, err := relay.New(relay.Config{DB: db, Now: clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 1, Users: 2}})
	check(t, err)
	w := &world{db: db, database: database}
	super, err := postgres.Open(ctx, database.SuperURL)
	check(t, err)
	t.Cleanup(func() { _ = super.Close() })
	stood := func(at time.Time) map[string]string {
		t.Helper()
		states := map[string]string{}
		_, rows := ask(t, super, `SELECT user_id, version || ' ' || state, managed_devices FROM auditor.compliance_at('`+at.UTC().Format(time.RFC3339Nano)+`')`)
		for _, row := range rows {
			states[row[0]] = row[1] + " " + row[2]
		}
		return states
	}
	accept := func(user, version string) {
		t.Helper()
		n := notification(user+version, user, version)
		_, err := engine.Accept(ctx, n)
		check(t, err)
	}
	moments := []time.Time{}
	mark := func() { moments = append(moments, clock.Now()); clock.Advance(time.Hour) }
	device := func(action audit.Action, outcome audit.Outcome, actor audit.Actor, detail ...audit.Field) {
		t.Helper()
		check(t, db.Append(ctx, audit.Event{Time: clock.Now(), Actor: actor, Action: action, Subject: audit.OfDevice("@alice:example.org", "A"), Outcome: outcome, Detail: detail}))
	}
	mark()
	accept("alice", "1")
	accept("bob", "1")
	accept("carol", "1") // held: a storm
	device(audit.DeviceEnrolled, audit.Accepted, audit.ByDevice("@alice:example.org", "A"))
	mark()
	accept("alice", "3")
	accept("alice", "2") // late
	_, err = engine.Release(ctx, nil, keyheraldtest.Admin())
	check(t, err)
	bobs, err := db.Rotations(ctx, "@bob:example.org", false)
	check(t, err)
	check(t, engine.Cancel(ctx, bobs[0].ID, keyheraldtest.Admin()))
	if engine.Cancel(ctx, bobs[0].ID, keyheraldtest.Admin()) == nil {
		t.Fatal("a rotation was cancelled twice")
	}
	device(audit.DeviceRevoked, audit.Refused, keyheraldtest.Admin(), audit.Word("refusal", audit.RefusedReason))
	mark()
	check(t, engine.Retry(ctx, bobs[0].ID, keyheraldtest.Admin()))
	accept("bob", "1") // told again: nothing moves
	device(audit.DeviceRevoked, audit.Accepted, keyheraldtest.Admin())
	mark()
	for i, want := range []map[string]string{
		{},
		{"@alice:example.org": "1 received 1", "@bob:example.org": "1 received 0", "@carol:example.org": "1 held 0"},
		{"@alice:example.org": "3 received 1", "@bob:example.org": "1 cancelled 0", "@carol:example.org": "1 received 0"},
		{"@alice:example.org": "3 received 0", "@bob:example.org": "1 received 0", "@carol:example.org": "1 received 0"},
	} {
		if got := stood(moments[i]); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("at moment %d: %v, want %v", i, got, want)
		}
	}
	w.checkDerived(t)
}
