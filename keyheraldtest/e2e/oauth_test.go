package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// The authorization server is in the process and follows the RFCs; Matrix Authentication Service was not run.
func (w *world) authorizationServer(t *testing.T) *keyheraldtest.AuthorizationServer {
	t.Helper()
	server, err := keyheraldtest.NewAuthorizationServer(w.hs.URL)
	check(t, err)
	t.Cleanup(server.Close)
	return server
}

func byOAuth(server *keyheraldtest.AuthorizationServer) func(*device.AccountConfig) {
	return func(c *device.AccountConfig) {
		c.Homeserver = server.URL
		c.Login = device.Login{OAuth: &device.OAuth{ClientName: "Keyherald", ClientURI: "https://keyherald.example.org"}}
	}
}

// openByOAuth opens an account whose authorization answer deals with.
func (w *world) openByOAuth(t *testing.T, name string, server *keyheraldtest.AuthorizationServer, log *lines, answer func(device.Authorization)) (*device.Account, error) {
	t.Helper()
	options := w.options(t, name)
	options.Log = zerolog.New(log)
	if answer != nil {
		options.Authorize = func(authorization device.Authorization) { go answer(authorization) }
	}
	return device.Open(t.Context(), w.account(t, name, byOAuth(server)), options)
}

func TestADeviceThatAPersonAuthorizedRenewsItsTokensByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.newKey(t, "1")
	server := w.authorizationServer(t)
	// mautrix renews a token ten seconds before its end.
	server.Life = 12 * time.Second
	log := &lines{}
	account, err := w.openByOAuth(t, "managed", server, log, func(authorization device.Authorization) {
		if !strings.HasPrefix(authorization.URIComplete, server.URL+"/link?code=") || authorization.URI != server.URL+"/link" || time.Until(authorization.Expires) < 30*time.Second {
			t.Errorf("the person is shown %q", authorization.URIComplete)
		}
		time.Sleep(1500 * time.Millisecond) // so that the device asks in vain at least once
		check(t, server.Authorize(context.WithoutCancel(ctx), authorization.UserCode, w.alice, password))
	})
	check(t, err)
	w.enroll(t, account)
	// start runs the device, which ends by itself or by stop; then its store is closed.
	start := func(account *device.Account) (stop func(), ended <-chan error) {
		runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan error, 1)
		go func() { done <- errors.Join(account.Run(runCtx), account.Close()); close(done) }()
		return func() { cancel(); check(t, <-done) }, done
	}
	stop, _ := start(account)
	w.notify(t, "n1", "1")
	w.waitDone(t)
	wait(t, "the tokens to be renewed", func() bool { refreshed, _ := server.Refreshed(); return refreshed >= 2 })
	stop()

	// The tokens that were kept do for the next start, also where the access token expired meanwhile.
	server.Expire()
	account, err = w.openByOAuth(t, "managed", server, log, nil)
	check(t, err)
	_, ended := start(account)
	w.newKey(t, "2")
	w.notify(t, "n2", "2")
	wait(t, "the second rotation", func() bool { return w.onlyRotation(t).KMS.Version == "2" })
	w.waitDone(t)
	if _, reused := server.Refreshed(); reused != 0 {
		t.Errorf("%d refresh tokens came a second time", reused)
	}

	server.Revoke()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "login_refused") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("the device does not end when its authorization is revoked")
	}
	tokens := server.Tokens()
	for _, suffix := range storeFiles {
		raw, err := os.ReadFile(w.store("managed") + suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, token := range tokens {
			if strings.Contains(string(raw), token) || log.count(token) > 0 {
				t.Errorf("a token is in the clear in the store%s or in the log", suffix)
			}
		}
	}
	// Authorized anew, it is the same device.
	before := w.managedID(t)
	account, err = w.openByOAuth(t, "managed", server, log, func(authorization device.Authorization) {
		check(t, server.Authorize(context.WithoutCancel(ctx), authorization.UserCode, w.alice, password))
	})
	check(t, err)
	check(t, account.LogIn(ctx))
	check(t, account.Close())
	account, err = w.openByOAuth(t, "managed", server, log, nil)
	check(t, err)
	stop, _ = start(account)
	seen := w.seen(t)
	wait(t, "the device to report again", func() bool { return w.seen(t).After(seen) })
	stop()
	if w.managedID(t) != before {
		t.Error("it came back as another device")
	}
}

func TestAnAuthorizationThatComesToNothingSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	bob, err := w.hs.CreateUser(ctx, "bob", password)
	check(t, err)
	authorize := func(server *keyheraldtest.AuthorizationServer, user id.UserID) func(device.Authorization) {
		return func(authorization device.Authorization) {
			check(t, server.Authorize(context.WithoutCancel(ctx), authorization.UserCode, user, password))
		}
	}
	for name, test := range map[string]struct {
		prepare func(*keyheraldtest.AuthorizationServer) func(device.Authorization)
		want    string
	}{
		"it is denied": {func(s *keyheraldtest.AuthorizationServer) func(device.Authorization) {
			return func(a device.Authorization) { s.Deny(a.UserCode) }
		}, "denied in the browser"},
		"somebody else is in the browser": {func(s *keyheraldtest.AuthorizationServer) func(device.Authorization) { return authorize(s, bob) }, "authorized by " + string(bob)},
		"nobody does it in time": {func(s *keyheraldtest.AuthorizationServer) func(device.Authorization) {
			s.CodeLife = 2 * time.Second
			return func(device.Authorization) {}
		}, "nobody authorized the device in time"},
		"nobody is at the terminal": {func(*keyheraldtest.AuthorizationServer) func(device.Authorization) { return nil }, "run keyherald-device login"},
		"the homeserver has no such login": {func(s *keyheraldtest.AuthorizationServer) func(device.Authorization) {
			s.URL = w.hs.URL
			return func(device.Authorization) {}
		}, "no OAuth 2.0 login"},
	} {
		t.Run(name, func(t *testing.T) {
			server := w.authorizationServer(t)
			answer := test.prepare(server)
			account, err := w.openByOAuth(t, strings.ReplaceAll(name, " ", "-"), server, &lines{}, answer)
			if err == nil {
				check(t, account.Close())
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
