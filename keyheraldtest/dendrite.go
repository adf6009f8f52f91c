package keyheraldtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

const dendriteVersion = "v0.15.2"

// DendriteBinaries returns the directory with Dendrite's programs, which are built the first time, in minutes. Dendrite is
// AGPL-3.0 and a test tool alone.
func DendriteBinaries(ctx context.Context, progress io.Writer) (string, error) {
	return builtTool{name: "dendrite", version: dendriteVersion, packages: []string{
		"github.com/element-hq/dendrite/cmd/dendrite", "github.com/element-hq/dendrite/cmd/generate-keys"}}.build(ctx, progress)
}

// StartDendrite starts a homeserver in dir with these application-service registrations.
func StartDendrite(ctx context.Context, dir string, registrations ...string) (*Homeserver, error) {
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
	if err := writeAheadLogs(ctx, dir); err != nil {
		return nil, err
	}
	hs := &Homeserver{Name: "Dendrite " + dendriteVersion, URL: fmt.Sprintf("http://127.0.0.1:%d", port), Dir: dir,
		program: []string{filepath.Join(bin, "dendrite"), "-config", filepath.Join(dir, "dendrite.yaml"),
			"-http-bind-address", fmt.Sprintf("127.0.0.1:%d", port), "-really-enable-open-registration"}}
	return hs, hs.Start(ctx)
}

// dendriteDatabases are the names of Dendrite's databases.
var dendriteDatabases = []string{"federation_api", "key_server", "relay_api", "room_server", "sync_api"}

// writeAheadLogs makes Dendrite's databases with a write-ahead log, which SQLite keeps to from then on. Without one
// nobody can write while anybody reads, and Dendrite does not always end the reading of a client that was killed: then
// its database is locked for good.
func writeAheadLogs(ctx context.Context, dir string) error {
	for _, name := range append([]string{"accounts", "devices", "media_api", "mscs"}, dendriteDatabases...) {
		db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, name+".db"))
		if err != nil {
			return fmt.Errorf("making the homeserver's database %s: %w", name, err)
		}
		_, err = db.ExecContext(ctx, `PRAGMA journal_mode = WAL`)
		if err = errors.Join(err, db.Close()); err != nil {
			return fmt.Errorf("making the homeserver's database %s: %w", name, err)
		}
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
	for _, name := range dendriteDatabases {
		config += database(name)
	}
	config += fmt.Sprintf("user_api:\n  account_database:\n    connection_string: file:%s/accounts.db\n  device_database:\n    connection_string: file:%s/devices.db\n", dir, dir)
	config += database("media_api") + "  base_path: " + filepath.Join(dir, "media") + "\n"
	return config + fmt.Sprintf("mscs:\n  database:\n    connection_string: file:%s/mscs.db\n", dir)
}
