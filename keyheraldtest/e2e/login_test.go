package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/keyheraldtest"
)

func TestADeviceLogsInEachWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	fresh := func(deviceID id.DeviceID) *mautrix.RespLogin {
		t.Helper()
		client, err := mautrix.NewClient(w.hs.URL, "", "")
		check(t, err)
		got, err := client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: deviceID,
			Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: w.alice.String()}})
		check(t, err)
		return got
	}
	print := func(name string, value any) []string {
		t.Helper()
		encoded, err := json.Marshal(value)
		check(t, err)
		path := filepath.Join(w.dir, name)
		check(t, os.WriteFile(path, encoded, 0o600))
		return []string{"cat", path}
	}
	tests := []struct {
		name  string
		login func() device.Login
		want  string
	}{
		{"a command that prints a token and its device", func() device.Login {
			return device.Login{Command: print("command.json", map[string]string{"access_token": fresh("BYCOMMAND").AccessToken, "device_id": "BYCOMMAND"})}
		}, ""},
		{"an existing token", func() device.Login {
			path := filepath.Join(w.dir, "token")
			check(t, os.WriteFile(path, []byte(fresh("BYTOKEN").AccessToken), 0o600))
			return device.Login{AccessTokenFile: path, DeviceID: "BYTOKEN"}
		}, ""},
		{"a token without a device is refused with the reason", func() device.Login {
			return device.Login{Command: print("deviceless.json", map[string]string{"access_token": "secret-token"})}
		}, "a token without a device cannot encrypt"},
		{"a command that prints something else", func() device.Login { return device.Login{Command: print("junk.json", []string{"secret-token"})} }, "printed no"},
		{"a command that fails", func() device.Login { return device.Login{Command: []string{"false"}} }, "login.command"},
		{"a wrong password", func() device.Login {
			path := filepath.Join(w.dir, "wrong-password")
			check(t, os.WriteFile(path, []byte("secret-token"), 0o600))
			return device.Login{PasswordFile: path}
		}, "logging in"},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			account, err := w.tryOpen(t, "login"+string(rune('a'+i)), func(c *device.AccountConfig) { c.Login = test.login() })
			if test.want == "" {
				check(t, err)
				w.enroll(t, account)
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret-token") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAUsersFirstDeviceMakesHisIdentityAndKeepsTheRecoveryKeyFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	for _, test := range []struct {
		user   string
		change func(*device.AccountConfig)
		kept   string
	}{
		{"file", func(c *device.AccountConfig) { c.Verification.BootstrapTo = filepath.Join(w.dir, "new-recovery-key") }, "new-recovery-key"},
		{"kms", func(c *device.AccountConfig) { c.Verification.BootstrapToKMS = "keyherald/kms/recovery-key" }, "kms/keyherald/kms/recovery-key/1.key"},
		{"nowhere", func(*device.AccountConfig) {}, ""},
	} {
		t.Run("the recovery key goes to "+test.user, func(t *testing.T) {
			user, err := w.hs.CreateUser(ctx, test.user, password)
			check(t, err)
			account := w.open(t, "of-"+test.user, func(c *device.AccountConfig) {
				c.UserID, c.Verification = user, device.Verification{}
				test.change(c)
			})
			_, err = account.Verify(ctx, nil)
			if test.kept == "" {
				if err == nil || !strings.Contains(err.Error(), "bootstrap_recovery_key_to") {
					t.Errorf("got %v", err)
				}
				return
			}
			check(t, err)
			path := filepath.Join(w.dir, test.kept)
			info, err := os.Stat(path)
			check(t, err)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("the recovery key's mode is %s", info.Mode())
			}
			recoveryKey, err := os.ReadFile(path)
			check(t, err)
			// A stock client takes the identity over with that key.
			client, err := keyheraldtest.Login(ctx, w.hs.URL, user, password, "STOCKTOO")
			check(t, err)
			t.Cleanup(client.Close)
			check(t, client.Verify(ctx, strings.TrimSpace(string(recoveryKey))))
		})
	}
}

func TestAccountsAreAddedAndRemovedWithoutARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	config := device.Config{Accounts: filepath.Join(w.dir, "accounts.d"), State: filepath.Join(w.dir, "state"), PickleKeyFile: filepath.Join(w.dir, "fleet.key"), StatusInterval: time.Second}
	check(t, os.MkdirAll(config.Accounts, 0o700))
	fleet, err := device.NewFleet(config, nil, zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.ErrorLevel))
	check(t, err)
	run(t, func(ctx context.Context) error { return fleet.Run(ctx) })
	w.account(t, "added")
	var account *device.Account
	wait(t, "the fleet to let the new account be enrolled", func() bool { account, err = fleet.Open(ctx, "added"); return err == nil })
	w.enroll(t, account)
	check(t, account.Close())
	seen := func() time.Time {
		devices, err := w.db.Devices(ctx, w.alice)
		check(t, err)
		return devices[0].LastSeen
	}
	wait(t, "the added account to report", func() bool { return !seen().IsZero() })
	check(t, os.Remove(filepath.Join(config.Accounts, "added.yaml")))
	// Its store is free again once it stopped.
	w.account(t, "removed-name-is-free")
	wait(t, "the removed account to stop", func() bool {
		w.account(t, "added")
		again, err := fleet.Open(ctx, "added")
		if err == nil {
			err = errors.Join(again.Close(), os.Remove(filepath.Join(config.Accounts, "added.yaml")))
			check(t, err)
			return true
		}
		_ = os.Remove(filepath.Join(config.Accounts, "added.yaml"))
		return false
	})
}
