package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/internal/strictyaml"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/awssecret"
	"github.com/keyherald/keyherald/kms/filesecret"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/kms/setecsecret"
	"github.com/keyherald/keyherald/kms/vaultsecret"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
)

// Config is device.yaml: what all accounts of this process share.
type Config struct {
	// Accounts is the directory of account files; added and removed ones are noticed without a restart.
	Accounts string `yaml:"accounts_dir"`
	// State is the directory of the accounts' stores.
	State string `yaml:"state_dir"`
	// PickleKeyFile seals the stores; it is made if it is missing.
	PickleKeyFile string `yaml:"pickle_key_file"`
	// StatusInterval is how often a status is sent without a cause; default one hour.
	StatusInterval time.Duration `yaml:"status_interval"`
	// Sync is how often the accounts ask for messages; by default a request is held open all the time.
	Sync Sync `yaml:"sync"`
	// CarryRequests is how many requests with room keys all accounts together have under way at most.
	CarryRequests int `yaml:"carry_requests"`
}

// AccountConfig is one file of accounts.d: one managed device of one user.
type AccountConfig struct {
	UserID       id.UserID    `yaml:"user_id"`
	Homeserver   string       `yaml:"homeserver"`
	DeviceName   string       `yaml:"device_name"`
	Login        Login        `yaml:"login"`
	Verification Verification `yaml:"verification"`
	KMS          KMS          `yaml:"kms"`
	Recovery     string       `yaml:"recovery"`
	Push         Push         `yaml:"push"`
	OldBackup    OldBackups   `yaml:"old_backup"`
	OnDrift      OnDrift      `yaml:"on_drift"`
	Answer       Answer       `yaml:"answer,omitempty"`
	Receive      Receive      `yaml:"receive,omitempty"`
	Escrow       Escrow       `yaml:"escrow,omitempty"`
	Server       Server       `yaml:"server,omitempty"`
	Enrollment   Enrollment   `yaml:"enrollment,omitempty"`
}

// OldBackups is what becomes of key-backup versions that were replaced.
type OldBackups struct {
	// Grace is how long one is kept before it is deleted, which it is only if everything in it was carried over.
	Grace time.Duration `yaml:"grace"`
	// Hold keeps them all.
	Hold bool `yaml:"hold"`
}

// Login is how the device gets its access token; exactly one way is set.
type Login struct {
	PasswordFile    string      `yaml:"password_file"`
	TokenFile       string      `yaml:"token_file"`
	AccessTokenFile string      `yaml:"access_token_file"`
	DeviceID        id.DeviceID `yaml:"device_id"`
	Command         []string    `yaml:"command"`
	OAuth           *OAuth      `yaml:"oauth,omitempty"`
}

// Verification is how the device becomes cross-signed: the user's recovery key, from a file or an environment
// variable, or a new identity whose recovery key goes into a new 0600 file, or to a path of the account's KMS.
type Verification struct {
	RecoveryKeyFile string `yaml:"recovery_key_file"`
	RecoveryKeyEnv  string `yaml:"recovery_key_env"`
	BootstrapTo     string `yaml:"bootstrap_recovery_key_to"`
	BootstrapToKMS  string `yaml:"bootstrap_recovery_key_to_kms"`
}

// KMS is where the key comes from. A trigger that names another KMS or path is rejected.
type KMS struct {
	Name             string `yaml:"name"`
	kmsconfig.Config `yaml:",inline"`
	Path             string `yaml:"path"`
}

// Push says in which forms the key is pushed, and how long the push waits for the carry-over.
type Push struct {
	Forms        []msc4385.Form `yaml:"forms"`
	WaitForCarry time.Duration  `yaml:"wait_for_carry"`
	// RepeatAfter is when the key is pushed to every target once more; 0 is never.
	RepeatAfter time.Duration `yaml:"repeat_after"`
}

// Answer says which of the user's secrets his other cross-signed devices are given when they ask, and how many requests of
// one device are looked at in an hour.
type Answer struct {
	Names   []string `yaml:"names,omitempty"`
	PerHour int      `yaml:"per_hour,omitempty"`
}

