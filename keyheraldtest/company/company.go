// Package company is a company of real parts, run as its operators would: PostgreSQL, a homeserver, a KMS, the
// server with its bot, and managed devices, each program from its binary. The demo and the interoperability run stand on it.
package company

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
	"github.com/keyherald/keyherald/postgres"
)

// Password is everybody's.
const Password = "correct horse battery staple"

// BotName is the bot's localpart.
const BotName = "keyherald"

// LogName is the audit log's name.
const LogName = "example.org/keyherald"

// Config is what Start needs. Programs is a directory with the built keyherald and keyherald-device; Dir is an empty
// directory, which everything the parts write goes into.
type Config struct {
	Programs   string
	Dir        string
	Homeserver keyheraldtest.StartHomeserver
	// KMS is the type of the key-management system, setec or vault; empty is setec.
	KMS string
	// Reconcile is how often the server looks into the KMS by itself; 0 is never.
	Reconcile time.Duration
	// BotLogin is bot.login of the server's configuration; empty is auto.
	BotLogin appservice.Login
	// Extra is more of the server's configuration, in YAML.
	Extra string
}

// Company is the parts, which run until Close. Everything the server says or hears goes through one of ServerTaps.
type Company struct {
	config     Config
	closers    []func() error
	Postgres   *keyheraldtest.Postgres
	Database   *keyheraldtest.Database
	DB         *postgres.DB
	Homeserver *keyheraldtest.Homeserver
	// Setec and Vault are the KMS itself, for its administrator; the one that is not the company's is nil.
	Setec      *testsetec.Server
	Vault      *keyheraldtest.Vault
	kms        system
	ServerTaps map[string]*keyheraldtest.Tap
	// Listen is the server's own address, past its tap.
	Listen        string
	signingKey    string
	stopServer    func() error
	notifications int
}

// Close ends every part, the last started first.
func (c *Company) Close() error {
	var err error
	for i := len(c.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, c.closers[i]())
	}
	c.closers = nil
	return err
}

// OnClose has Close end something else as well.
func (c *Company) OnClose(end func() error) { c.closers = append(c.closers, end) }

// KMSPath is where a user's key is in the KMS, by his localpart.
func KMSPath(localpart string) string { return "keyherald/" + localpart + "/backup-key" }

// Start starts PostgreSQL, the KMS, the homeserver and the server. Each step goes through step, which tells of it. What was
// started is returned with an error as well, to be closed.
func Start(ctx context.Context, config Config, step func(what string, do func() error) error) (*Company, error) {
	c := &Company{config: config, ServerTaps: map[string]*keyheraldtest.Tap{}}
	var err error
	if c.kms, err = systemNamed(config.KMS); err != nil {
		return c, err
	}
	for _, s := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"PostgreSQL, a private cluster with owner, writer and auditor", c.startPostgres},
		{c.kms.title() + ", the key-management system", c.startKMS},
		{"the bot's identity and the registration (keyherald bot keygen, registration)", c.prepare},
		{"the rights in the KMS: metadata for the server, one key for a device", func(ctx context.Context) error { return c.kms.rights(ctx, c) }},
		{"the homeserver, with the registration", c.startHomeserver},
		{"the database schema (keyherald migrate), and an admin's API token (keyherald token create)", func(ctx context.Context) error {
			if _, err := c.Keyherald(ctx, "migrate"); err != nil {
				return err
			}
			return c.operator().Admit(ctx)
		}},
		{"the server holds its bot (keyherald serve)", c.startServer},
	} {
		if err := step(s.what, func() error { return s.do(ctx) }); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *Company) startPostgres(ctx context.Context) (err error) {
	if c.Postgres, err = keyheraldtest.StartPostgres(ctx); err != nil {
		return err
	}
	c.OnClose(c.Postgres.Close)
	if c.Database, err = c.Postgres.NewDatabase(ctx); err != nil {
		return err
	}
	if err := c.Write("owner.url", c.Database.OwnerURL); err != nil {
		return err
	}
	throughTap, err := c.tap("PostgreSQL", c.Database.WriterURL)
	if err != nil {
		return err
	}
	signerThroughTap, err := c.ServerTaps["PostgreSQL"].Through(c.Database.SignerURL)
	if err != nil {
		return err
	}
	if err := errors.Join(c.Write("writer.url", throughTap), c.Write("signer.url", signerThroughTap), c.Write("auditor.url", c.Database.AuditorURL)); err != nil {
		return err
	}
	if c.DB, err = postgres.Open(ctx, c.Database.WriterURL); err != nil {
		return err
	}
	c.OnClose(c.DB.Close)
	return nil
}

// tap leads one of the server's connections through a recording proxy.
func (c *Company) tap(name, target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	tap, err := keyheraldtest.StartTap(u.Host)
	if err != nil {
		return "", err
	}
	c.OnClose(tap.Close)
	c.ServerTaps[name] = tap
	return tap.Through(target)
}

func (c *Company) startKMS(ctx context.Context) error {
	serverURL, err := c.kms.start(ctx, c)
	if err != nil {
		return err
	}
	_, err = c.tap("the KMS", serverURL)
	return err
}

