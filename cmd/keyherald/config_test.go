package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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
	if err := registration.CheckBot("@keyherald:example.org"); err != nil {
		t.Errorf("it is not what `keyherald registration` would write: %v", err)
	}
}

func TestAWrongConfigIsRefusedWithTheLineAndTheFix(t *testing.T) {
	example, err := os.ReadFile("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// LINE in what is wanted is the line of what was changed.
	tests := []struct{ name, old, new, want string }{
		{"an unknown key is named with its line", "listen:", "listne:", "line LINE"},
		{"a user id that is none", `"@keyherald:example.org"`, `keyherald`, "line LINE: bot.user_id"},
		{"a way to log in that is none", "login: auto", "login: password", "line LINE: bot.login"},
		{"a key that is missing", "registration: registration.yaml", "", "registration is missing"},
		{"an address that is none", "http://localhost:8008", "localhost:8008", "line LINE: homeserver"},
		{"a mapping without a user", "pattern: keyherald/(?P<user>[a-z0-9._-]+)", "pattern: x", "line LINE: sources.corporate-kms.mapping.pattern"},
		{"a log without a name", "name: example.org/keyherald\n", "\n", "audit.name is missing"},
		{"a log without a key", "[audit.key]", "[]", "line LINE: audit.signing_key_files"},
		{"a log whose checkpoints nobody can read back", "type: directory", "type: file", "audit.sinks has none that can be read back"},
		{"a sink nobody knows", "type: directory", "type: pigeon", "line LINE: audit.sinks[0].type"},
		{"a log without its signer", "signer_url_file: database-signer.url", "", "database.signer_url_file is missing"},
		{"a key of another type", "    type: setec\n", "    type: setec\n    mount: secret\n", "kms.corporate.mount does not go with type setec"},
		{"a secret of TLS without its certificate", "#tls: {cert_file: server.pem, key_file: server.key}", "tls: {key_file: server.key}", "tls needs both"},
		{"a proxy that is none", "#trusted_proxies: [127.0.0.1]", "trusted_proxies: [proxy]", "line LINE: trusted_proxies[0]"},
		{"a client certificate where nobody speaks TLS", "    format: cloudevents\n", "    format: cloudevents\n    mtls: {ca_file: ca.pem, names: [kms.example.org]}\n", "sources.corporate-kms.mtls needs TLS"},
		{"a KMS nobody knows", "type: setec", "type: paper", "kms.corporate.type"},
		{"a look at the KMS too often", "interval: 15m", "interval: 1s", "kms.corporate.reconcile.interval"},
		{"a place that is everybody's", "path: keyherald/{user}/backup-key", "path: keyherald/key", "kms.corporate.reconcile.path"},
		{"a notice when nobody knows", "send: on_problem", "send: sometimes", "matrix.notices.send is \"sometimes\""},
		{"a flood of rooms", "rooms_per_minute: 10", "rooms_per_minute: 100000", "matrix.notices.rooms_per_minute is 100000"},
		{"an admin of another homeserver", "  #admin_room: {invite: [\"@admin:example.org\"]}", "  admin_room: {invite: [\"@admin:example.com\"]}", "matrix.admin_room.invite has \"@admin:example.com\""},
		{"the bot among the admins", "  #admin_room: {invite: [\"@admin:example.org\"]}", "  admin_room: {invite: [\"@keyherald:example.org\"]}", "who is the bot"},
		{"an identity provider without TLS", "issuer: https://sso", "issuer: http://sso", "line LINE: api.oidc.issuer"},
		{"a role that is none", "keyherald-operators: operator", "keyherald-operators: king", "line LINE: api.oidc.roles.keyherald-operators"},
		{"a provider's token for anybody", "    audience: keyherald\n", "", "api.oidc.audience is missing"},
		{"a path that leads upwards", "check_path: keyherald", "check_path: ../keyherald", "kms.corporate.check_path"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			before, _, found := strings.Cut(string(example), test.old)
			if !found {
				t.Fatalf("the example has no %q", test.old)
			}
			want := strings.ReplaceAll(test.want, "LINE", strconv.Itoa(strings.Count(before, "\n")+1))
			changed := strings.Replace(string(example), test.old, test.new, 1)
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want it to say %q", err, want)
			}
		})
	}
}

