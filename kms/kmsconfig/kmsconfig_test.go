package kmsconfig

import (
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestTheKeysOfATypeGoWithItAlone(t *testing.T) {
	values := map[string]string{"url": "https://kms.example.org", "ca_file": "ca.pem", "field": "key", "dir": "kms", "namespace": "company", "mount": "secret",
		"auth": "{method: token, token_file: token}", "region": "eu-central-1", "config_file": "aws-config", "profile": "keyherald"}
	needs := map[string][]string{Setec: {"url"}, Vault: {"url", "auth"}, AWS: {"region"}, File: {"dir"}}
	for kind, needed := range needs {
		base := "type: " + kind + "\n"
		for _, key := range needed {
			base += key + ": " + values[key] + "\n"
		}
		read := func(text string) error {
			t.Helper()
			var c Config
			if err := yaml.Unmarshal([]byte(text), &c); err != nil {
				t.Fatal(err)
			}
			return c.Validate()
		}
		if err := read(base); err != nil {
			t.Errorf("%s with what it needs: %v", kind, err)
		}
		for _, key := range needed {
			if err := read(strings.Replace(base, key+": "+values[key]+"\n", "", 1)); err == nil || !strings.HasPrefix(err.Error(), key) {
				t.Errorf("%s without %s: got %v", kind, key, err)
			}
		}
		for key, value := range values {
			if strings.Contains(base, "\n"+key+":") {
				continue
			}
			err := read(base + key + ": " + value + "\n")
			known := false
			for _, name := range keys[kind] {
				known = known || name == key
			}
			if known != (err == nil) || !known && !strings.HasPrefix(err.Error(), key+" does not go with type "+kind) {
				t.Errorf("%s with %s: got %v", kind, key, err)
			}
		}
	}
	if err := (Config{Type: "paper"}).Validate(); err == nil || !strings.HasPrefix(err.Error(), "type is") {
		t.Errorf("got %v", err)
	}
}

func TestEveryFileIsFound(t *testing.T) {
	c := Config{CAFile: "a", Dir: "b", ConfigFile: "c"}
	c.Auth.SecretIDFile, c.Auth.WrappedSecretIDFile, c.Auth.CertFile, c.Auth.KeyFile = "d", "e", "f", "g"
	c.Auth.JWTFile, c.Auth.PasswordFile, c.Auth.TokenFile = "h", "i", "j"
	for _, file := range c.Files() {
		*file = ""
	}
	if c != (Config{}) {
		t.Errorf("some are left: %+v", c)
	}
}
