package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/audit/sink"
	"github.com/keyherald/keyherald/postgres"
)

// auditConfig is how the audit log is sealed, and where its checkpoints go.
type auditConfig struct {
	// Name is the log's name in every checkpoint; it never changes.
	Name string `yaml:"name"`
	// SigningKeyFiles are the keys that sign: one, and while it is being replaced the new one before the old.
	SigningKeyFiles []string `yaml:"signing_key_files"`
	// Interval is the time between batches.
	Interval time.Duration `yaml:"interval"`
	// InspectInterval is the time between looks over the whole log.
	InspectInterval time.Duration `yaml:"inspect_interval"`
	Sinks           []sinkConfig  `yaml:"sinks"`
}

// sinkConfig is one place outside the database; which keys it takes depends on its type.
type sinkConfig struct {
	Name string `yaml:"name"`
	Type string `yaml:"type"`
	// HeldBy says in words who controls the place: `keyherald audit report` prints it.
	HeldBy string `yaml:"held_by"`
	// Path is of a directory or a file.
	Path string `yaml:"path"`
	// Network and Address are syslog's.
	Network string `yaml:"network"`
	Address string `yaml:"address"`
	// URL and AuthorizationFile are a webhook's.
	URL               string `yaml:"url"`
	AuthorizationFile string `yaml:"authorization_file"`
	// The rest is S3's.
	Endpoint            string `yaml:"endpoint"`
	Region              string `yaml:"region"`
	Bucket              string `yaml:"bucket"`
	Prefix              string `yaml:"prefix"`
	AccessKeyIDFile     string `yaml:"access_key_id_file"`
	SecretAccessKeyFile string `yaml:"secret_access_key_file"`
}

// readable reports whether a sink can be read back.
func (s sinkConfig) readable() bool { return s.Type == "directory" || s.Type == "s3" }

// paths are what is relative to the configuration's directory.
func (a *auditConfig) paths() []*string {
	var paths []*string
	for i := range a.SigningKeyFiles {
		paths = append(paths, &a.SigningKeyFiles[i])
	}
	for i := range a.Sinks {
		s := &a.Sinks[i]
		paths = append(paths, &s.Path, &s.AuthorizationFile, &s.AccessKeyIDFile, &s.SecretAccessKeyFile)
	}
	return paths
}

// on reports whether the log is sealed at all: in development it need not be.
func (a auditConfig) on() bool { return a.Name != "" }

// validate returns errors that begin with the key they are about.
func (a auditConfig) validate(development bool, signerURLFile string) error {
	if !a.on() {
		if development {
			return nil
		}
		return errors.New("audit.name is missing: `keyherald audit keygen --name example.org/keyherald --out audit.key` makes the log's key; config.example.yaml shows the rest")
	}
	switch {
	case len(a.SigningKeyFiles) == 0:
		return fmt.Errorf("audit.signing_key_files is empty: `keyherald audit keygen --name %s --out audit.key` makes a key", a.Name)
	case a.Interval < 10*time.Millisecond || a.Interval > time.Minute:
		return fmt.Errorf("audit.interval is %s: write 1s", a.Interval)
	case a.InspectInterval < time.Minute || a.InspectInterval > 7*24*time.Hour:
		return fmt.Errorf("audit.inspect_interval is %s: write 24h, or anything from 1m to 168h", a.InspectInterval)
	case signerURLFile == "":
		return errors.New("database.signer_url_file is missing: the audit log is sealed by a role of its own; `keyherald migrate --print-roles` prints the SQL that makes it")
	}
	names, readable := map[string]bool{}, false
	for i, s := range a.Sinks {
		if err := s.validate(); err != nil {
			return fmt.Errorf("audit.sinks[%d].%w", i, err)
		}
		if names[s.Name] {
			return fmt.Errorf("audit.sinks[%d].name is %q, as another's: give each sink a name of its own", i, s.Name)
		}
		names[s.Name], readable = true, readable || s.readable()
	}
	if !readable && !development {
		return errors.New("audit.sinks has none that can be read back, so a database that was put back would be signed: add one of type directory (on another machine's share) or s3")
	}
	return nil
}

