package device

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/kms/kmsconfig"
)

// exampleAccounts are the account file that the example shows, once with each KMS it shows.
func exampleAccounts(t *testing.T) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("../device.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "#   "); ok {
			lines = append(lines, rest)
		}
	}
	text := strings.Join(lines, "")
	others := regexp.MustCompile(`(?m)^# or .*\n((?:# .*\n)+)`)
	accounts := map[string]string{kmsconfig.Setec: others.ReplaceAllString(text, "")}
	// The last account's kms is in the place of the first's.
	first := regexp.MustCompile(`(?m)^kms:\n(  .*\n)+`)
	for _, found := range regexp.MustCompile(`(?m)^# kms:\n(#   .*\n)+`).FindAllString(text, -1) {
		kms := regexp.MustCompile(`(?m)^# `).ReplaceAllString(found, "")
		name := regexp.MustCompile(`type: (\w+)`).FindStringSubmatch(kms)[1]
		accounts[name] = first.ReplaceAllLiteralString(accounts[kmsconfig.Setec], kms)
	}
	return accounts
}

func load(t *testing.T, text string) (AccountConfig, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "alice.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadAccount(path)
}

func TestTheExampleAccountIsRightWithEachKMS(t *testing.T) {
	if _, err := LoadConfig("../device.example.yaml"); err != nil {
		t.Error(err)
	}
	accounts := exampleAccounts(t)
	for name, secret := range map[string]func(AccountConfig) string{
		kmsconfig.Setec: func(c AccountConfig) string { return c.KMS.URL },
		kmsconfig.Vault: func(c AccountConfig) string { return c.KMS.Auth.WrappedSecretIDFile },
		kmsconfig.AWS:   func(c AccountConfig) string { return c.KMS.ConfigFile },
	} {
		config, err := load(t, accounts[name])
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, accounts[name])
		} else if config.KMS.Type != name || config.KMS.Path != "keyherald/alice/backup-key" || secret(config) == "" || config.UserID != "@alice:example.org" {
			t.Errorf("%s: the example reads as %+v", name, config)
		}
	}
}

func TestAWrongIntervalOfTheSyncIsRefusedWithTheLineAndTheFix(t *testing.T) {
	example, err := os.ReadFile("../device.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	load := func(interval string) (Config, error) {
		path := filepath.Join(t.TempDir(), "device.yaml")
		if err := os.WriteFile(path, []byte(strings.Replace(string(example), "  interval: 0s", "  "+interval, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(path)
	}
	for _, test := range []struct{ name, interval, want string }{
		{"shorter than a second", "interval: 100ms", "sync.interval is 100ms: write 60s"},
		{"below zero", "interval: -1m", "sync.interval is -1m0s: write 60s"},
		{"without a unit", "interval: often", "time.Duration is needed"},
		{"a misspelt key", "intervall: 60s", `there is no key "intervall"`},
	} {
		if _, err := load(test.interval); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: got %v, want it to say %q with its line", test.name, err, test.want)
		}
	}
	if config, err := load("interval: 60s"); err != nil || config.Sync.Interval != time.Minute {
		t.Errorf("got %+v, %v", config.Sync, err)
	}
}

func TestAWrongAccountIsRefusedWithTheLineAndTheFix(t *testing.T) {
	accounts := exampleAccounts(t)
	for _, test := range []struct{ name, kms, old, new, want string }{
		{"a KMS nobody knows", kmsconfig.Setec, "type: setec", "type: paper", "kms.type is"},
		{"a key of another KMS", kmsconfig.Setec, "type: setec", "type: setec\n  region: eu-central-1", "kms.region does not go with type setec"},
		{"a path that leads upwards", kmsconfig.Setec, "path: keyherald", "path: ../keyherald", "kms.path:"},
		{"an address that is none", kmsconfig.Setec, "https://setec.example.ts.net", "setec.example.ts.net", "kms.url must be"},
		{"two secret ids", kmsconfig.Vault, "wrapped_secret_id_file:", "secret_id_file: x\n    wrapped_secret_id_file:", "kms.auth: set one of"},
		{"a key of another method", kmsconfig.Vault, "role_id:", "username: alice\n    role_id:", "kms.auth.username does not go with auth.method approle"},
		{"no region", kmsconfig.AWS, "region: eu-central-1", "", "kms.region is"},
		{"a misspelt key", kmsconfig.AWS, "profile:", "profil:", `there is no key "profil"`},
	} {
		changed := strings.Replace(accounts[test.kms], test.old, test.new, 1)
		if _, err := load(t, changed); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: got %v, want it to say %q with its line", test.name, err, test.want)
		}
	}
}
