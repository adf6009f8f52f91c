package vault

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/kms"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(path, []byte(content+"\n"), 0o600))
	return path
}

// The vendor's client can read a secret, and is in the server's binary. Whatever is asked of it through a session of
// metadata alone, no request for a value leaves.
func TestNothingOfASecretIsAskedForWithinTheReachOfMetadata(t *testing.T) {
	var reached []string
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		reached = append(reached, req.Method+" "+req.URL.RequestURI())
		_, _ = w.Write([]byte(`{"data":{"data":{"key":"value"},"metadata":{"version":1}}}`))
	}))
	t.Cleanup(hs.Close)
	config := Config{URL: hs.URL + "/base", Auth: Auth{Method: "userpass", Username: "keyherald", PasswordFile: file(t, "password")}}
	s, err := New(config, MetadataOnly, nil)
	check(t, err)
	client, err := s.client("", "hvs.token")
	check(t, err)
	ctx := t.Context()
	kv := client.KVv2("secret")
	_, get := kv.Get(ctx, "keyherald/alice")
	_, version := kv.GetVersion(ctx, "keyherald/alice", 1)
	_, put := kv.Put(ctx, "keyherald/alice", map[string]any{"key": "value"})
	_, patch := kv.Patch(ctx, "keyherald/alice", map[string]any{"key": "value"})
	putMetadata := kv.DeleteMetadata(ctx, "keyherald/alice")
	_, v1 := client.KVv1("secret").Get(ctx, "data/keyherald/alice")
	refused := map[string]error{"Get": get, "GetVersion": version, "Put": put, "Patch": patch, "DeleteMetadata": putMetadata, "KVv1.Get": v1}
	for _, endpoint := range []string{"secret/data/keyherald/alice", "secret/metadata/../data/keyherald/alice", "secret/metadata/x/../../data/keyherald/alice", "secret/metadata",
		"secret/subkeys/keyherald/alice", "secret/metadatas/alice", "other/metadata/alice", "sys/wrapping/unwrap", "sys/raw/x", "cubbyhole/response", "auth/userpass/login/somebody-else",
		"secret/metadata/x%2f..%2fdata", "identity/entity/id/1", "sys/internal/ui/mounts"} {
		_, refused["reading "+endpoint] = client.Logical().ReadWithContext(ctx, endpoint)
		_, refused["writing "+endpoint] = client.Logical().WriteWithContext(ctx, endpoint, map[string]any{})
	}
	_, refused["a list"] = client.Logical().ListWithContext(ctx, "secret/metadata/keyherald")
	_, refused["unwrapping"] = client.Logical().UnwrapWithContext(ctx, "hvs.another")
	delete(refused, "reading secret/metadata/x%2f..%2fdata") // a name with a percent sign in it, which Vault takes as that
	for what, err := range refused {
		if !errors.Is(err, errOutOfReach) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	reached = nil
	if _, err := client.Logical().ReadWithContext(ctx, "secret/metadata/keyherald/alice"); err != nil {
		t.Errorf("metadata was not read: %v", err)
	}
	if _, err := client.Logical().WriteWithContext(ctx, "sys/capabilities-self", map[string]any{"paths": []string{"secret/data/keyherald/alice"}}); err != nil {
		t.Errorf("the rights were not asked for: %v", err)
	}
	if !slices.Equal(reached, []string{"GET /base/v1/secret/metadata/keyherald/alice", "PUT /base/v1/sys/capabilities-self"}) {
		t.Errorf("what reached the server was %v", reached)
	}
}

