package campaign

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

const (
	serverName = keyheraldtest.ServerName
	botName    = "keyherald"
)

// world is the parts, which run until close.
type world struct {
	config   Config
	closers  []func() error
	database *keyheraldtest.Database
	db       *postgres.DB
	enforcer *enforce.Enforcer
	hs       *homeserver
	fleet    *fleet
	server   *keyheraldtest.Process
	pid      int
	listen   string
}

func (w *world) onClose(end func() error) { w.closers = append(w.closers, end) }

func (w *world) close() (err error) {
	for i := len(w.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, w.closers[i]())
	}
	return err
}

// newWorld returns what was started with an error as well, to be closed.
func newWorld(ctx context.Context, config Config) (*world, error) {
	w := &world{config: config}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"the homeserver and the devices", w.people},
		{"PostgreSQL and the configuration", w.prepare},
		{"the roster and the enrolled devices", w.enroll},
		{"the server", w.serve},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return w, fmt.Errorf("starting %s: %w", step.what, err)
		}
		_, _ = fmt.Fprintf(config.Out, "%s: %.1f s\n", step.what, time.Since(began).Seconds())
	}
	return w, nil
}

func (w *world) people(context.Context) (err error) {
	if w.hs, err = startHomeserver(); err != nil {
		return err
	}
	if w.fleet, err = newFleet(w.hs, w.config.Users); err != nil {
		return errors.Join(err, w.hs.close())
	}
	// The devices end when nobody can write to them any more.
	w.onClose(w.fleet.close)
	w.onClose(w.hs.close)
	return nil
}

func (w *world) prepare(ctx context.Context) error {
	cluster, err := keyheraldtest.StartPostgres(ctx)
	if err != nil {
		return err
	}
	w.onClose(cluster.Close)
	if w.database, err = cluster.NewDatabase(ctx); err != nil {
		return err
	}
	port, err := keyheraldtest.FreePort()
	if err != nil {
		return err
	}
	w.listen = "127.0.0.1:" + strconv.Itoa(port)
	pickle := make([]byte, 32)
	_, _ = rand.Read(pickle)
	for name, content := range map[string]string{"owner.url": w.database.OwnerURL, "writer.url": w.database.WriterURL, "signer.url": w.database.SignerURL,
		"bot-pickle.key": base64.StdEncoding.EncodeToString(pickle),
		"config.yaml": fmt.Sprintf(`listen: %[1]s
public_url: http://%[1]s
homeserver: %[2]s
registration: registration.yaml
bot: {user_id: "%[3]s", identity_file: bot-identity.json, self_signing_file: bot-self-signing.seed, pickle_key_file: bot-pickle.key, login: appservice}
database: {url_file: writer.url, owner_url_file: owner.url, signer_url_file: signer.url, roles: {writer: %[4]s, auditor: %[5]s, signer: %[6]s}}
audit: {name: example.org/keyherald, signing_key_files: [audit.key], sinks: [{name: minutes, type: directory, path: checkpoints}]}
`, w.listen, w.hs.url, bot, w.database.Writer, w.database.Auditor, w.database.Signer)} {
		if err := os.WriteFile(filepath.Join(w.config.Dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(w.config.Dir, "checkpoints"), 0o700); err != nil {
		return err
	}
	for _, command := range [][]string{{"bot", "keygen", "--user", bot.String()}, {"audit", "keygen", "--name", "example.org/keyherald", "--out", "audit.key"}, {"registration"}, {"migrate"}} {
		if _, err := w.keyherald(ctx, command...); err != nil {
			return err
		}
	}
	if err := w.operator().Admit(ctx); err != nil {
		return err
	}
	if w.db, err = postgres.Open(ctx, w.database.WriterURL); err != nil {
		return err
	}
	w.onClose(w.db.Close)
	engine, err := relay.New(relay.Config{DB: w.db, BotUserID: bot, BotMasterKey: "not asked for"})
	if err != nil {
		return err
	}
	w.enforcer, err = enforce.New(enforce.Config{DB: w.db, Engine: engine, Approval: campaign.DefaultApproval()})
	return err
}

// keyherald runs one command of the server's binary, as an admin does.
func (w *world) keyherald(ctx context.Context, args ...string) (string, error) {
	return w.operator().Run(ctx, args...)
}

func (w *world) operator() keyheraldtest.Operator {
	return keyheraldtest.Operator{Dir: w.config.Dir, Program: filepath.Join(w.config.Programs, "keyherald"), Server: "http://" + w.listen}
}

// enroll puts everybody on the roster with his device, as if each had been enrolled.
func (w *world) enroll(ctx context.Context) error {
	return w.db.Txn(ctx, func(ctx context.Context) error {
		users := make([]id.UserID, len(w.fleet.order))
		for i, m := range w.fleet.order {
			users[i] = m.user
			signing, identity := m.account.Keys()
			err := w.db.PutDevice(ctx, postgres.Device{ID: uuid.Must(uuid.NewV7()), UserID: m.user, DeviceID: m.id, IdentityKey: identity, SigningKey: signing, MasterKey: m.masterKey, EnrolledAt: time.Now()})
			if err != nil {
				return err
			}
		}
		_, err := w.db.Exec(ctx, `INSERT INTO roster (user_id, added_at, added_by) SELECT u, now(), 'make campaign' FROM unnest($1::text[]) AS u`, pq.Array(users))
		return err
	})
}

func (w *world) serve(ctx context.Context) error {
	log, err := os.Create(filepath.Join(w.config.Dir, "keyherald.log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(filepath.Join(w.config.Programs, "keyherald"), "serve")
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.config.Dir, log, log
	if w.server, err = keyheraldtest.StartProcess(cmd); err != nil {
		return err
	}
	w.pid = cmd.Process.Pid
	w.onClose(func() error { w.server.Stop(syscall.SIGTERM, time.Minute); return nil })
	return keyheraldtest.Until(ctx, 3*time.Minute, func() error {
		if err := w.running(); err != nil {
			return err
		}
		resp, err := http.Get("http://" + w.listen + "/readyz")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err == nil && !strings.Contains(string(body), "holding the bot") {
			err = errors.New(string(body))
		}
		return err
	})
}

// running is an error once the server has ended.
func (w *world) running() error {
	if w.server == nil || !w.server.Ended() {
		return nil
	}
	said, _ := os.ReadFile(filepath.Join(w.config.Dir, "keyherald.log"))
	return fmt.Errorf("the server ended: %s", said[max(0, len(said)-2000):])
}

// peakMB is the most resident memory that the server had (proc_pid_status(5), VmHWM).
func (w *world) peakMB() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmHWM:" {
			kb, err := strconv.ParseFloat(fields[1], 64)
			return kb * 1024 / 1e6, err
		}
	}
	return 0, errors.New("the system does not tell a process's memory")
}