func (c *Company) prepare(ctx context.Context) error {
	port, err := keyheraldtest.FreePort()
	if err != nil {
		return err
	}
	c.Listen = "127.0.0.1:" + strconv.Itoa(port)
	secret, pickle := make([]byte, 32), make([]byte, 32)
	_, _ = rand.Read(secret)
	_, _ = rand.Read(pickle)
	c.signingKey = "whsec_" + base64.StdEncoding.EncodeToString(secret)
	if err := c.Write("kms.secret", c.signingKey); err != nil {
		return err
	}
	if err := c.Write("bot-pickle.key", base64.StdEncoding.EncodeToString(pickle)); err != nil {
		return err
	}
	public, err := c.tap("its own door", "http://"+c.Listen)
	if err != nil {
		return err
	}
	if err := c.writeConfig(public, "http://127.0.0.1:1"); err != nil {
		return err
	}
	if _, err := c.Keyherald(ctx, "bot", "keygen", "--user", id.NewUserID(BotName, keyheraldtest.ServerName).String()); err != nil {
		return err
	}
	if _, err := c.Keyherald(ctx, "audit", "keygen", "--name", LogName, "--out", filepath.Join(c.config.Dir, "audit.key")); err != nil {
		return err
	}
	_, err = c.Keyherald(ctx, "registration")
	return err
}

func (c *Company) writeConfig(public, homeserver string) error {
	login := c.config.BotLogin
	if login == "" {
		login = appservice.LoginAuto
	}
	reconcile := ""
	if c.config.Reconcile > 0 {
		reconcile = fmt.Sprintf(`, reconcile: {interval: %s, path: "%s"}`, c.config.Reconcile, KMSPath("{user}"))
	}
	return c.Write("config.yaml", fmt.Sprintf(`listen: %[1]s
public_url: %[2]s
homeserver: %[3]s
registration: registration.yaml
bot: {user_id: "@%[4]s:%[5]s", identity_file: bot-identity.json, self_signing_file: bot-self-signing.seed, pickle_key_file: bot-pickle.key, login: %[12]s}
database: {url_file: writer.url, owner_url_file: owner.url, signer_url_file: signer.url, auditor_url_file: auditor.url, roles: {writer: %[6]s, auditor: %[7]s, signer: %[10]s}}
audit: {name: %[11]s, signing_key_files: [audit.key], sinks: [{name: minutes, type: directory, path: checkpoints}]}
kms:
  corporate: {%[13]s, url: "http://%[8]s", check_path: %[9]s%[14]s}
sources:
  corporate-kms:
    keys: [{id: k1, secret_file: kms.secret}]
    mapping: {pattern: "keyherald/(?P<user>[a-z]+)/backup-key", user: "@{user}:%[5]s", kms: corporate}
`, c.Listen, public, homeserver, BotName, keyheraldtest.ServerName, c.Database.Writer, c.Database.Auditor, c.ServerTaps["the KMS"].Address(), KMSPath("alice"),
		c.Database.Signer, LogName, login, c.kms.server(), reconcile)+c.config.Extra)
}

func (c *Company) startHomeserver(ctx context.Context) (err error) {
	if c.Homeserver, err = c.config.Homeserver(ctx, c.config.Dir, filepath.Join(c.config.Dir, "registration.yaml")); err != nil {
		return err
	}
	c.OnClose(c.Homeserver.Close)
	homeserver, err := c.tap("the homeserver", c.Homeserver.URL)
	if err != nil {
		return err
	}
	return c.writeConfig("http://"+c.ServerTaps["its own door"].Address(), homeserver)
}

func (c *Company) startServer(ctx context.Context) error {
	var err error
	if c.stopServer, err = c.Run("keyherald", "serve", "-c", "config.yaml"); err != nil {
		return err
	}
	return keyheraldtest.Until(ctx, 2*time.Minute, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Listen+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		var body bytes.Buffer
		_, _ = body.ReadFrom(resp.Body)
		if !strings.Contains(body.String(), "holding the bot") {
			return errors.New(strings.TrimSpace(body.String()))
		}
		return nil
	})
}

// StopServer ends the server alone, as its operator would.
func (c *Company) StopServer() error { return c.stopServer() }

// Keyherald runs one command of the server's binary, as an operator does: by the server's API where it acts.
func (c *Company) Keyherald(ctx context.Context, args ...string) (string, error) {
	return c.operator().Run(ctx, args...)
}

func (c *Company) operator() keyheraldtest.Operator {
	return keyheraldtest.Operator{Dir: c.config.Dir, Program: filepath.Join(c.config.Programs, "keyherald"), Server: "http://" + c.Listen}
}

// Command runs one command of a program in Dir and returns what it printed.
func (c *Company) Command(ctx context.Context, name string, args ...string) (string, error) {
	return keyheraldtest.Command(ctx, c.config.Dir, filepath.Join(c.config.Programs, name), args...)
}

// Run runs a program until Close or stop, its log in a file of its name.
func (c *Company) Run(name string, args ...string) (stop func() error, err error) {
	log, err := os.OpenFile(filepath.Join(c.config.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(c.config.Programs, name), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.config.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), log.Close())
	}
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			return errors.Join(fmt.Errorf("%s did not end well: %w", name, err), log.Close())
		}
		return log.Close()
	}
	c.OnClose(stop)
	return stop, nil
}

// Write writes a file for the owner alone, by its name in Dir.
func (c *Company) Write(name, content string) error {
	path := filepath.Join(c.config.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}

// Log is what a program has logged so far.
func (c *Company) Log(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(c.config.Dir, name+".log"))
}
