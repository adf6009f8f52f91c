package main

import (
	"os"
	"path/filepath"
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
		{"a user id that is none", `"@keyherald:example.org"`, `keyherald`, "line 19: bot.user_id"},
		{"a key that is missing", "registration: registration.yaml", "", "registration is missing"},
		{"an address that is none", "http://localhost:8008", "localhost:8008", "line 8: homeserver"},
		{"a mapping without a user", "(?P<user>[a-z0-9._-]+)", "x", "line 55: sources.corporate-kms.mapping.pattern"},
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
