package e2e

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"testing"
	"time"

	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// cluster is the package's PostgreSQL; every test has a database and roles of its own in it.
var cluster *keyheraldtest.Postgres

// ownBackup is a key backup of the user's own, as his client makes one.
func (w *world) ownBackup(t *testing.T) (key *backup.MegolmBackupKey, version id.KeyBackupVersion) {
	t.Helper()
	key, err := backup.NewMegolmBackupKey()
	check(t, err)
	version, err = w.stock.CreateBackup(t.Context(), key, w.recoveryKey)
	check(t, err)
	return key, version
}

// history is what ownBackup's holds and no device does.
const history = "only the first backup knows"

// counted are the events of the audit log by action.
func counted(t *testing.T, db *postgres.DB) map[string]int {
	t.Helper()
	return countedBy(t, db, func(line postgres.LogLine) string { return line.Action })
}

// countedByOutcome are they by action and outcome, with a space between.
func countedByOutcome(t *testing.T, db *postgres.DB) map[string]int {
	t.Helper()
	return countedBy(t, db, func(line postgres.LogLine) string { return line.Action + " " + line.Outcome })
}

func countedBy(t *testing.T, db *postgres.DB, of func(postgres.LogLine) string) map[string]int {
	t.Helper()
	lines, err := db.Log(t.Context(), "", 10_000)
	check(t, err)
	counts := map[string]int{}
	for _, line := range lines {
		counts[of(line)]++
	}
	return counts
}

func TestMain(m *testing.M) {
	status := keyheraldtest.RunWithPostgres(&cluster, m.Run, keyheraldtest.SettingsForHomeservers...)
	if all := flag.Lookup("test.run").Value.String() == ""; all && status == 0 {
		status = missingCauses()
	}
	os.Exit(status)
}

var backupSecret = event.AccountDataMegolmBackupKey

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs do until the test ends, and fails the test if it ends with an error of its own.
func run(t *testing.T, do func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("a part ended with: %v", err)
		}
	})
}

// patience is how long anything may take on a busy machine: whoever waits for longer waits for what does not come.
const patience = 2 * time.Minute

// forward is a way to the homeserver; what cannot be answered is a broken connection, never an answer of the proxy's own.
func forward(t *testing.T, homeserver string) *httputil.ReverseProxy {
	t.Helper()
	to, err := url.Parse(homeserver)
	check(t, err)
	return &httputil.ReverseProxy{Rewrite: func(out *httputil.ProxyRequest) { out.SetURL(to) },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }}
}

func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
