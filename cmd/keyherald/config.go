package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enrollment"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/internal/strictyaml"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/awsmeta"
	"github.com/keyherald/keyherald/kms/filemeta"
	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/setecmeta"
	"github.com/keyherald/keyherald/kms/vaultmeta"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/rotation"
)

// config is config.yaml. Secrets are files, so that the config itself can be shown.
type config struct {
	Listen       string                   `yaml:"listen"`
	PublicURL    string                   `yaml:"public_url"`
	Homeserver   string                   `yaml:"homeserver"`
	Registration string                   `yaml:"registration"`
	Bot          botConfig                `yaml:"bot"`
	Database     databaseConfig           `yaml:"database"`
	Audit        auditConfig              `yaml:"audit"`
	Sources      map[string]intake.Source `yaml:"sources"`
	// TrustedProxies are those of our own before this server, whose X-Forwarded-For counts.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// TLS, where it is there, is spoken by the server itself.
	TLS tlsConfig `yaml:"tls"`
	// KMS are the systems whose metadata the server may read, by the names the mappings give them.
	KMS map[string]kmsConfig `yaml:"kms"`
	// AckTimeout is how long a device may take to accept a trigger before another device of the user is tried.
	AckTimeout time.Duration `yaml:"ack_timeout"`
	Storm      stormConfig   `yaml:"storm"`
	// Matrix is what the bot says in rooms.
	Matrix matrixConfig `yaml:"matrix"`
	// StatusInterval is how often managed devices send a status, as their status_interval says.
	StatusInterval time.Duration   `yaml:"status_interval"`
	Campaigns      campaignsConfig `yaml:"campaigns"`
	// Enrollment are the proofs by which grants let devices enroll without codes.
	Enrollment enrollment.Config `yaml:"enrollment"`
	API        api.Config        `yaml:"api"`
	// Development lets `serve` migrate by itself.
	Development bool `yaml:"development"`
}

type tlsConfig struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// stormConfig is beyond how many users whose keys change within an hour rotations are held until released.
type stormConfig struct {
	Limit rotation.StormLimit `yaml:"limit"`
}

// campaignsConfig is which campaigns a second admin must approve.
type campaignsConfig struct {
	Approval string `yaml:"approval"`
}

type botConfig struct {
	UserID          id.UserID `yaml:"user_id"`
	IdentityFile    string    `yaml:"identity_file"`
	SelfSigningFile string    `yaml:"self_signing_file"`
	PickleKeyFile   string    `yaml:"pickle_key_file"`
	// Login is how the bot gets its device; empty is auto.
	Login appservice.Login `yaml:"login"`
}

// kmsConfig is one KMS, as the server sees it: metadata alone. CheckPath is a secret's path that `keyherald check` asks for.
type kmsConfig struct {
	kmsconfig.Config `yaml:",inline"`
	CheckPath        string `yaml:"check_path"`
	// Reconcile, if it is there, has the server look for changes that nobody notified it of.
	Reconcile *reconcileConfig `yaml:"reconcile"`
	// Events, if it is there, has the server hear Vault Enterprise's event stream.
	Events *eventsConfig `yaml:"events"`
}

func (k kmsConfig) metadata(ctx context.Context) (kms.Metadata, error) {
	switch k.Type {
	case kmsconfig.Vault:
		return vaultmeta.New(k.Vault())
	case kmsconfig.AWS:
		return awsmeta.New(ctx, k.AWS())
	case kmsconfig.Setec:
		return setecmeta.New(setecmeta.Config{URL: k.URL, CAFile: k.CAFile})
	}
	return filemeta.New(filemeta.Config{Dir: k.Dir})
}

