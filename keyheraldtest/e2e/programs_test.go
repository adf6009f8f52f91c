package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// programs are the two binaries, run as an operator runs them.
type programs struct {
	t   *testing.T
	dir string
}

func (p programs) run(name string, args ...string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(p.dir, name), args...)
	cmd.Dir = p.dir
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		p.t.Fatalf("%s %s: %v: %s", name, args, err, problem.String())
	}
	return out.String()
}

func (p programs) start(name string, args ...string) {
	p.t.Helper()
	log, err := os.Create(filepath.Join(p.dir, name+".log"))
	check(p.t, err)
	cmd := exec.Command(filepath.Join(p.dir, name), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, log, log
	check(p.t, cmd.Start())
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("%s did not end well: %v", name, err)
		}
		if p.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			p.t.Logf("%s said:\n%s", name, text)
		}
		_ = log.Close()
	})
}

func (p programs) write(name, content string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	check(p.t, os.MkdirAll(filepath.Dir(path), 0o700))
	check(p.t, os.WriteFile(path, []byte(content), 0o600))
}

func TestTheProgramsRotateAKeyAndLeaveNoTraceOfIt(t *testing.T) {
	ctx := t.Context()
	p := programs{t, t.TempDir()}
	build := exec.CommandContext(ctx, "go", "build", "-tags", "goolm", "-o", p.dir+"/", "../../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}
	pg, err := keyheraldtest.StartPostgres(ctx)
	check(t, err)
	t.Cleanup(func() { _ = pg.Close() })
	database, err := pg.NewDatabase(ctx)
	check(t, err)
	port, err := keyheraldtest.FreePort()
	check(t, err)
	listen := "127.0.0.1:" + strconv.Itoa(port)

	config := func(homeserver string) string {
		return fmt.Sprintf(`listen: %s
public_url: http://%s
homeserver: %s
registration: registration.yaml
bot: {user_id: "@keyherald:%s", identity_file: bot-identity.json, self_signing_file: bot-self-signing.seed, pickle_key_file: pickle.key}
database: {url_file: writer.url, owner_url_file: owner.url, roles: {writer: %s, auditor: %s}}
sources:
  kms:
    keys: [{id: k1, secret: %s}]
    mapping: {pattern: "keyherald/(?P<user>[a-z]+)", user: "@{user}:%s", kms: dev}
`, listen, listen, homeserver, keyheraldtest.ServerName, database.Writer, database.Auditor, signingSecret, keyheraldtest.ServerName)
	}
	p.write("writer.url", database.WriterURL)
	p.write("owner.url", database.OwnerURL)
	p.write("pickle.key", base64.StdEncoding.EncodeToString(make([]byte, 32)))
	p.write("config.yaml", config("http://127.0.0.1:1"))
	p.run("keyherald", "bot", "keygen", "--user", "@keyherald:"+keyheraldtest.ServerName)
	p.run("keyherald", "registration")
	hs, err := keyheraldtest.StartDendrite(ctx, p.dir, filepath.Join(p.dir, "registration.yaml"))
	check(t, err)
	t.Cleanup(func() { _ = hs.Close() })
	p.write("config.yaml", config(hs.URL))
	p.run("keyherald", "migrate")
	p.start("keyherald", "serve")
	wait(t, "the server to hold the bot", func() bool {
		resp, err := http.Get("http://" + listen + "/readyz")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		var body bytes.Buffer
		_, _ = body.ReadFrom(resp.Body)
		return strings.Contains(body.String(), "holding the bot")
	})

	alice, err := hs.CreateUser(ctx, "alice", password)
	check(t, err)
	stock, err := keyheraldtest.Login(ctx, hs.URL, alice, password, "STOCK")
	check(t, err)
	t.Cleanup(stock.Close)
	recoveryKey, err := stock.Bootstrap(ctx, password)
	check(t, err)
	key, err := backupkey.Generate()
	check(t, err)
	p.write("kms/keyherald/alice/1.pub", key.PublicKey())
	p.write("kms/keyherald/alice/1.key", key.RevealBase64())
	p.write("kms/keyherald/alice/current", "1")
	p.write("alice.password", password)
	p.write("alice.recovery", recoveryKey)
	p.write("accounts.d/alice.yaml", fmt.Sprintf(`user_id: "%s"
homeserver: %s
login: {password_file: ../alice.password}
verification: {recovery_key_file: ../alice.recovery}
kms: {name: dev, type: file, dir: ../kms, path: keyherald/alice}
`, alice, hs.URL))
	p.write("device.yaml", "accounts_dir: accounts.d\nstate_dir: state\npickle_key_file: device-pickle.key\n")
	p.start("keyherald-device", "run")
	p.write("code", p.run("keyherald", "enroll", "--user", alice.String()))
	p.run("keyherald-device", "enroll", "--account", "alice", "--code-file", "code")

	body := cloudEvent("1", "keyherald/alice", "1")
	signature, err := intake.Sign(signingSecret, "msg", time.Now(), []byte(body))
	check(t, err)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+listen+"/notify/kms", strings.NewReader(body))
	check(t, err)
	req.Header.Set("Content-Type", "application/cloudevents+json")
	req.Header.Set("Webhook-Id", "msg")
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(time.Now().Unix(), 10))
	req.Header.Set("Webhook-Signature", signature)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("the notification was answered %s", resp.Status)
	}
	wait(t, "the rotation to be done", func() bool { return strings.Contains(p.run("keyherald", "rotations", "list"), "done") })
	waitCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pushes, err := stock.WaitForPush(waitCtx)
	check(t, err)
	if pushes[0].Secret != key.RevealBase64() {
		t.Error("the stock client did not get the new key")
	}
	log := p.run("keyherald", "audit", "list")
	if !strings.Contains(log, "rotation.done") || !strings.Contains(log, "local:") {
		t.Error("the audit log does not tell the story")
	}
	// The key itself is in no log; the same look does find it where the KMS keeps it.
	kept, err := os.ReadFile(filepath.Join(p.dir, "kms/keyherald/alice/1.key"))
	check(t, err)
	if !bytes.Contains(kept, []byte(key.RevealBase64())) {
		t.Error("the look for the key does not find it even in the KMS")
	}
	for _, name := range []string{"keyherald.log", "keyherald-device.log"} {
		text, err := os.ReadFile(filepath.Join(p.dir, name))
		check(t, err)
		if bytes.Contains(text, []byte(key.RevealBase64())) || bytes.Contains(text, []byte(recoveryKey)) {
			t.Errorf("%s has a secret in it", name)
		}
	}
	if strings.Contains(log, key.RevealBase64()) {
		t.Error("the audit log has the key in it")
	}
}
