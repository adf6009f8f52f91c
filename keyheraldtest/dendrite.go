package keyheraldtest

import (
	"context"
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

// StartDendrite starts a homeserver in dir with these application-service registrations, on a PostgreSQL of its own as an
// operator has it: on SQLite Dendrite answers now and then that its database is locked, and has then lost what was asked.
func StartDendrite(ctx context.Context, dir string, registrations ...string) (*Homeserver, error) {
	// Processes are killed, and the machine is not: nothing has to be forced to the disk.
	cluster, err := StartPostgres(ctx, "fsync=off", "shared_buffers=16MB")
	if err != nil {
		return nil, fmt.Errorf("starting the homeserver's PostgreSQL: %w", err)
	}
	hs, err := DendriteOn(cluster)(ctx, dir, registrations...)
	if err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	hs.dispose = cluster.Close
	return hs, nil
}

// DendriteOn is StartDendrite with a database in this cluster, which is dropped when the homeserver is closed: many
// homeservers one after the other start sooner so.
func DendriteOn(cluster *Postgres) StartHomeserver {
	return func(ctx context.Context, dir string, registrations ...string) (*Homeserver, error) {
		return startDendrite(ctx, cluster, dir, registrations)
	}
}

func startDendrite(ctx context.Context, cluster *Postgres, dir string, registrations []string) (_ *Homeserver, err error) {
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
	database, err := freshName()
	if err != nil {
		return nil, err
	}
	database = "dendrite_" + database
	drop := func() error {
		return execAll(context.WithoutCancel(ctx), cluster.url("postgres", "postgres"), "DROP DATABASE IF EXISTS "+database+" WITH (FORCE)")
	}
	hs := &Homeserver{Name: "Dendrite " + dendriteVersion, URL: fmt.Sprintf("http://127.0.0.1:%d", port), Dir: dir,
		DatabaseURL: cluster.url("postgres", database), dispose: drop,
		program: []string{filepath.Join(bin, "dendrite"), "-config", filepath.Join(dir, "dendrite.yaml"),
			"-http-bind-address", fmt.Sprintf("127.0.0.1:%d", port), "-really-enable-open-registration"}}
	defer func() {
		if err != nil {
			err = errors.Join(err, hs.Close())
		}
	}()
	if err := execAll(ctx, cluster.url("postgres", "postgres"), "CREATE DATABASE "+database); err != nil {
		return nil, fmt.Errorf("making the homeserver's database: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dendrite.yaml"), []byte(dendriteConfig(dir, key, hs.DatabaseURL, registrations)), 0o600); err != nil {
		return nil, fmt.Errorf("writing the homeserver's config: %w", err)
	}
	return hs, hs.Start(ctx)
}

func dendriteConfig(dir, key, database string, registrations []string) string {
	files := ""
	for _, registration := range registrations {
		files += "\n  - " + registration
	}
	if files == "" {
		files = " []"
	}
	return fmt.Sprintf(`version: 2
global:
  server_name: %s
  private_key: %s
  disable_federation: true
  database:
    connection_string: %s
    max_open_conns: 50
  jetstream:
    storage_path: %s
app_service_api:
  config_files:%s
client_api:
  registration_disabled: true
  registration_shared_secret: %s
  rate_limiting:
    enabled: false
media_api:
  base_path: %s
logging:
- type: std
  level: warn
`, ServerName, key, database, dir, files, registrationSecret, filepath.Join(dir, "media"))
}