func (k kmsConfig) validate() error {
	if err := k.Validate(); err != nil {
		return err
	}
	if k.CheckPath == "" {
		return errors.New("check_path is missing: write the path of one user's key, such as keyherald/alice/backup-key")
	}
	if err := kms.CheckPath(k.CheckPath); err != nil {
		return fmt.Errorf("check_path: %w", err)
	}
	if k.Reconcile != nil {
		if err := k.Reconcile.validate(); err != nil {
			return fmt.Errorf("reconcile.%w", err)
		}
	}
	if k.Events == nil {
		return nil
	}
	if k.Reconcile == nil {
		return errors.New("events needs reconcile: what happens while the stream is closed is told by nobody, so each time it opens everybody's key is looked at")
	}
	_, err := k.Config.Events(k.Events.Events)
	return err
}

type databaseConfig struct {
	URLFile      string `yaml:"url_file"`
	OwnerURLFile string `yaml:"owner_url_file"`
	// SignerURLFile is for the role that seals the audit log.
	SignerURLFile string `yaml:"signer_url_file"`
	// AuditorURLFile is for the role as which `keyherald audit` reads; the writer's is used where it is empty.
	AuditorURLFile string         `yaml:"auditor_url_file"`
	Roles          postgres.Roles `yaml:"roles"`
}

// loadConfig reads config.yaml strictly; every error names the line and what to write.
func loadConfig(path string) (config, error) {
	c := config{Listen: "127.0.0.1:8009", Bot: botConfig{Login: appservice.LoginAuto}, AckTimeout: rotation.AckTimeout, StatusInterval: time.Hour, Storm: stormConfig{rotation.DefaultStormLimit()}, Matrix: defaultMatrix(), Campaigns: campaignsConfig{campaign.DefaultApproval().String()}, Audit: auditConfig{Interval: time.Second, InspectInterval: 24 * time.Hour}}
	file, err := strictyaml.Read(path, &c)
	if err != nil {
		return c, fmt.Errorf("%w; config.example.yaml shows every key", err)
	}
	c.resolve(file)
	return c, file.At(c.validate())
}

// resolve makes relative paths relative to the configuration's directory.
func (c *config) resolve(file *strictyaml.File) {
	file.Resolve(&c.Registration, &c.Bot.IdentityFile, &c.Bot.SelfSigningFile, &c.Bot.PickleKeyFile, &c.Database.URLFile, &c.Database.OwnerURLFile, &c.Database.SignerURLFile,
		&c.Database.AuditorURLFile)
	file.Resolve(c.Audit.paths()...)
	file.Resolve(&c.TLS.CertFile, &c.TLS.KeyFile)
	file.Resolve(c.API.Files()...)
	for _, source := range c.Sources {
		file.Resolve(source.Files()...)
	}
	for name, proof := range c.Enrollment.Proofs {
		file.Resolve(proof.Files()...)
		c.Enrollment.Proofs[name] = proof
	}
	for name, k := range c.KMS {
		file.Resolve(k.Files()...)
		if k.Events != nil {
			file.Resolve(k.Events.Files()...)
		}
		c.KMS[name] = k
	}
}