func TestWhatReachesTheServerWithinTheReachOfMetadata(t *testing.T) {
	m := metadataOnly{basePath: "/base", config: Config{Mount: "secret/", Auth: Auth{Method: "approle", Mount: "approle", WrappedSecretIDFile: "wrapped"}}}
	for request, want := range map[string]bool{
		"GET /base/v1/secret/metadata/alice": true, "PUT /base/v1/auth/approle/login": true, "PUT /base/v1/sys/wrapping/unwrap": true,
		"GET /base/v1/auth/token/lookup-self": true, "PUT /base/v1/auth/token/renew-self": true, "PUT /base/v1/sys/wrapping/lookup": true,
		"GET /base/v1/secret/metadata/with%20space": true, "GET /base/v1/secret/metadata/per%25cent": true,
		"GET /v1/secret/metadata/alice": false, "PUT /base/v1/secret/metadata/alice": false, "GET /base/v1/secret/metadata/a%2Fb": false,
		"GET /base/v1/secret/metadata/alice?list=true": false, "GET /base/v1/secret/metadata//alice": false, "GET /base/v1/secret/metadata/./alice": false,
		"PUT /base/v1/auth/approle/role/x/secret-id": false, "DELETE /base/v1/secret/metadata/alice": false, "GET /base/v1/secret/data/alice": false,
	} {
		method, url, _ := strings.Cut(request, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1:1"+url, nil)
		check(t, err)
		if got := m.permits(req); got != want {
			t.Errorf("%s: permitted=%v", request, got)
		}
	}
}

func TestAConfigurationThatCannotWorkIsNamedByItsKey(t *testing.T) {
	good := func() Config {
		return Config{URL: "https://vault.example.org", Auth: Auth{Method: "approle", RoleID: "r", SecretIDFile: "f"}}
	}
	check(t, good().Validate())
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no url":                    {func(c *Config) { c.URL = "" }, "url must be"},
		"a mount that leads up":     {func(c *Config) { c.Mount = "../sys" }, "mount is"},
		"a mount of the root":       {func(c *Config) { c.Mount = "/" }, "mount is"},
		"a namespace of the root":   {func(c *Config) { c.Namespace = "/admin" }, "namespace is"},
		"an auth mount leading up":  {func(c *Config) { c.Auth.Mount = "a/../b" }, "auth.mount is"},
		"no method":                 {func(c *Config) { c.Auth.Method = "" }, "auth.method is missing"},
		"a method nobody knows":     {func(c *Config) { c.Auth.Method = "ldap" }, `auth.method is "ldap": write approle`},
		"no role id":                {func(c *Config) { c.Auth.RoleID = "" }, "auth.role_id is missing"},
		"no secret id":              {func(c *Config) { c.Auth.SecretIDFile = "" }, "auth: set one of secret_id_file"},
		"two secret ids":            {func(c *Config) { c.Auth.WrappedSecretIDFile = "w" }, "auth: set one of secret_id_file"},
		"a key of another method":   {func(c *Config) { c.Auth.PasswordFile = "p" }, "auth.password_file does not go with auth.method approle"},
		"a user with a slash":       {func(c *Config) { c.Auth = Auth{Method: "userpass", Username: "a/../b", PasswordFile: "p"} }, "auth.username is"},
		"a certificate without key": {func(c *Config) { c.Auth = Auth{Method: "cert", CertFile: "c"} }, "auth.key_file is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			config := good()
			c.change(&config)
			if err := config.Validate(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, err := New(config, Everything, nil); err == nil {
				t.Error("a session was made of it")
			}
		})
	}
}

// server is a Vault of logins alone, whose tokens live for an hour.
type server struct {
	calls         []string
	renewed, down bool
	life          int
}

func (f *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.calls = append(f.calls, req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:])
	switch {
	case f.down:
		w.WriteHeader(http.StatusBadGateway)
	case strings.HasSuffix(req.URL.Path, "/renew-self") && !f.renewed:
		w.WriteHeader(http.StatusForbidden)
	default:
		_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{"client_token": "hvs.token", "lease_duration": f.life, "renewable": true}})
	}
}

