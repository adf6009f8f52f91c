package keyheraldtest

import (
	"bytes"
	"context"
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
)

const vaultVersion = "v1.21.0"

// VaultPath is where VaultBinary keeps Vault; it may not be built yet.
func VaultPath() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	return filepath.Join(cache, "keyherald", "vault-"+vaultVersion, "vault"), nil
}

// VaultBinary returns Vault's program, which is built from the module keyheraldtest/vault into the user's cache
// directory the first time: ten minutes or more. Vault is under BUSL-1.1 and a test tool alone.
func VaultBinary(ctx context.Context, progress io.Writer) (string, error) {
	program, err := VaultPath()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(program)
	return program, once(dir, func() error {
		_, _ = fmt.Fprintln(progress, "building Vault "+vaultVersion+" (once, ten minutes or more) …")
		// Without -p 1 the build takes two gigabytes for each processor.
		return buildInto(ctx, progress, "vault", dir, "-p", "1", "-tags", "minimal", "github.com/hashicorp/vault")
	})
}

// Vault is a development server: unsealed, in memory, with a KV v2 engine at secret/. Token may do everything.
type Vault struct {
	URL   string
	Token string
	// CAFile is what to trust where the server was started with TLS; empty otherwise.
	CAFile string
	cmd    *exec.Cmd
	done   chan struct{}
}

// StartVault starts a server that keeps its files in dir.
func StartVault(ctx context.Context, dir string, withTLS bool) (*Vault, error) {
	program, err := VaultBinary(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	v := &Vault{URL: "http://" + address, Token: "the-root-token-of-tests", done: make(chan struct{})}
	args := []string{"server", "-dev", "-dev-root-token-id=" + v.Token, "-dev-listen-address=" + address}
	if withTLS {
		v.URL, v.CAFile = "https://"+address, filepath.Join(dir, "vault-ca.pem")
		args = append(args, "-dev-tls", "-dev-tls-cert-dir="+dir)
	}
	log, err := os.Create(filepath.Join(dir, "vault.log"))
	if err != nil {
		return nil, fmt.Errorf("making Vault's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	v.cmd = exec.Command(program, args...)
	// It writes its root token into the home directory.
	v.cmd.Dir, v.cmd.Env, v.cmd.Stdout, v.cmd.Stderr = dir, append(os.Environ(), "HOME="+dir), log, log
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting Vault: %w", err)
	}
	go func() { defer close(v.done); _ = v.cmd.Wait() }()
	err = Until(ctx, 30*time.Second, func() error {
		_, err := v.Call(ctx, http.MethodGet, "secret/config", nil)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for Vault (see %s/vault.log): %w", dir, err), v.Close())
	}
	return v, nil
}

// Close ends the server.
func (v *Vault) Close() error {
	err := v.cmd.Process.Kill()
	<-v.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Call does one request with the root token, and returns what the answer has as data, or as auth for a login.
func (v *Vault) Call(ctx context.Context, method, endpoint string, body any) (map[string]any, error) {
	return v.CallWith(ctx, http.Header{"X-Vault-Token": {v.Token}}, method, endpoint, body)
}

// CallWith is Call with other headers.
func (v *Vault) CallWith(ctx context.Context, header http.Header, method, endpoint string, body any) (map[string]any, error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding a request to Vault: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, v.URL+"/v1/"+endpoint, bytes.NewReader(encoded))
	if err != nil {
		return nil, fmt.Errorf("making a request to Vault: %w", err)
	}
	req.Header = header.Clone()
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	client, err := trusting(v.CAFile)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= http.StatusBadRequest {
		return nil, errors.Join(err, fmt.Errorf("%s %s: Vault answered %s: %s", method, endpoint, resp.Status, raw))
	}
	if len(raw) == 0 {
		return nil, nil
	}
	var answer struct {
		Data     map[string]any `json:"data"`
		Auth     map[string]any `json:"auth"`
		WrapInfo map[string]any `json:"wrap_info"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("%s %s: Vault answered no JSON: %w", method, endpoint, err)
	}
	for _, part := range []map[string]any{answer.WrapInfo, answer.Auth} {
		if part != nil {
			return part, nil
		}
	}
	return answer.Data, nil
}

// PutValue makes a value the path's current version in a KV v2 engine, as an administrator does: the public key first,
// none if it is empty.
func (v *Vault) PutValue(ctx context.Context, mount, path, value, public string) (version string, err error) {
	next, method := 1, http.MethodPost
	if metadata, err := v.Call(ctx, http.MethodGet, mount+"/metadata/"+path, nil); err == nil {
		newest, _ := metadata["current_version"].(float64)
		next, method = int(newest)+1, http.MethodPatch
	}
	if public != "" {
		custom := map[string]any{"custom_metadata": map[string]string{fmt.Sprintf("public_key.%d", next): public}}
		if _, err := v.Call(ctx, method, mount+"/metadata/"+path, custom); err != nil {
			return "", err
		}
	}
	made, err := v.Call(ctx, http.MethodPost, mount+"/data/"+path, map[string]any{"options": map[string]any{"cas": next - 1}, "data": map[string]string{"key": value}})
	if err != nil {
		return "", err
	}
	return fmt.Sprint(made["version"]), nil
}