// validate returns errors that begin with the key they are about.
func (c config) validate() error {
	if _, _, err := c.Bot.UserID.Parse(); err != nil {
		return fmt.Errorf("bot.user_id is %q: write @keyherald:your.server", c.Bot.UserID)
	}
	if err := c.Bot.Login.Validate(); err != nil {
		return fmt.Errorf("bot.login: %w", err)
	}
	for _, needed := range []struct{ key, value string }{
		{"homeserver", c.Homeserver}, {"public_url", c.PublicURL}, {"registration", c.Registration}, {"bot.identity_file", c.Bot.IdentityFile},
		{"bot.self_signing_file", c.Bot.SelfSigningFile}, {"bot.pickle_key_file", c.Bot.PickleKeyFile}, {"database.url_file", c.Database.URLFile},
	} {
		if needed.value == "" {
			return fmt.Errorf("%s is missing: config.example.yaml shows it", needed.key)
		}
	}
	if c.AckTimeout < time.Second {
		return fmt.Errorf("ack_timeout is %s: write 10m", c.AckTimeout)
	}
	if c.StatusInterval < time.Second {
		return fmt.Errorf("status_interval is %s: write 1h", c.StatusInterval)
	}
	if c.Storm.Limit.Percent < 0 || c.Storm.Limit.Percent > 100 || c.Storm.Limit.Users < 1 {
		return fmt.Errorf("storm.limit is percent %d, users %d: write {percent: 2, users: 20}; percent 100 holds nothing", c.Storm.Limit.Percent, c.Storm.Limit.Users)
	}
	if _, err := campaign.ParseApproval(c.Campaigns.Approval); err != nil {
		return fmt.Errorf("campaigns.approval: %w", err)
	}
	for _, address := range []struct{ key, value string }{{"homeserver", c.Homeserver}, {"public_url", c.PublicURL}} {
		if u, err := url.Parse(address.value); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("%s is %q: write an address such as https://matrix.example.org", address.key, address.value)
		}
	}
	if err := c.Audit.validate(c.Development, c.Database.SignerURLFile); err != nil {
		return err
	}
	if err := c.Matrix.validate(c.Bot.UserID); err != nil {
		return err
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		return errors.New("tls needs both cert_file and key_file, or neither where a proxy before this server speaks TLS")
	}
	for _, name := range slices.Sorted(maps.Keys(c.KMS)) {
		if err := c.KMS[name].validate(); err != nil {
			return fmt.Errorf("kms.%s.%w", name, err)
		}
	}
	if err := c.Enrollment.Validate(); err != nil {
		return fmt.Errorf("enrollment.%w", err)
	}
	if err := c.API.Validate(); err != nil {
		return err
	}
	if err := c.intake().Validate(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sources)) {
		if m := c.Sources[name].MTLS; m != nil && m.ForwardedHeader == "" && c.TLS.CertFile == "" {
			return fmt.Errorf("sources.%s.mtls needs TLS: write tls.cert_file and tls.key_file, or forwarded_header where a proxy before this server speaks TLS", name)
		}
	}
	return nil
}

func (c config) intake() intake.Config {
	streams := map[string]intake.Mapping{}
	for name, k := range c.KMS {
		if k.Events != nil {
			streams[name] = k.Events.Mapping
		}
	}
	return intake.Config{Sources: c.Sources, TrustedProxies: c.TrustedProxies, Streams: streams}
}

func (c config) identity() (appservice.Identity, error) {
	identity, err := appservice.LoadIdentity(c.Bot.IdentityFile, c.Bot.SelfSigningFile)
	if err == nil && identity.UserID != c.Bot.UserID {
		err = fmt.Errorf("%s is the identity of %s, and bot.user_id is %s", c.Bot.IdentityFile, identity.UserID, c.Bot.UserID)
	}
	return identity, err
}

func (c config) pickleKey() ([]byte, error) {
	text, err := readFile(c.Bot.PickleKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) < 32 {
		return nil, fmt.Errorf("%s is not 32 bytes or more in base64: head -c 32 /dev/urandom | base64 makes one", c.Bot.PickleKeyFile)
	}
	return key, nil
}

// ownerAndDatabase are the names in the owner's URL, or what they commonly are where there is none.
func (c config) ownerAndDatabase() (owner, database string, err error) {
	owner, database = "keyherald_owner", "keyherald"
	if c.Database.OwnerURLFile == "" {
		return owner, database, nil
	}
	text, err := readFile(c.Database.OwnerURLFile)
	if err != nil {
		return "", "", err
	}
	u, err := url.Parse(text)
	if err != nil || u.User.Username() == "" || strings.Trim(u.Path, "/") == "" {
		return "", "", fmt.Errorf("%s: write postgres://owner:…@host/database", c.Database.OwnerURLFile)
	}
	return u.User.Username(), strings.Trim(u.Path, "/"), nil
}

func readFile(path string) (string, error) {
	if path == "" {
		return "", errors.New("a file's name is missing in the configuration")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a secret's file: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
