package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/roster"
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
	"<device>": `[A-Za-z0-9_-]+`, "<action>": `[a-z_]+\.[a-z_]+`, "<hash>": `[A-Za-z0-9+/]{43}=`,
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
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	ada := audit.ByLocal("ada", "bastion")
	old, version := w.ownBackup(t)
	_, _, err := w.stock.WriteHistory(ctx, version, old, history)
	check(t, err)
	w.newKey(t, "7")
	w.login(t, "STRANGER")
	account := w.open(t, "managed")
	_, err = account.Verify(ctx, nil)
	check(t, err)
	code, err := w.engine.NewCode(ctx, w.alice, time.Hour, ada)
	check(t, err)
	enrolling, cancel := context.WithTimeout(ctx, patience)
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
	enforcer, err := enforce.New(enforce.Config{DB: w.db, Engine: w.engine})
	check(t, err)
	onLeave := roster.Exemption{Reason: "on leave", Until: time.Now().Add(time.Hour)}
	_, err = enforcer.ApplyRoster(ctx, enforce.Roster{Entries: []roster.Entry{{UserID: w.alice}, {UserID: bob, Exemption: onLeave}}}, ada)
	check(t, err)
	wait(t, "the status that names the new version", func() bool {
		standings, err := enforcer.Standings(ctx, enforce.StandingFilter{})
		check(t, err)
		return standings[0].State == roster.Current
	})
	s := newSigner(t, w.database)
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
