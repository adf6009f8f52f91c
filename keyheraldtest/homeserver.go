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
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"
)

// ServerName is the homeserver's name.
const ServerName = "keyherald.test"

const registrationSecret = "keyheraldtest"

// Homeserver is a real homeserver, without rate limits and federation: Dendrite on PostgreSQL, Synapse on SQLite.
// StartDendrite and its like start one.
type Homeserver struct {
	// Name is the software with its version.
	Name string
	URL  string
	// Dir is where its data and its log are.
	Dir string
	// DatabaseURL is where Dendrite has its database, which lives on where it is killed; empty for another homeserver.
	DatabaseURL string
	program     []string
	process     *Process
	// dispose does away with the database; nil where there is none.
	dispose func() error
}

// StartHomeserver is StartDendrite or one like it: it starts a homeserver in dir with these application-service
// registrations.
type StartHomeserver func(ctx context.Context, dir string, registrations ...string) (*Homeserver, error)

// HomeserverNamed gives what starts a homeserver by the software's name, dendrite or synapse.
func HomeserverNamed(name string) (StartHomeserver, error) {
	switch name {
	case "dendrite":
		return StartDendrite, nil
	case "synapse":
		return StartSynapse, nil
	}
	return nil, fmt.Errorf("there is no homeserver %q: say dendrite or synapse", name)
}

// StartWanted starts the homeserver that KEYHERALD_TEST_HOMESERVER names in the environment, and Dendrite on this cluster
// where it names none: tests that use it run on every homeserver.
func StartWanted(ctx context.Context, cluster *Postgres, dir string, registrations ...string) (*Homeserver, error) {
	start := DendriteOn(cluster)
	if name := os.Getenv("KEYHERALD_TEST_HOMESERVER"); name != "" && name != "dendrite" {
		var err error
		if start, err = HomeserverNamed(name); err != nil {
			return nil, fmt.Errorf("KEYHERALD_TEST_HOMESERVER: %w", err)
		}
	}
	return start(ctx, dir, registrations...)
}

// Start starts the homeserver again after Kill, with the data it has.
func (hs *Homeserver) Start(ctx context.Context) error {
	log, err := os.OpenFile(hs.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making the homeserver's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(hs.program[0], hs.program[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = hs.Dir, log, log
	process, err := StartProcess(cmd)
	if err != nil {
		return fmt.Errorf("starting the homeserver: %w", err)
	}
	hs.process = process
	err = Until(ctx, 3*time.Minute, func() error {
		resp, err := http.Get(hs.URL + "/_matrix/client/versions")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	if err != nil {
		return errors.Join(fmt.Errorf("waiting for the homeserver (see %s): %w", hs.logFile(), err), hs.Close())
	}
	return nil
}

func (hs *Homeserver) logFile() string { return filepath.Join(hs.Dir, "homeserver.log") }

// Kill ends the homeserver with SIGKILL, as a crash does.
func (hs *Homeserver) Kill() error { return hs.process.Kill() }

// Close ends the homeserver.
func (hs *Homeserver) Close() error {
	if hs.process != nil {
		hs.process.Stop(syscall.SIGTERM, 5*time.Second)
	}
	if hs.dispose != nil {
		return hs.dispose()
	}
	return nil
}

// CreateUser makes an account through the shared-secret registration, which Dendrite has from Synapse.
func (hs *Homeserver) CreateUser(ctx context.Context, localpart, password string) (id.UserID, error) {
	url := hs.URL + "/_synapse/admin/v1/register"
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
