package keyheraldtest

import (
	"context"
	_ "embed" // the pins
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

const synapseVersion = "1.157.1"

//go:embed synapse-requirements.txt
var synapseRequirements []byte

// SynapseEnvironment returns the Python that Synapse runs with, which is installed the first time. Synapse is AGPL-3.0
// and a test tool alone.
func SynapseEnvironment(ctx context.Context, progress io.Writer) (string, error) {
	return PythonEnvironment(ctx, "synapse-"+synapseVersion, synapseRequirements, progress)
}

// StartSynapse starts a homeserver in dir with these application-service registrations.
func StartSynapse(ctx context.Context, dir string, registrations ...string) (*Homeserver, error) {
	return startSynapse(ctx, dir, nil, registrations)
}

// StartDelegatedSynapse starts one that delegates logins to a Matrix Authentication Service, which is not there: nobody
// can log in, and application services must do without.
func StartDelegatedSynapse(ctx context.Context, dir string, registrations ...string) (*Homeserver, error) {
	return startSynapse(ctx, dir, map[string]any{
		"matrix_authentication_service": map[string]any{"enabled": true, "endpoint": "http://127.0.0.1:1/", "secret": registrationSecret},
	}, registrations)
}

func startSynapse(ctx context.Context, dir string, change map[string]any, registrations []string) (*Homeserver, error) {
	python, err := SynapseEnvironment(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	config := synapseConfig(dir, port, registrations)
	for key, value := range change {
		config[key] = value
	}
	path := filepath.Join(dir, "homeserver.yaml")
	// JSON is YAML as well.
	encoded, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the homeserver's config: %w", err)
	}
	logging := `{"version": 1, "disable_existing_loggers": false, "root": {"level": "WARNING", "handlers": ["console"]}, "handlers": {"console": {"class": "logging.StreamHandler"}}}`
	for file, content := range map[string]string{path: string(encoded), filepath.Join(dir, "homeserver-logging.yaml"): logging} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			return nil, fmt.Errorf("writing the homeserver's config: %w", err)
		}
	}
	program := []string{python, "-m", "synapse.app.homeserver", "--config-path", path}
	keys := exec.CommandContext(ctx, python, append(program[1:], "--generate-keys")...)
	keys.Dir = dir
	if out, err := keys.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making the homeserver's key: %w: %s", err, out)
	}
	hs := &Homeserver{Name: "Synapse " + synapseVersion, URL: fmt.Sprintf("http://127.0.0.1:%d", port), Dir: dir, program: program}
	return hs, hs.Start(ctx)
}

func synapseConfig(dir string, port int, registrations []string) map[string]any {
	type object = map[string]any
	unlimited := object{"per_second": 1e6, "burst_count": 1000000}
	if registrations == nil {
		registrations = []string{}
	}
	config := object{
		"server_name": ServerName, "report_stats": false,
		"listeners": []object{{"port": port, "type": "http", "tls": false, "bind_addresses": []string{"127.0.0.1"},
			"resources": []object{{"names": []string{"client"}, "compress": false}}}},
		"database":   object{"name": "sqlite3", "args": object{"database": filepath.Join(dir, "homeserver.db")}},
		"log_config": filepath.Join(dir, "homeserver-logging.yaml"), "media_store_path": filepath.Join(dir, "media"),
		"signing_key_path": filepath.Join(dir, "signing.key"), "pid_file": filepath.Join(dir, "homeserver.pid"),
		"trusted_key_servers": []object{}, "federation_domain_whitelist": []string{}, "presence": object{"enabled": false},
		"registration_shared_secret": registrationSecret, "macaroon_secret_key": registrationSecret, "form_secret": registrationSecret,
		"bcrypt_rounds": 4, "app_service_config_files": registrations,
		"rc_login":   object{"address": unlimited, "account": unlimited, "failed_attempts": unlimited},
		"rc_joins":   object{"local": unlimited, "remote": unlimited},
		"rc_invites": object{"per_room": unlimited, "per_user": unlimited, "per_issuer": unlimited},
	}
	for _, limit := range []string{"rc_message", "rc_registration", "rc_joins_per_room", "rc_key_requests", "rc_room_creation", "rc_media_create", "rc_user_directory"} {
		config[limit] = unlimited
	}
	return config
}