func TestATokenIsRenewedOrReplacedInTheLastThirdOfItsLife(t *testing.T) {
	for name, c := range map[string]struct {
		after   time.Duration
		renewed bool
		life    int
		down    bool
		calls   []string
		fails   bool
	}{
		"before two thirds nothing is sent":                     {39 * time.Minute, true, 3600, false, nil, false},
		"after two thirds it is renewed":                        {41 * time.Minute, true, 3600, false, []string{"renew-self"}, false},
		"one that is not renewed is replaced":                   {41 * time.Minute, false, 3600, false, []string{"renew-self", "login"}, false},
		"one that is renewed for a short while only, too":       {41 * time.Minute, true, 600, false, []string{"renew-self", "login"}, false},
		"while the server is down the token is used as it is":   {41 * time.Minute, true, 3600, true, []string{"renew-self", "login"}, false},
		"a dead one is replaced":                                {61 * time.Minute, true, 3600, false, []string{"login"}, false},
		"and while the server is down that fails for this time": {61 * time.Minute, true, 3600, true, []string{"login"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := &server{life: 3600}
			hs := httptest.NewServer(f)
			t.Cleanup(hs.Close)
			s, err := New(Config{URL: hs.URL, Auth: Auth{Method: "approle", RoleID: "r", SecretIDFile: file(t, "s")}}, Everything, nil)
			check(t, err)
			now := time.Now()
			s.now = func() time.Time { return now }
			_, err = s.live(t.Context())
			check(t, err)
			f.calls, f.renewed, f.life, f.down = nil, c.renewed, c.life, c.down
			now = now.Add(c.after)
			_, err = s.live(t.Context())
			if c.fails != kms.Retryable(err) || !c.fails && err != nil {
				t.Errorf("got %v", err)
			}
			if !slices.Equal(f.calls, c.calls) {
				t.Errorf("the calls were %v, not %v", f.calls, c.calls)
			}
		})
	}
}

// Where a policy leaves out auth/token/lookup-self, a refusal cannot be told from a dead token: it costs one login, not
// one each time.
func TestATokenThatMayNotLookItselfUpIsReplacedOnce(t *testing.T) {
	logins := 0
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !strings.HasSuffix(req.URL.Path, "/login") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		logins++
		_, _ = w.Write([]byte(`{"auth":{"client_token":"hvs.token` + strings.Repeat("x", logins) + `","lease_duration":3600}}`))
	}))
	t.Cleanup(hs.Close)
	s, err := New(Config{URL: hs.URL, Auth: Auth{Method: "approle", RoleID: "r", SecretIDFile: file(t, "s")}}, Everything, nil)
	check(t, err)
	for range 5 {
		if _, err := s.ReadMetadata(t.Context(), "alice"); !errors.Is(err, kms.ErrForbidden) {
			t.Fatalf("got %v", err)
		}
	}
	if logins != 2 {
		t.Errorf("%d logins", logins)
	}
}

func TestKeepingAliveTellsWhatFailsAndEndsWithItsContext(t *testing.T) {
	f := &server{down: true}
	hs := httptest.NewServer(f)
	t.Cleanup(hs.Close)
	s, err := New(Config{URL: hs.URL, Auth: Auth{Method: "approle", RoleID: "r", SecretIDFile: file(t, "s")}}, Everything, nil)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var told error
	s.KeepAlive(ctx, func(err error) { told = err; cancel() })
	if !errors.Is(told, kms.ErrUnavailable) || ctx.Err() == nil {
		t.Errorf("told was %v", told)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"data":{"cas_required":false,"current_version":2,"custom_metadata":{"public_key.2":"abc="},"versions":{"1":{"deletion_time":"2026-11-25T13:35:19.215729856Z","destroyed":false},"2":{"deletion_time":"","destroyed":true}}}}`))
	f.Add([]byte(`{"data":{"current_version":1,"custom_metadata":null,"versions":{"1":{"deletion_time":"","destroyed":false}}}}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"data":{"current_version":18446744073709551615,"versions":{"18446744073709551615":{}}}}`))
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := parseMetadata(body, now)
		if err != nil {
			if !errors.Is(err, kms.ErrMalformed) || kms.Retryable(err) {
				t.Fatalf("got %v", err)
			}
			return
		}
		if !slices.IsSorted(m.Readable) || len(slices.Compact(slices.Clone(m.Readable))) != len(m.Readable) {
			t.Fatalf("the versions are %v", m.Readable)
		}
		if len(m.Readable) > 0 && (m.Readable[0] == 0 || m.Readable[len(m.Readable)-1] > m.Newest) {
			t.Fatalf("the versions are %v up to %d", m.Readable, m.Newest)
		}
		if current, err := m.Current(); err == nil && current == "0" {
			t.Fatal("version 0 is current")
		}
	})
}
