package e2e

import (
	"context"
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// cluster is the package's PostgreSQL; every test has a database and roles of its own in it.
var cluster *keyheraldtest.Postgres

func TestMain(m *testing.M) {
	status := keyheraldtest.RunWithPostgres(&cluster, m.Run)
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

func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	waitFor(t, 30*time.Second, what, is)
}

func waitFor(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
