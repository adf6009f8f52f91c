package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/sink"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

var cluster *keyheraldtest.Postgres

// runAsProgram makes the test's binary the program itself, for what must be killed.
const runAsProgram = "KEYHERALD_TEST_RUN_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(runAsProgram) != "" {
		main()
		return
	}
	os.Exit(keyheraldtest.RunWithPostgres(&cluster, m.Run))
}

// startProgram runs the program itself, and reads what it prints line by line; said is what it says beside that.
func startProgram(ctx context.Context, t *testing.T, args ...string) (cmd *exec.Cmd, out *bufio.Scanner, said *bytes.Buffer) {
	t.Helper()
	program, err := os.Executable()
	check(t, err)
	cmd, said = exec.CommandContext(ctx, program, args...), new(bytes.Buffer)
	cmd.Env, cmd.Stderr = append(os.Environ(), runAsProgram+"=1"), said
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	out = bufio.NewScanner(stdout)
	out.Buffer(nil, 1<<20)
	return cmd, out, said
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// room is a log with a configuration on it, whose sink is a directory.
type room struct {
	*sealedlog.Log
	dir     string
	address string // of its API, once a test has asked for that
	cut     func() // ends all connections to it
	// provider is who the API's callers log in at.
	provider *api.OIDCConfig
}

func newRoom(t *testing.T) *room {
	t.Helper()
	r := &room{Log: sealedlog.New(t, cluster), dir: t.TempDir()}
	check(t, os.Mkdir(r.path("kms"), 0o700))
	r.write(t, "writer.url", r.Database.WriterURL)
	r.write(t, "owner.url", r.Database.OwnerURL)
	r.write(t, "signer.url", r.Database.SignerURL)
	r.write(t, "auditor.url", r.Database.AuditorURL)
	r.write(t, "config.yaml", fmt.Sprintf(`
homeserver: http://localhost:1
public_url: http://localhost:2
registration: registration.yaml
bot: {user_id: "@keyherald:example.org", identity_file: a, self_signing_file: b, pickle_key_file: c}
database: {url_file: writer.url, owner_url_file: owner.url, signer_url_file: signer.url, auditor_url_file: auditor.url}
audit:
  name: %s
  signing_key_files: [%s]
  interval: 10ms
  sinks:
    - {name: minutes, type: directory, path: checkpoints, held_by: internal audit}
    - {name: lines, type: file, path: lines.jsonl}
kms: {corporate: {type: file, dir: kms, check_path: keyherald/alice}}
`, sealedlog.Name, r.KeyFile))
	minutes, err := sink.NewDirectory("minutes", r.path("checkpoints"), r.Keys)
	check(t, err)
	r.Signer = r.NewSigner(t, minutes)
	return r
}

func (r *room) path(name string) string { return filepath.Join(r.dir, name) }

func (r *room) write(t *testing.T, name, content string) {
	t.Helper()
	check(t, os.WriteFile(r.path(name), []byte(content), 0o600))
}

func (r *room) read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(r.path(name))
	check(t, err)
	return string(raw)
}

// grow appends events and seals them, a hundred at once, until there are so many.
func (r *room) grow(t *testing.T, events int) *sync.WaitGroup {
	t.Helper()
	ctx := t.Context()
	appending := new(sync.WaitGroup)
	appending.Go(func() {
		for range events / 100 {
			var some []audit.Event
			for range 100 {
				some = append(some, leaseTaken())
			}
			if err := errors.Join(r.Writer.Append(ctx, some...), seal(ctx, r)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return appending
}

// run runs a command of `keyherald audit`.
func (r *room) run(t *testing.T, args ...string) (out, said string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs(append([]string{"-c", r.path("config.yaml"), "audit"}, args...))
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	err = cmd.ExecuteContext(t.Context())
	return stdout.String(), stderr.String(), err
}

// must is run where nothing may fail.
func (r *room) must(t *testing.T, args ...string) string {
	t.Helper()
	out, said, err := r.run(t, args...)
	if err != nil {
		t.Fatalf("keyherald audit %s: %v\n%s%s", strings.Join(args, " "), err, out, said)
	}
	return out
}

// told is what the log itself says of the newest command: the event's action and detail.
func (r *room) told(t *testing.T) (action string, detail map[string]any) {
	t.Helper()
	var raw []byte
	check(t, r.Super.QueryRow(t.Context(), `SELECT action, detail::text FROM audit_log ORDER BY id DESC LIMIT 1`).Scan(&action, &raw))
	check(t, json.Unmarshal(raw, &detail))
	return action, detail
}

// lines decodes JSON Lines.
func lines(t *testing.T, text string) (decoded []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		var one map[string]any
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q is no line: %v", line, err)
		}
		decoded = append(decoded, one)
	}
	return decoded
}

// event is one that a part of the server appends.
func event(actor audit.Actor, action audit.Action, subject audit.Subject, outcome audit.Outcome, detail ...audit.Field) audit.Event {
	return audit.Event{Time: time.Now(), Actor: actor, Action: action, Subject: subject, Outcome: outcome, Detail: detail}
}

// leaseTaken is an event of the bot's, for where any will do.
func leaseTaken() audit.Event {
	return event(audit.ByRelay(), audit.LeaseTaken, audit.OfUser("@keyherald:example.org"), audit.Accepted, audit.Number("epoch", 1))
}

func wantExit(t *testing.T, err error, code int) {
	t.Helper()
	var exit exitError
	if !errors.As(err, &exit) || exit.code != code || exitCode(err) != code {
		t.Errorf("it ends with %v, and not with %d", err, code)
	}
}
