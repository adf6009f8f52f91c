package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/rotation"
)

// lines is a log that a test can read.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(word string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), word)
}

// lonely is a fleet with one enrolled account, behind a gate, whose log can be read.
func (w *world) lonely(t *testing.T, g *gate) (log *lines, commands *device.Fleet, file string) {
	t.Helper()
	config := device.Config{Accounts: filepath.Join(w.dir, "accounts.d"), State: filepath.Join(w.dir, "state"), PickleKeyFile: filepath.Join(w.dir, "fleet.key"), StatusInterval: time.Second}
	log = &lines{}
	running, err := device.NewFleet(config, nil, zerolog.New(log))
	check(t, err)
	commands, err = device.NewFleet(config, nil, zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel))
	check(t, err)
	w.account(t, "lonely", func(c *device.AccountConfig) { c.Homeserver = g.URL })
	account, giveBack, err := commands.Borrow(t.Context(), "lonely")
	check(t, err)
	w.enroll(t, account)
	check(t, giveBack())
	run(t, running.Run)
	wait(t, "the account to run", func() bool { return !w.seen(t).IsZero() })
	return log, commands, filepath.Join(config.Accounts, "lonely.yaml")
}

func TestTheAccountOfADeactivatedUserEndsOnceAndTheServerFindsOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	g := newGate(t, w.hs.URL)
	log, _, _ := w.lonely(t, g)
	_, err := w.stock.MakeRequest(ctx, "POST", w.stock.BuildClientURL("v3", "account", "deactivate"), map[string]any{"auth": mautrix.ReqUIAuthLogin{
		BaseAuthData: mautrix.BaseAuthData{Type: mautrix.AuthTypePassword}, User: w.alice.String(), Password: password}}, nil)
	check(t, err)
	// Dendrite holds the request for messages of a device that is gone for as long as any.
	wait(t, "the account to end", func() bool { return log.count("The account ends") > 0 })
	logins := g.seen("/login")
	w.notify(t, "n1", "1")
	wait(t, "the server to find out", func() bool { return w.onlyRotation(t).Facts.State == rotation.WaitingForEnrollment })
	// The fleet looks at its accounts every two seconds.
	time.Sleep(5 * time.Second)
	if again := g.seen("/login"); again != logins || log.count("The account ends") != 1 {
		t.Errorf("after the end there were %d more logins, and it was said %d times", again-logins, log.count("The account ends"))
	}
	status, err := device.Describe(ctx, filepath.Join(w.dir, "state", "lonely.db"))
	check(t, err)
	if text, _ := status["ended"].(string); text == "" {
		t.Error("the status does not say that the account ended")
	}
}

func TestAnAccountWhoseLoginIsRefusedGoesOnWhenItIsMendedAndTheServerIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	g := newGate(t, w.hs.URL)
	log, commands, file := w.lonely(t, g)
	passwordFile := filepath.Join(w.dir, "password")
	check(t, os.WriteFile(passwordFile, []byte("it was changed meanwhile"), 0o600))
	_, err := w.stock.MakeRequest(ctx, "DELETE", w.stock.BuildClientURL("v3", "devices", w.managedID(t)), map[string]any{"auth": mautrix.ReqUIAuthLogin{
		BaseAuthData: mautrix.BaseAuthData{Type: mautrix.AuthTypePassword}, User: w.alice.String(), Password: password}}, nil)
	check(t, err)
	wait(t, "the account to end", func() bool { return log.count("login_refused") > 0 })
	if log.count("it was changed") > 0 {
		t.Error("the password is in the log")
	}
	if err := tryLogin(t, commands, "lonely"); err == nil {
		t.Error("it was logged in with a wrong password")
	}
	check(t, os.WriteFile(passwordFile, []byte(password), 0o600))
	check(t, os.Chtimes(file, time.Time{}, time.Now().Add(time.Second)))
	w.waitAct(t, "account.ended", "login_refused")
	if n := len(w.acts(t, "account.ended")); n != 1 {
		t.Errorf("it is in the log %d times", n)
	}
}

func tryLogin(t *testing.T, commands *device.Fleet, name string) error {
	t.Helper()
	account, giveBack, err := commands.Borrow(t.Context(), name)
	if err != nil {
		return err
	}
	defer func() { check(t, giveBack()) }()
	return account.LogIn(t.Context())
}
