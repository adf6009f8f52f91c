package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/appservice"
)

func TestTheExampleConfigIsRight(t *testing.T) {
	c, err := loadConfig("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Bot.UserID != "@keyherald:example.org" || len(c.Sources) != 1 {
		t.Errorf("the example reads as %+v", c)
	}
}

// What the example shows in comments is right as well, once it is no comment any more.
func TestTheExampleConfigIsRightWithAllItShows(t *testing.T) {
	example, err := os.ReadFile("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	key := regexp.MustCompile(`^( *)# ((?:tls|trusted_proxies|ca_file|[a-z-]+):(?: [{\[a-z0-9].*)?| {2,}.*)$`)
	lines := strings.Split(string(example), "\n")
	for i, line := range lines {
		if parts := key.FindStringSubmatch(line); parts != nil {
			lines[i] = parts[1] + parts[2]
		}
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	formats := map[string]bool{}
	for _, source := range c.Sources {
		formats[source.Format] = true
	}
	if len(formats) != 6 || c.TLS.KeyFile != filepath.Join(filepath.Dir(path), "server.key") || len(c.TrustedProxies) != 1 || c.KMS["corporate"].CAFile == "" {
		t.Errorf("the example shows %v, and reads as %+v", formats, c)
	}
	if file := c.Sources["siem"].Keys[0].SecretFile; file != filepath.Join(filepath.Dir(path), "siem.secret") {
		t.Errorf("a secret's file is %s", file)
	}
}

func TestTheCommittedRegistrationIsRefused(t *testing.T) {
	registration, err := appservice.LoadRegistration("../../registration.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if registration.CheckTokens() == nil {
		t.Error("placeholder tokens were taken")
	}
}

func TestAWrongConfigIsRefusedWithTheLineAndTheFix(t *testing.T) {
	example, err := os.ReadFile("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, old, new, want string }{
		{"an unknown key is named with its line", "listen:", "listne:", "line 4"},
		{"a user id that is none", `"@keyherald:example.org"`, `keyherald`, "line 23: bot.user_id"},
		{"a key that is missing", "registration: registration.yaml", "", "registration is missing"},
		{"an address that is none", "http://localhost:8008", "localhost:8008", "line 12: homeserver"},
		{"a mapping without a user", "(?P<user>[a-z0-9._-]+)", "x", "line 61: sources.corporate-kms.mapping.pattern"},
		{"a secret of TLS without its certificate", "# tls: {cert_file: server.pem, key_file: server.key}", "tls: {key_file: server.key}", "line 6: tls needs both"},
		{"a proxy that is none", "# trusted_proxies: [127.0.0.1]", "trusted_proxies: [proxy]", "line 8: trusted_proxies[0]"},
		{"a client certificate where nobody speaks TLS", "    format: cloudevents\n", "    format: cloudevents\n    mtls: {ca_file: ca.pem, names: [kms.example.org]}\n", "sources.corporate-kms.mtls needs TLS"},
		{"a KMS nobody knows", "type: setec", "type: paper", "kms.corporate.type"},
		{"a path that leads upwards", "check_path: keyherald", "check_path: ../keyherald", "kms.corporate.check_path"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			changed := strings.Replace(string(example), test.old, test.new, 1)
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}