func (s sinkConfig) validate() error {
	if s.Name == "" {
		return errors.New("name is missing: write a word, such as minutes")
	}
	switch s.Type {
	case "stdout":
	case "directory", "file":
		if s.Path == "" {
			return errors.New("path is missing: write where the checkpoints go")
		}
	case "syslog":
		if (s.Network == "") != (s.Address == "") || (s.Network != "" && s.Network != "udp" && s.Network != "tcp") {
			return errors.New("network: write udp or tcp, with an address; or neither for this machine's syslog")
		}
	case "webhook":
		if u, err := url.Parse(s.URL); err != nil || u.Host == "" || (u.Scheme != "https" && u.Hostname() != "localhost" && u.Hostname() != "127.0.0.1") {
			return fmt.Errorf("url is %q: write an https address", s.URL)
		}
	case "s3":
		switch {
		case s.Bucket == "" || s.Region == "":
			return errors.New("bucket: a bucket and its region are needed (a store that has no regions takes us-east-1)")
		case (s.AccessKeyIDFile == "") != (s.SecretAccessKeyFile == ""):
			return errors.New("access_key_id_file: set it together with secret_access_key_file; or neither, for the credentials of the environment")
		}
	default:
		return fmt.Errorf("type is %q: write directory, s3, file, stdout, syslog or webhook", s.Type)
	}
	return nil
}

func (s sinkConfig) open(ctx context.Context, keys checkpoint.Keys) (signer.Sink, error) {
	switch s.Type {
	case "directory":
		return sink.NewDirectory(s.Name, s.Path, keys)
	case "file":
		return sink.NewFile(s.Name, s.Path), nil
	case "stdout":
		return sink.NewStream(s.Name, os.Stdout), nil
	case "syslog":
		return sink.NewSyslog(s.Name, s.Network, s.Address), nil
	case "webhook":
		authorization, err := optionalFile(s.AuthorizationFile)
		return sink.NewWebhook(s.Name, s.URL, authorization), err
	}
	c := sink.S3Config{Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Prefix: s.Prefix}
	var err error
	if c.AccessKeyID, err = optionalFile(s.AccessKeyIDFile); err != nil {
		return nil, err
	}
	if c.SecretAccessKey, err = optionalFile(s.SecretAccessKeyFile); err != nil {
		return nil, err
	}
	return sink.NewS3(ctx, s.Name, c, keys)
}

func optionalFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return readFile(path)
}

// openSigner connects as the signer. Whoever gets it closes the database.
func (c config) openSigner(ctx context.Context, log zerolog.Logger) (*signer.Signer, *postgres.DB, error) {
	keys, err := checkpoint.LoadKeys(c.Audit.Name, c.Audit.SigningKeyFiles...)
	if err != nil {
		return nil, nil, err
	}
	var sinks []signer.Sink
	for _, s := range c.Audit.Sinks {
		opened, err := s.open(ctx, keys)
		if err != nil {
			return nil, nil, fmt.Errorf("opening the sink %s: %w", s.Name, err)
		}
		sinks = append(sinks, opened)
	}
	address, err := readFile(c.Database.SignerURLFile)
	if err != nil {
		return nil, nil, err
	}
	db, err := postgres.Open(ctx, address)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting as the signer: %w", err)
	}
	if err := db.CheckSchema(ctx); err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	s, err := signer.New(signer.Config{DB: db, Keys: keys, Sinks: sinks, Interval: c.Audit.Interval, InspectInterval: c.Audit.InspectInterval, Log: log})
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return s, db, nil
}

// sinkPatience is how long a sink may take to answer.
const sinkPatience = 10 * time.Second

// forReader is the sink as one reads its checkpoints back.
func (s sinkConfig) forReader() reader.Sink {
	shown := reader.Sink{Name: s.Name, Type: s.Type, Place: s.place(), HeldBy: s.HeldBy}
	if s.readable() {
		shown.Recall = func(ctx context.Context, keys checkpoint.Keys) (checkpoint.Checkpoint, error) {
			return readSink(ctx, s, keys)
		}
	}
	return shown
}

// place is where a sink is, as the configuration says it.
func (s sinkConfig) place() string {
	switch s.Type {
	case "directory", "file":
		return s.Path
	case "syslog":
		if s.Address == "" {
			return "this machine's"
		}
		return s.Network + " " + s.Address
	case "webhook":
		// The path may be a secret, as some services have it.
		if u, err := url.Parse(s.URL); err == nil {
			return u.Scheme + "://" + u.Host
		}
	case "s3":
		return strings.TrimSuffix(s.Bucket+"/"+s.Prefix, "/")
	}
	return ""
}

// readSink is the newest checkpoint of a sink; its size is zero where there is none.
func readSink(ctx context.Context, s sinkConfig, keys checkpoint.Keys) (checkpoint.Checkpoint, error) {
	if s.Type == "directory" {
		// Opening one makes it: a share that is not mounted must not look like an empty one.
		if _, err := os.Stat(s.Path); err != nil {
			return checkpoint.Checkpoint{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sinkPatience)
	defer cancel()
	opened, err := s.open(ctx, keys)
	if err != nil {
		return checkpoint.Checkpoint{}, err
	}
	memory, ok := opened.(signer.Memory)
	if !ok {
		return checkpoint.Checkpoint{}, fmt.Errorf("a sink of type %s is not one that can be read back", s.Type)
	}
	return signer.Recall(ctx, memory, keys)
}
