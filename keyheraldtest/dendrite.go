package keyheraldtest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"
)

const dendriteVersion = "v0.15.2"

// ServerName is the homeserver's name.
const ServerName = "keyherald.test"

// DendriteBinaries returns the directory with Dendrite's programs, which are built from the module keyheraldtest/dendrite
// into the user's cache directory the first time, in minutes. Dendrite is AGPL-3.0 and a test tool alone.
func DendriteBinaries(ctx context.Context, progress io.Writer) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	dir := filepath.Join(cache, "keyherald", "dendrite-"+dendriteVersion)
	return dir, once(dir, func() error {
		_, _ = fmt.Fprintln(progress, "building Dendrite "+dendriteVersion+" (once, some minutes) …")
		return buildInto(ctx, progress, "dendrite", dir, "github.com/element-hq/dendrite/cmd/dendrite", "github.com/element-hq/dendrite/cmd/generate-keys")
	})
}

// Dendrite is a homeserver on SQLite.
type Dendrite struct {
	URL     string
	Dir     string
	program string
	cmd     *exec.Cmd
	done    chan struct{}
}

const registrationSecret = "keyheraldtest"

// StartDendrite starts a homeserver in dir with these application-service registrations.
func StartDendrite(ctx context.Context, dir string, registrations ...string) (*Dendrite, error) {
	bin, err := DendriteBinaries(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	key := filepath.Join(dir, "matrix_key.pem")
	if out, err := exec.CommandContext(ctx, filepath.Join(bin, "generate-keys"), "--private-key", key).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making the homeserver's key: %w: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "dendrite.yaml"), []byte(dendriteConfig(dir, key, registrations)), 0o600); err != nil {
		return nil, fmt.Errorf("writing the homeserver's config: %w", err)
	}
	d := &Dendrite{URL: fmt.Sprintf("http://127.0.0.1:%d", port), Dir: dir, program: filepath.Join(bin, "dendrite")}
	return d, d.Start(ctx)
}

// Start starts the homeserver again after Kill, with the data it has.
func (d *Dendrite) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(d.Dir, "dendrite.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making the homeserver's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(d.program, "-config", filepath.Join(d.Dir, "dendrite.yaml"), "-http-bind-address", strings.TrimPrefix(d.URL, "http://"), "-really-enable-open-registration")
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the homeserver: %w", err)
	}
	done := make(chan struct{})
	d.cmd, d.done = cmd, done
	go func() { defer close(done); _ = cmd.Wait() }()
	err = Until(ctx, 60*time.Second, func() error {
		resp, err := http.Get(d.URL + "/_matrix/client/versions")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	if err != nil {
		return errors.Join(fmt.Errorf("waiting for the homeserver (see %s/dendrite.log): %w", d.Dir, err), d.Close())
	}
	return nil
}

// Kill ends the homeserver with SIGKILL, as a crash does.
func (d *Dendrite) Kill() error {
	err := d.cmd.Process.Kill()
	<-d.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Close ends the homeserver.
func (d *Dendrite) Close() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	return nil
}

func dendriteConfig(dir, key string, registrations []string) string {
	files := ""
	for _, registration := range registrations {
		files += "\n  - " + registration
	}
	if files == "" {
		files = " []"
	}
	database := func(name string) string {
		return fmt.Sprintf("%s:\n  database:\n    connection_string: file:%s\n", name, filepath.Join(dir, name+".db"))
	}
	config := fmt.Sprintf(`version: 2
global:
  server_name: %s
  private_key: %s
  disable_federation: true
  jetstream:
    storage_path: %s
app_service_api:
  config_files:%s
client_api:
  registration_disabled: true
  registration_shared_secret: %s
  rate_limiting:
    enabled: false
logging:
- type: std
  level: warn
`, ServerName, key, dir, files, registrationSecret)
	for _, name := range []string{"federation_api", "key_server", "relay_api", "room_server", "sync_api"} {
		config += database(name)
	}
	config += fmt.Sprintf("user_api:\n  account_database:\n    connection_string: file:%s/accounts.db\n  device_database:\n    connection_string: file:%s/devices.db\n", dir, dir)
	config += database("media_api") + "  base_path: " + filepath.Join(dir, "media") + "\n"
	return config + fmt.Sprintf("mscs:\n  database:\n    connection_string: file:%s/mscs.db\n", dir)
}

// CreateUser makes an account through the shared-secret registration.
func (d *Dendrite) CreateUser(ctx context.Context, localpart, password string) (id.UserID, error) {
	url := d.URL + "/_synapse/admin/v1/register"
	var nonce struct {
		Nonce string `json:"nonce"`
	}
	if err := call(ctx, http.MethodGet, url, nil, &nonce); err != nil {
		return "", err
	}
	mac := hmac.New(sha1.New, []byte(registrationSecret))
	mac.Write([]byte(nonce.Nonce + "\x00" + localpart + "\x00" + password + "\x00notadmin"))
	body := map[string]any{"nonce": nonce.Nonce, "username": localpart, "password": password, "admin": false, "mac": hex.EncodeToString(mac.Sum(nil))}
	return id.NewUserID(localpart, ServerName), call(ctx, http.MethodPost, url, body, nil)
}

func call(ctx context.Context, method, url string, body, into any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(encoded))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, raw)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}
