package demo

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

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

const (
	password = "correct horse battery staple"
	kmsPath  = "keyherald/alice/backup-key"
	botName  = "keyherald"
)

// World is the company: every part is real and runs until Close.
type World struct {
	config   Config
	closers  []func() error
	pg       *keyheraldtest.Postgres
	database *keyheraldtest.Database
	db       *postgres.DB
	hs       *keyheraldtest.Dendrite
	kms      system
	// Everything the server says or hears goes through one of these.
	serverTaps map[string]*keyheraldtest.Tap
	deviceTap  *keyheraldtest.Tap
	listen     string
	signingKey string

	alice, bob      id.UserID
	stock, stranger *keyheraldtest.Client
	bobs            *keyheraldtest.Client
	recoveryKey     string
	oldKey, newKey  backupkey.Key
	room            id.RoomID
	message         id.EventID
	oldVersion      id.KeyBackupVersion
	notifications   int
}

// Close ends every part, the last started first.
func (w *World) Close() error {
	var err error
	for i := len(w.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, w.closers[i]())
	}
	return err
}

// build starts PostgreSQL, Dendrite, the KMS and the server.
func build(ctx context.Context, config Config, s screen) (*World, error) {
	if config.KMS == "" {
		config.KMS = "setec"
	}
	make, ok := systems[config.KMS]
	if !ok {
		return nil, fmt.Errorf("there is no demo with the KMS %q: say setec or vault", config.KMS)
	}
	w := &World{config: config, kms: make(), serverTaps: map[string]*keyheraldtest.Tap{}}
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"PostgreSQL, a private cluster with owner, writer and auditor", w.startPostgres},
		{titles[config.KMS] + ", the key-management system", func(ctx context.Context) error { return w.kms.start(ctx, w) }},
		{"the bot's identity and the registration (keyherald bot keygen, registration)", w.prepare},
		{"the rights in the KMS: metadata for the server, one key for a device", func(ctx context.Context) error { return w.kms.rights(ctx, w) }},
		{"Dendrite, the homeserver, with the registration", w.startDendrite},
		{"the database schema (keyherald migrate)", func(ctx context.Context) error { _, err := w.keyherald(ctx, "migrate"); return err }},
		{"the server holds its bot (keyherald serve)", w.startServer},
	}
	for _, step := range steps {
		if err := s.step(step.what, func() error { return step.do(ctx) }); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *World) startPostgres(ctx context.Context) (err error) {
	if w.pg, err = keyheraldtest.StartPostgres(ctx); err != nil {
		return err
	}
	w.closers = append(w.closers, w.pg.Close)
	if w.database, err = w.pg.NewDatabase(ctx); err != nil {
		return err
	}
	if err := w.write("owner.url", w.database.OwnerURL); err != nil {
		return err
	}
	throughTap, err := w.tap("PostgreSQL", w.database.WriterURL)
	if err != nil {
		return err
	}
	if err := w.write("writer.url", throughTap); err != nil {
		return err
	}
	if w.db, err = postgres.Open(ctx, w.database.WriterURL); err != nil {
		return err
	}
	w.closers = append(w.closers, w.db.Close)
	return nil
}

// tap leads one of the server's connections through a recording proxy.
func (w *World) tap(name, target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	tap, err := keyheraldtest.StartTap(u.Host)
	if err != nil {
		return "", err
	}
	w.closers = append(w.closers, tap.Close)
	w.serverTaps[name] = tap
	return tap.Through(target)
}

func (w *World) prepare(ctx context.Context) error {
	port, err := keyheraldtest.FreePort()
	if err != nil {
		return err
	}
	w.listen = "127.0.0.1:" + strconv.Itoa(port)
	secret, pickle := make([]byte, 32), make([]byte, 32)
	_, _ = rand.Read(secret)
	_, _ = rand.Read(pickle)
	w.signingKey = "whsec_" + base64.StdEncoding.EncodeToString(secret)
	if err := w.write("kms.secret", w.signingKey); err != nil {
		return err
	}
	if err := w.write("bot-pickle.key", base64.StdEncoding.EncodeToString(pickle)); err != nil {
		return err
	}
	public, err := w.tap("its own door", "http://"+w.listen)
	if err != nil {
		return err
	}
	if err := w.writeConfig(public, "http://127.0.0.1:1"); err != nil {
		return err
	}
	if _, err := w.keyherald(ctx, "bot", "keygen", "--user", id.NewUserID(botName, keyheraldtest.ServerName).String()); err != nil {
		return err
	}
	_, err = w.keyherald(ctx, "registration")
	return err
}

func (w *World) writeConfig(public, homeserver string) error {
	return w.write("config.yaml", fmt.Sprintf(`listen: %[1]s
public_url: %[2]s
homeserver: %[3]s
registration: registration.yaml
bot: {user_id: "@%[4]s:%[5]s", identity_file: bot-identity.json, self_signing_file: bot-self-signing.seed, pickle_key_file: bot-pickle.key}
database: {url_file: writer.url, owner_url_file: owner.url, roles: {writer: %[6]s, auditor: %[7]s}}
kms:
  corporate: {%[8]s, check_path: %[9]s}
sources:
  corporate-kms:
    keys: [{id: k1, secret_file: kms.secret}]
    mapping: {pattern: "keyherald/(?P<user>[a-z]+)/backup-key", user: "@{user}:%[5]s", kms: corporate}
`, w.listen, public, homeserver, botName, keyheraldtest.ServerName, w.database.Writer, w.database.Auditor, w.kms.server(), kmsPath))
}

func (w *World) startDendrite(ctx context.Context) (err error) {
	if w.hs, err = keyheraldtest.StartDendrite(ctx, w.config.Dir, filepath.Join(w.config.Dir, "registration.yaml")); err != nil {
		return err
	}
	w.closers = append(w.closers, w.hs.Close)
	homeserver, err := w.tap("the homeserver", w.hs.URL)
	if err != nil {
		return err
	}
	return w.writeConfig("http://"+w.serverTaps["its own door"].Address(), homeserver)
}

func (w *World) startServer(ctx context.Context) error {
	if err := w.start("keyherald", "serve", "-c", "config.yaml"); err != nil {
		return err
	}
	return keyheraldtest.Until(ctx, 30*time.Second, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.listen+"/readyz", nil)
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

// keyherald runs one command of the server's binary, as an operator does.
func (w *World) keyherald(ctx context.Context, args ...string) (string, error) {
	return w.command(ctx, "keyherald", args...)
}

func (w *World) command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.config.Programs, name), args...)
	cmd.Dir = w.config.Dir
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

// start runs a program until Close, its log in a file of its name.
func (w *World) start(name string, args ...string) error {
	log, err := os.Create(filepath.Join(w.config.Dir, name+".log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(w.config.Programs, name), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.config.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting %s: %w", name, err), log.Close())
	}
	w.closers = append(w.closers, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			return errors.Join(fmt.Errorf("%s did not end well: %w", name, err), log.Close())
		}
		return log.Close()
	})
	return nil
}

func (w *World) write(name, content string) error {
	path := filepath.Join(w.config.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o600)
}

// tellLogs helps where something did not come about.
func (w *World) tellLogs(s screen) error {
	for _, name := range []string{"keyherald.log", "keyherald-device.log"} {
		text, err := os.ReadFile(filepath.Join(w.config.Dir, name))
		if err != nil {
			continue
		}
		s.title(name)
		for line := range strings.Lines(string(text)) {
			s.line("%s", strings.TrimRight(line, "\n"))
		}
	}
	return nil
}
