package keyheraldtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// vault is under BUSL-1.1 and a test tool alone. Without -p 1 its build takes two gigabytes for each processor.
var vault = builtTool{name: "vault", version: "v1.21.0", flags: []string{"-p", "1", "-tags", "minimal"}, packages: []string{"github.com/hashicorp/vault"}}

// VaultIsBuilt tells whether VaultBinary would find Vault's program.
func VaultIsBuilt() (bool, error) {
	dir, err := cachePath(vault.cacheName())
	if err != nil {
		return false, err
	}
	_, err = os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// VaultBinary returns Vault's program, which is built the first time: ten minutes or more.
func VaultBinary(ctx context.Context, progress io.Writer) (string, error) {
	dir, err := vault.build(ctx, progress)
	return filepath.Join(dir, "vault"), err
}

// Vault is a development server: unsealed, in memory, with a KV v2 engine at secret/. Token may do everything.
type Vault struct {
	URL   string
	Token string
	// CAFile is what to trust where the server was started with TLS; empty otherwise.
	CAFile  string
	process *Process
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
	v := &Vault{URL: "http://" + address, Token: "the-root-token-of-tests"}
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
	cmd := exec.Command(program, args...)
	// It writes its root token into the home directory.
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), "HOME="+dir), log, log
	if v.process, err = StartProcess(cmd); err != nil {
		return nil, fmt.Errorf("starting Vault: %w", err)
	}
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
func (v *Vault) Close() error { return v.process.Kill() }

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

// trusting is a client that trusts the CAs of a PEM file, or the system's where there is none.
func trusting(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading a CA: %w", err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport}, nil
}
