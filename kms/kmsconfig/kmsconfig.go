// Package kmsconfig is how a configuration file names a key-management system: the same keys for the server and for a
// managed device. It opens nothing.
package kmsconfig

import (
	"errors"
	"fmt"

	"github.com/keyherald/keyherald/kms/internal/aws"
	"github.com/keyherald/keyherald/kms/internal/bounded"
	"github.com/keyherald/keyherald/kms/internal/vault"
)

// The types of systems.
const (
	Setec = "setec"
	// Vault is HashiCorp's Vault and OpenBao.
	Vault = "vault"
	AWS   = "aws"
	// File is a directory, for development only.
	File = "file"
)

// Config names one system. Which keys go with it depends on Type.
type Config struct {
	Type   string `yaml:"type"`
	URL    string `yaml:"url"`
	CAFile string `yaml:"ca_file"`
	// Field is the field of a secret that holds the key: of Vault's data, or of a JSON object in AWS.
	Field string `yaml:"field"`
	Dir   string `yaml:"dir"`

	Namespace string     `yaml:"namespace"`
	Mount     string     `yaml:"mount"`
	Auth      vault.Auth `yaml:"auth"`

	Region     string `yaml:"region"`
	ConfigFile string `yaml:"config_file"`
	Profile    string `yaml:"profile"`
}

// Events is how Vault Enterprise's event stream is heard: it needs rights of its own, so a login of its own.
type Events struct {
	Auth vault.Auth `yaml:"auth"`
}

// Files are what the configuration's relative paths are resolved in.
func (e *Events) Files() []*string { return e.Auth.Files() }

// Events is the configuration of vaultevents: the same engine by another login. An error begins with the key it is about.
func (c Config) Events(e Events) (vault.Config, error) {
	if c.Type != Vault {
		return vault.Config{}, fmt.Errorf("events does not go with type %s: remove it, Vault Enterprise alone has such a stream", c.Type)
	}
	config := c.Vault()
	config.Auth = e.Auth
	if err := config.Validate(); err != nil {
		return vault.Config{}, fmt.Errorf("events.%w", err)
	}
	return config, nil
}

// keys are those that go with a type, beside type itself.
var keys = map[string][]string{
	Setec: {"url", "ca_file"},
	Vault: {"url", "ca_file", "field", "namespace", "mount", "auth"},
	AWS:   {"url", "ca_file", "field", "region", "config_file", "profile"},
	File:  {"dir"},
}

// Validate returns an error that begins with the key it is about.
func (c Config) Validate() error {
	permitted, ok := keys[c.Type]
	if !ok {
		return fmt.Errorf("type is %q: write vault (also for OpenBao), aws, setec, or file (for development only)", c.Type)
	}
	for _, key := range []struct {
		name string
		set  bool
	}{
		{"url", c.URL != ""}, {"ca_file", c.CAFile != ""}, {"field", c.Field != ""}, {"dir", c.Dir != ""}, {"namespace", c.Namespace != ""}, {"mount", c.Mount != ""},
		{"auth", c.Auth != vault.Auth{}}, {"region", c.Region != ""}, {"config_file", c.ConfigFile != ""}, {"profile", c.Profile != ""},
	} {
		known := false
		for _, name := range permitted {
			known = known || name == key.name
		}
		if key.set && !known {
			return fmt.Errorf("%s does not go with type %s: remove it", key.name, c.Type)
		}
	}
	switch c.Type {
	case Vault:
		return c.Vault().Validate()
	case AWS:
		return c.AWS().Validate()
	case Setec:
		_, err := bounded.BaseURL(c.URL)
		return err
	}
	if c.Dir == "" {
		return errors.New("dir is missing: name the directory of the development KMS")
	}
	return nil
}

// Files are what the configuration's relative paths are resolved in.
func (c *Config) Files() []*string {
	return append(c.Auth.Files(), &c.CAFile, &c.Dir, &c.ConfigFile)
}

// Vault is the configuration of vaultmeta and vaultsecret.
func (c Config) Vault() vault.Config {
	return vault.Config{URL: c.URL, CAFile: c.CAFile, Namespace: c.Namespace, Mount: c.Mount, Field: c.Field, Auth: c.Auth}
}

// AWS is the configuration of awsmeta and awssecret.
func (c Config) AWS() aws.Config {
	return aws.Config{Region: c.Region, URL: c.URL, CAFile: c.CAFile, Field: c.Field, ConfigFile: c.ConfigFile, Profile: c.Profile}
}