// What the example shows commented out is as right as the rest of it: a key follows its # at once, or indented by twos,
// and prose after one space.
func TestEverythingThatTheExampleShowsIsRight(t *testing.T) {
	example, err := os.ReadFile("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := regexp.MustCompile(`(?m)^( *)#((?:  )*[a-z_]+:)`).ReplaceAllString(string(example), "$1$2")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	resolved := func(name string) string { return filepath.Join(filepath.Dir(path), name) }
	if len(c.KMS) != 3 || c.KMS["vault"].Auth.SecretIDFile != resolved("vault.secret-id") || c.KMS["aws"].Profile != "keyherald" || c.KMS["vault"].Events.Auth.SecretIDFile != resolved("vault-events.secret-id") || c.KMS["corporate"].CAFile != resolved("setec-ca.pem") {
		t.Errorf("the KMS read as %+v", c.KMS)
	}
	formats := map[string]bool{}
	for _, source := range c.Sources {
		formats[source.Format] = true
	}
	if len(formats) != 6 || c.Sources["siem"].Keys[0].SecretFile != resolved("siem.secret") {
		t.Errorf("the sources have the formats %v, and read as %+v", formats, c.Sources)
	}
	if c.TLS.KeyFile != resolved("server.key") || len(c.TrustedProxies) != 1 || c.Database.AuditorURLFile != resolved("database-auditor.url") {
		t.Errorf("the example reads as %+v", c)
	}
	for _, test := range []struct{ name, old, new, want string }{
		{"a method's key that is missing", "role_id:", "role:", "kms.vault.auth.role_id is missing"},
		{"a method nobody knows", "method: approle", "method: ldap", "kms.vault.auth.method is"},
		{"a region that is none", "    region: eu-central-1", "    region: Frankfurt", "kms.aws.region is"},
		{"a stream whose login is none", "auth: {method: approle, role_id: 8e5c1a4e-0000-0000-0000-000000000001,", "auth: {method: approle,", "kms.vault.events.auth.role_id is missing"},
		{"a stream whose paths are nobody's", `mapping: {pattern: "keyherald/(?P<user>[a-z0-9._-]+)/backup-key", user: "@{user}:example.org"}`, `mapping: {pattern: x, user: "@{user}:example.org"}`, "kms.vault.events.mapping.pattern"},
		{"a stream with what is known of it", `mapping: {pattern: "keyherald/(?P<user>[a-z0-9._-]+)/backup-key", user: "@{user}:example.org"}`, `mapping: {pattern: "(?P<user>x)", user: "@{user}:example.org", version: path}`, "kms.vault.events.mapping.version is known"},
		{"a stream that nothing is looked at beside", `    reconcile: {interval: 15m, path: "keyherald/{user}/backup-key"}` + "\n", "", "kms.vault.events needs reconcile"},
		{"a stream's name that is taken", "  azure:\n    format", "  vault-events:\n    format", "sources.vault-events has the name of the event stream of kms.vault"},
		{"a stream of another type", "    region: eu-central-1\n", "    region: eu-central-1\n    reconcile: {interval: 15m, path: \"{user}\"}\n    events: {auth: {method: token}}\n", "kms.aws.events does not go with type aws"},
		{"an unknown key deep inside", "secret_id_file:", "secret_id:", `there is no key "secret_id"`},
	} {
		changed := strings.Replace(text, test.old, test.new, 1)
		if changed == text {
			t.Errorf("%s: the example has no %q", test.name, test.old)
		}
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: got %v, want it to say %q with its line", test.name, err, test.want)
		}
	}
}