// Receive says what is done with a secret that comes unasked from a cross-signed device of the user, by the secret's
// name: always, ask or never.
type Receive struct {
	Accept map[string]string `yaml:"accept,omitempty"`
}

// LoadConfig reads device.yaml strictly; relative paths are relative to the file.
func LoadConfig(path string) (Config, error) {
	config := Config{StatusInterval: time.Hour, CarryRequests: 8}
	file, err := strictyaml.Read(path, &config)
	if err != nil {
		return config, fmt.Errorf("%w; device.example.yaml shows every key", err)
	}
	file.Resolve(&config.Accounts, &config.State, &config.PickleKeyFile)
	return config, file.At(config.validate())
}

// validate returns errors that begin with the key they are about.
func (c Config) validate() error {
	switch {
	case c.Accounts == "":
		return errors.New("accounts_dir is missing: name the directory of account files, such as accounts.d")
	case c.State == "":
		return errors.New("state_dir is missing: name a directory that is kept, such as /var/lib/keyherald-device")
	case c.PickleKeyFile == "":
		return errors.New("pickle_key_file is missing: name a file outside of state_dir; it is made if it is missing")
	case c.CarryRequests < 1:
		return fmt.Errorf("carry_requests is %d: write how many requests with room keys may be under way at once, such as 8", c.CarryRequests)
	case c.Sync.Interval != 0 && c.Sync.Interval < time.Second:
		return fmt.Errorf("sync.interval is %s: write 60s, or 0 to hold a request open all the time", c.Sync.Interval)
	case c.StatusInterval < time.Second:
		return errors.New("status_interval is below one second: write 1h")
	}
	return nil
}

// LoadAccount reads one account file strictly.
func LoadAccount(path string) (AccountConfig, error) {
	config := AccountConfig{Recovery: "require", Push: Push{Forms: []msc4385.Form{msc4385.FormSend, msc4385.FormPush}, WaitForCarry: 30 * time.Second, RepeatAfter: 10 * time.Minute},
		OldBackup: OldBackups{Grace: 30 * 24 * time.Hour}, OnDrift: DriftReport,
		Answer: Answer{Names: []string{protocol.SecretMegolmBackup}, PerHour: 20}}
	file, err := strictyaml.Read(path, &config)
	if err != nil {
		return config, fmt.Errorf("%w; device.example.yaml shows every key", err)
	}
	file.Resolve(&config.Login.PasswordFile, &config.Login.TokenFile, &config.Login.AccessTokenFile,
		&config.Verification.RecoveryKeyFile, &config.Verification.BootstrapTo, &config.Escrow.File,
		&config.Enrollment.Proof.TokenFile, &config.Enrollment.Proof.CertFile, &config.Enrollment.Proof.KeyFile)
	file.Resolve(config.KMS.Files()...)
	return config, file.At(config.validate())
}

