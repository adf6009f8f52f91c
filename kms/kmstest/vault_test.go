package kmstest_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/kmstest"
	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/kms/vaultmeta"
	"github.com/keyherald/keyherald/kms/vaultsecret"
)

func byToken(t *testing.T, url string) vaultmeta.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(file, []byte("hvs.the-token-of-tests\n"), 0o600))
	config := vaultmeta.Config{URL: url}
	config.Auth.Method, config.Auth.TokenFile = "token", file
	return config
}

func vaultClients(t *testing.T, config vaultmeta.Config) (*vaultmeta.Client, *vaultsecret.Client) {
	t.Helper()
	metadata, err := vaultmeta.New(config)
	check(t, err)
	secrets, err := vaultsecret.New(config, nil)
	check(t, err)
	return metadata, secrets
}

func TestVaultsClientsStandABrokenServer(t *testing.T) {
	t.Run("with a token", func(t *testing.T) {
		kmstest.Hostile(t, func(t *testing.T, url, caFile string) (kms.Metadata, secret.Store) {
			config := byToken(t, url)
			config.CAFile = caFile
			return vaultClients(t, config)
		})
	})
	t.Run("with a login that went well", func(t *testing.T) {
		kmstest.Hostile(t, func(t *testing.T, url, caFile string) (kms.Metadata, secret.Store) {
			if caFile != "" || strings.HasPrefix(url, "https") {
				config := byToken(t, url)
				config.CAFile = caFile
				return vaultClients(t, config)
			}
			login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if strings.HasSuffix(req.URL.Path, "/login/alice") {
					_, _ = io.WriteString(w, `{"auth":{"client_token":"hvs.fresh","lease_duration":3600,"renewable":true}}`)
					return
				}
				forward(w, req, url)
			}))
			t.Cleanup(login.Close)
			config := vaultmeta.Config{URL: login.URL}
			config.Auth.Method, config.Auth.Username, config.Auth.PasswordFile = "userpass", "alice", filepath.Join(t.TempDir(), "password")
			check(t, os.WriteFile(config.Auth.PasswordFile, []byte("hunter2"), 0o600))
			return vaultClients(t, config)
		})
	})
}

// forward is a proxy that passes on what a broken server does as it is, a cut connection too.
func forward(w http.ResponseWriter, req *http.Request, to string) {
	body, _ := io.ReadAll(req.Body)
	out, err := http.NewRequestWithContext(req.Context(), req.Method, to+req.URL.RequestURI(), strings.NewReader(string(body)))
	if err != nil {
		panic(err)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer func() { _ = resp.Body.Close() }()
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// The statuses that a Vault gives without being broken.
func TestVaultsAnswersGetTheirWord(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"sealed":                               {503, `{"errors":["Vault is sealed"]}`, kms.ErrUnavailable},
		"a standby that is behind":             {412, `{"errors":["required index state not present"]}`, kms.ErrUnavailable},
		"a quota":                              {429, `{"errors":["request path \"secret\": rate limit quota exceeded"]}`, kms.ErrUnavailable},
		"a disaster-recovery secondary":        {472, ``, kms.ErrUnavailable},
		"an engine of version 1 or none":       {404, `{"errors":["no handler for route \"secret/metadata/keyherald/alice\". route entry not found."]}`, kms.ErrNotFound},
		"a control group that wants a consent": {200, `{"data":null,"wrap_info":{"token":"hvs.x","ttl":60}}`, kms.ErrMalformed},
		"an unsupported method":                {405, `{"errors":["unsupported operation"]}`, kms.ErrMalformed},
		"a version that is no number":          {200, `{"data":{"current_version":2,"versions":{"two":{}}}}`, kms.ErrMalformed},
		"a version after the newest":           {200, `{"data":{"current_version":2,"versions":{"3":{}}}}`, kms.ErrMalformed},
		"custom metadata of another kind":      {200, `{"data":{"current_version":1,"custom_metadata":{"public_key.1":7},"versions":{"1":{}}}}`, kms.ErrMalformed},
		"a deletion at no time":                {200, `{"data":{"current_version":1,"versions":{"1":{"deletion_time":"soon"}}}}`, kms.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			t.Cleanup(hs.Close)
			metadata, secrets := vaultClients(t, byToken(t, hs.URL))
			_, described := metadata.Current(t.Context(), "keyherald/alice")
			_, current := secrets.Current(t.Context(), "keyherald/alice")
			for _, err := range []error{described, current} {
				if !errors.Is(err, c.want) || kms.Retryable(err) != errors.Is(c.want, kms.ErrUnavailable) {
					t.Errorf("got %v, not %v", err, c.want)
				}
			}
		})
	}
}

func TestTheNamespacesAreSaidToVault(t *testing.T) {
	type seen struct{ path, namespace, token string }
	var requests []seen
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		requests = append(requests, seen{req.URL.Path, req.Header.Get("X-Vault-Namespace"), req.Header.Get("X-Vault-Token")})
		if strings.HasSuffix(req.URL.Path, "/login") {
			_, _ = io.WriteString(w, `{"auth":{"client_token":"hvs.fresh","lease_duration":3600,"renewable":true}}`)
			return
		}
		_, _ = io.WriteString(w, `{"data":{"current_version":1,"custom_metadata":null,"versions":{"1":{"deletion_time":"","destroyed":false}}}}`)
	}))
	t.Cleanup(hs.Close)
	// What the environment says is for the vendor's own programs.
	for name, value := range map[string]string{"VAULT_ADDR": "http://127.0.0.1:1", "BAO_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "hvs.environment", "VAULT_NAMESPACE": "environment", "VAULT_WRAP_TTL": "60s"} {
		t.Setenv(name, value)
	}
	config := vaultmeta.Config{URL: hs.URL + "/behind/a/proxy/", Namespace: "company/matrix", Mount: "keys/matrix"}
	config.Auth.Method, config.Auth.Namespace, config.Auth.RoleID, config.Auth.SecretIDFile = "approle", "company", "role", filepath.Join(t.TempDir(), "secret-id")
	check(t, os.WriteFile(config.Auth.SecretIDFile, []byte("secret-id"), 0o600))
	metadata, _ := vaultClients(t, config)
	described, err := metadata.Current(t.Context(), "alice")
	check(t, err)
	want := []seen{{"/behind/a/proxy/v1/auth/approle/login", "company", ""}, {"/behind/a/proxy/v1/keys/matrix/metadata/alice", "company/matrix", "hvs.fresh"}}
	if described.Version != "1" || len(requests) != 2 || requests[0] != want[0] || requests[1] != want[1] {
		t.Errorf("the requests were %+v", requests)
	}
}

// A failed check-and-set is an answer like another to whoever does not look at its text.
func TestABadRequestIsNoConflict(t *testing.T) {
	for text, want := range map[string]error{"check-and-set parameter did not match the current version": kms.ErrExists,
		"check-and-set parameter required for this call": kms.ErrMalformed, "no data provided": kms.ErrMalformed} {
		hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, "/lookup-self") {
				return
			}
			w.WriteHeader(http.StatusBadRequest)
			if err := json.NewEncoder(w).Encode(map[string][]string{"errors": {text}}); err != nil {
				t.Error(err)
			}
		}))
		_, secrets := vaultClients(t, byToken(t, hs.URL))
		if err := secrets.Create(t.Context(), "keyherald/alice", "value"); !errors.Is(err, want) {
			t.Errorf("%s: got %v, not %v", text, err, want)
		}
		hs.Close()
	}
}