func (c AccountConfig) validate() error {
	if _, _, err := c.UserID.Parse(); err != nil {
		return fmt.Errorf("user_id is %q: write @name:server", c.UserID)
	}
	ways := 0
	for _, set := range []bool{c.Login.PasswordFile != "", c.Login.TokenFile != "", c.Login.AccessTokenFile != "", len(c.Login.Command) > 0, c.Login.OAuth != nil} {
		if set {
			ways++
		}
	}
	switch {
	case !strings.HasPrefix(c.Homeserver, "http://") && !strings.HasPrefix(c.Homeserver, "https://"):
		return errors.New("homeserver: write the client-server API's address, such as https://matrix.example.org")
	case ways != 1:
		return errors.New("login: set exactly one of password_file, token_file, access_token_file, command, oauth")
	case c.Login.OAuth != nil && c.Login.OAuth.ClientID == "" && (c.Login.OAuth.ClientName == "" || c.Login.OAuth.ClientURI == ""):
		return errors.New("login.oauth: client_name and client_uri are needed to register with the authorization server, or the client_id of a client that is registered")
	case c.Login.AccessTokenFile != "" && c.Login.DeviceID == "":
		return errors.New("login.device_id is missing: an access token belongs to a device, and without its id nothing can be encrypted for it")
	case c.KMS.Name == "" || c.KMS.Path == "":
		return errors.New("kms: name and path are needed; name is the one the server's mapping gives the KMS")
	case c.Verification.BootstrapTo != "" && c.Verification.BootstrapToKMS != "":
		return errors.New("verification: set one of bootstrap_recovery_key_to and bootstrap_recovery_key_to_kms")
	case c.Escrow.File != "" && c.Escrow.KMS != "":
		return errors.New("escrow: set one of file and kms")
	case c.Recovery != "require" && c.Recovery != "allow_stale":
		return fmt.Errorf("recovery is %q: write require or allow_stale", c.Recovery)
	case c.OnDrift != DriftReport && c.OnDrift != DriftAdopt && c.OnDrift != DriftReclaim:
		return fmt.Errorf("on_drift is %q: write report, adopt or reclaim", c.OnDrift)
	case c.OldBackup.Grace < 0:
		return fmt.Errorf("old_backup.grace is %s: write how long an old key backup is kept, such as 720h", c.OldBackup.Grace)
	case c.Push.RepeatAfter < 0 || c.Push.RepeatAfter > 0 && c.Push.RepeatAfter < time.Second:
		return fmt.Errorf("push.repeat_after is %s: write 10m, or 0 for never", c.Push.RepeatAfter)
	case len(c.Push.Forms) == 0:
		return errors.New("push.forms is empty: write m.secret.send, io.element.msc4385.secret.push or both")
	}
	for _, form := range c.Push.Forms {
		if !slices.Contains([]msc4385.Form{msc4385.FormSend, msc4385.FormPush}, form) {
			return fmt.Errorf("push.forms has %q: write m.secret.send or io.element.msc4385.secret.push", form)
		}
	}
	if err := c.KMS.Validate(); err != nil {
		return fmt.Errorf("kms.%w", err)
	}
	if err := errors.Join(c.validateSecrets(), c.validateEnrollment()); err != nil {
		return err
	}
	for _, path := range []struct{ key, path string }{{"kms.path", c.KMS.Path}, {"verification.bootstrap_recovery_key_to_kms", c.Verification.BootstrapToKMS}} {
		if path.path == "" {
			continue
		}
		if err := kms.CheckPath(path.path); err != nil {
			return fmt.Errorf("%s: %w", path.key, err)
		}
	}
	return nil
}

func (c AccountConfig) validateSecrets() error {
	for i, name := range c.Answer.Names {
		if !slices.Contains(secretNames, name) {
			return fmt.Errorf("answer.names[%d] is %q: write one of %s", i, name, strings.Join(secretNames, ", "))
		}
	}
	if c.Answer.PerHour < 1 {
		return errors.New("answer.per_hour is below 1: write how many requests of one device are looked at in an hour, or answer.names: [] to answer none")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Receive.Accept)) {
		if !slices.Contains(secretNames, name) {
			return fmt.Errorf("receive.accept has %q: write one of %s", name, strings.Join(secretNames, ", "))
		}
		if judgement := c.Receive.Accept[name]; !slices.Contains([]string{acceptAlways, acceptAsk, acceptNever}, judgement) {
			return fmt.Errorf("receive.accept: %s is %q: write always, ask or never", name, judgement)
		}
	}
	return nil
}

func (k KMS) open(ctx context.Context, keep vaultsecret.Keep) (secret.Store, error) {
	switch k.Type {
	case kmsconfig.Vault:
		return vaultsecret.New(k.Vault(), keep)
	case kmsconfig.AWS:
		return awssecret.New(ctx, k.AWS())
	case kmsconfig.Setec:
		return setecsecret.New(setecsecret.Config{URL: k.URL, CAFile: k.CAFile})
	}
	return filesecret.New(filesecret.Config{Dir: k.Dir})
}

// keptSecretID keeps an unwrapped secret id of the KMS in the account's store, sealed.
type keptSecretID struct{ store *store }

func (k keptSecretID) Load(ctx context.Context) (string, error) {
	raw, err := k.store.sealedValue(ctx, "kms_secret_id")
	return string(raw), err
}

func (k keptSecretID) Save(ctx context.Context, secretID string) error {
	return k.store.putSealed(ctx, "kms_secret_id", []byte(secretID))
}
