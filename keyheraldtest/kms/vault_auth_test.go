//go:build kms

package kms_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/policy"
	"github.com/keyherald/keyherald/kms/vaultmeta"
	"github.com/keyherald/keyherald/kms/vaultsecret"
)

var alices = policy.Place{Path: "keyherald/{user}"}

// reads fails the test unless the configuration's login reads Alice's key, which is version 1.
func reads(t *testing.T, config vaultsecret.Config) *vaultsecret.Client {
	t.Helper()
	client, err := vaultsecret.New(config, nil)
	check(t, err)
	value, err := client.Fetch(t.Context(), "keyherald/alice", "")
	check(t, err)
	check(t, value.Verify())
	return client
}

// withKey is an engine that has Alice's key, and the policy of her device.
func withKey(t *testing.T) engine {
	t.Helper()
	e := newEngine(t, vault)
	key, err := backupkey.Generate()
	check(t, err)
	e.put(t, "keyherald/alice", key.RevealBase64(), key.PublicKey())
	e.call(t, http.MethodPut, "sys/policies/acl/"+e.mount, map[string]string{"policy": policy.VaultDevice(e.mount, alices, "alice")})
	return e
}

func (e engine) method(t *testing.T, kind string) string {
	t.Helper()
	mount := e.mount + "-" + kind
	e.call(t, http.MethodPost, "sys/auth/"+mount, map[string]any{"type": kind})
	return mount
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(path, []byte(content+"\n"), 0o600))
	return path
}

func TestEveryMethodLogsIn(t *testing.T) {
	t.Run("userpass", func(t *testing.T) {
		e := withKey(t)
		config := e.config
		config.Auth.Method, config.Auth.Mount = "userpass", e.method(t, "userpass")
		config.Auth.Username, config.Auth.PasswordFile = "alice-device", file(t, "correct horse battery staple")
		e.call(t, http.MethodPost, "auth/"+config.Auth.Mount+"/users/alice-device", map[string]any{"password": "correct horse battery staple", "token_policies": e.mount})
		reads(t, config)
		config.Auth.PasswordFile = file(t, "another")
		refused(t, config, "logging in by userpass")
	})

	t.Run("a TLS certificate, also one that was renewed", func(t *testing.T) {
		e := withKey(t)
		config := e.config
		config.Auth.Method, config.Auth.Mount, config.Auth.Role = "cert", e.method(t, "cert"), "devices"
		certificate, key, forVault := certificate(t)
		config.Auth.CertFile, config.Auth.KeyFile = certificate, key
		e.call(t, http.MethodPost, "auth/"+config.Auth.Mount+"/certs/devices", map[string]any{"certificate": forVault, "token_policies": e.mount})
		client := reads(t, config)

		renewed, renewedKey, forVault := certificateIn(t, filepath.Dir(certificate))
		if renewed != certificate || renewedKey != key {
			t.Fatal("the renewed certificate is in other files")
		}
		refused(t, config, "logging in by cert")
		e.call(t, http.MethodPost, "auth/"+config.Auth.Mount+"/certs/devices", map[string]any{"certificate": forVault, "token_policies": e.mount})
		reads(t, config)
		e.call(t, http.MethodPost, "sys/leases/revoke-prefix/auth/"+config.Auth.Mount+"/login", map[string]any{"sync": true})
		if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
			t.Errorf("the client did not show the renewed certificate: %v", err)
		}
	})

	// The plugin for Kubernetes is not in this build of Vault: its login is asked as that of JWTs is, and what is proved
	// is the request.
	for _, method := range []string{"jwt", "kubernetes"} {
		t.Run(method+", with a token file that is replaced", func(t *testing.T) {
			e := withKey(t)
			config := e.config
			config.Auth.Method, config.Auth.Mount, config.Auth.Role = method, e.method(t, "jwt"), "devices"
			sign, public := signer(t)
			e.call(t, http.MethodPost, "auth/"+config.Auth.Mount+"/config", map[string]any{"jwt_validation_pubkeys": []string{public}, "bound_issuer": "https://issuer.example.org"})
			e.call(t, http.MethodPost, "auth/"+config.Auth.Mount+"/role/devices", map[string]any{"role_type": "jwt", "bound_audiences": []string{"vault"}, "user_claim": "sub",
				"bound_subject": "system:serviceaccount:matrix:alice", "token_policies": e.mount, "token_ttl": "1h"})
			config.Auth.JWTFile = file(t, sign("system:serviceaccount:matrix:alice", -time.Hour))
			refused(t, config, "logging in by "+method)
			client, err := vaultsecret.New(config, nil)
			check(t, err)
			check(t, os.WriteFile(config.Auth.JWTFile, []byte(sign("system:serviceaccount:matrix:alice", time.Hour)), 0o600))
			if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
				t.Fatalf("the replaced file was not read: %v", err)
			}
			check(t, os.WriteFile(config.Auth.JWTFile, []byte(sign("system:serviceaccount:matrix:mallory", time.Hour)), 0o600))
			refused(t, config, "logging in by "+method)
		})
	}

	t.Run("a token file that is replaced when its token is dead", func(t *testing.T) {
		e := withKey(t)
		token := func() string {
			return e.call(t, http.MethodPost, "auth/token/create-orphan", map[string]any{"policies": []string{e.mount}, "no_default_policy": true, "period": "1h"})["client_token"].(string)
		}
		config, first := e.config, token()
		config.Auth.Method, config.Auth.TokenFile = "token", file(t, first)
		client := reads(t, config)
		e.call(t, http.MethodPost, "auth/token/revoke", map[string]any{"token": first})
		if _, err := client.Current(t.Context(), "keyherald/alice"); !errors.Is(err, kms.ErrForbidden) || !strings.Contains(err.Error(), "write a new one") {
			t.Fatalf("got %v with a dead token", err)
		}
		check(t, os.WriteFile(config.Auth.TokenFile, []byte(token()), 0o600))
		if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
			t.Fatalf("the new token was not taken: %v", err)
		}
	})
}

// refused fails the test unless a login fails for good, is named, and shows nothing.
func refused(t *testing.T, config vaultsecret.Config, doing string) {
	t.Helper()
	client, err := vaultsecret.New(config, nil)
	check(t, err)
	_, err = client.Current(t.Context(), "keyherald/alice")
	if !errors.Is(err, kms.ErrForbidden) || kms.Retryable(err) || !strings.Contains(err.Error(), doing) {
		t.Errorf("got %v, which must be a lasting ErrForbidden of %q", err, doing)
	}
	for _, name := range []string{config.Auth.PasswordFile, config.Auth.JWTFile, config.Auth.SecretIDFile, config.Auth.WrappedSecretIDFile, config.Auth.TokenFile} {
		if secret, readErr := os.ReadFile(name); readErr == nil && err != nil && strings.Contains(err.Error(), strings.TrimSpace(string(secret))) {
			t.Error("the error shows what was logged in with")
		}
	}
}

func certificate(t *testing.T) (certFile, keyFile, certificate string) {
	t.Helper()
	return certificateIn(t, t.TempDir())
}

func certificateIn(t *testing.T, dir string) (certFile, keyFile, certificate string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "alice-device"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	made, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made}))
	certFile, keyFile = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	check(t, os.WriteFile(certFile, []byte(certificate), 0o600))
	check(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), 0o600))
	return certFile, keyFile, certificate
}

// signer signs JWTs for a subject that expire after a while.
func signer(t *testing.T) (sign func(subject string, life time.Duration) string, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	check(t, err)
	encoded, err := x509.MarshalPKIXPublicKey(key.Public())
	check(t, err)
	return func(subject string, life time.Duration) string {
		text, err := jwt.Signed(by).Claims(jwt.Claims{Issuer: "https://issuer.example.org", Subject: subject, Audience: jwt.Audience{"vault"},
			IssuedAt: jwt.NewNumericDate(time.Now().Add(-2 * time.Hour)), Expiry: jwt.NewNumericDate(time.Now().Add(life))}).Serialize()
		check(t, err)
		return text
	}, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: encoded}))
}

// wrapped is a role whose secret ids come wrapped, each in a token that opens once, and the policy of Alice's device.
func (e engine) wrapped(t *testing.T, settings map[string]any) (config vaultsecret.Config, wrap func(endpoint string) string) {
	t.Helper()
	config = e.role(t, "wrapped", policy.VaultDevice(e.mount, alices, "alice"))
	if settings != nil {
		e.call(t, http.MethodPost, "auth/"+e.mount+"/role/wrapped", settings)
	}
	wrap = func(endpoint string) string {
		header := http.Header{"X-Vault-Token": {e.server.Token}, "X-Vault-Wrap-Ttl": {"60s"}}
		answer, err := e.server.CallWith(t.Context(), header, http.MethodPost, endpoint, map[string]any{})
		check(t, err)
		return answer["token"].(string)
	}
	config.Auth.SecretIDFile, config.Auth.WrappedSecretIDFile = "", file(t, wrap("auth/"+e.mount+"/role/wrapped/secret-id"))
	return config, wrap
}

func TestAWrappedSecretIDOpensOnceAndServesLaterLogins(t *testing.T) {
	e := withKey(t)
	config, wrap := e.wrapped(t, nil)
	client := reads(t, config)
	// The token dies, and the secret id that was unwrapped logs in again.
	e.call(t, http.MethodPost, "sys/leases/revoke-prefix/auth/"+e.mount+"/login", map[string]any{"sync": true})
	if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
		t.Fatalf("after its token was revoked: %v", err)
	}
	// Another process with the same file finds the wrapping token spent, and says what that may mean.
	refused(t, config, "somebody else has the secret id")
	for name, other := range map[string]string{"of something else": "auth/token/create", "of another method's": "sys/wrapping/wrap"} {
		check(t, os.WriteFile(config.Auth.WrappedSecretIDFile, []byte(wrap(other)), 0o600))
		t.Run("a wrapping token "+name+" is not opened", func(t *testing.T) { refused(t, config, "somebody may have exchanged it") })
	}
	check(t, os.WriteFile(config.Auth.WrappedSecretIDFile, []byte(wrap("auth/"+e.mount+"/role/wrapped/secret-id")), 0o600))
	reads(t, config)
}

// kept is the store of a program that starts again.
type kept struct{ secretID string }

func (k *kept) Load(context.Context) (string, error) { return k.secretID, nil }

func (k *kept) Save(_ context.Context, secretID string) error {
	k.secretID = secretID
	return nil
}

func TestASecretIDThatWasUnwrappedIsKeptAndReplacedByANewerOne(t *testing.T) {
	e := withKey(t)
	config, wrap := e.wrapped(t, nil)
	keep := &kept{}
	start := func() error {
		t.Helper()
		client, err := vaultsecret.New(config, keep)
		check(t, err)
		_, err = client.Current(t.Context(), "keyherald/alice")
		return err
	}
	check(t, start())
	first := keep.secretID
	if err := start(); err != nil || first == "" || keep.secretID != first {
		t.Fatalf("a program that started again: %v", err)
	}
	// Its secret id is destroyed, which is told, and it stays kept until there is another one.
	e.call(t, http.MethodPost, "auth/"+e.mount+"/role/wrapped/secret-id/destroy", map[string]any{"secret_id": first})
	if err := start(); !errors.Is(err, kms.ErrForbidden) || !strings.Contains(err.Error(), "unwrapped before") || strings.Contains(err.Error(), first) || keep.secretID != first {
		t.Fatalf("got %v with a destroyed secret id", err)
	}
	check(t, os.WriteFile(config.Auth.WrappedSecretIDFile, []byte(wrap("auth/"+e.mount+"/role/wrapped/secret-id")), 0o600))
	if err := start(); err != nil || keep.secretID == first {
		t.Fatalf("a newer one was not taken: %v", err)
	}
}

func TestASecretIDOfOneUseIsEnoughWhileItsTokenIsKeptAlive(t *testing.T) {
	e := withKey(t)
	config, _ := e.wrapped(t, map[string]any{"secret_id_num_uses": 1, "token_ttl": "5s", "token_max_ttl": "1h"})
	client, err := vaultsecret.New(config, nil)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var failures []error
	var running sync.WaitGroup
	running.Go(func() { client.KeepAlive(ctx, func(err error) { failures = append(failures, err) }) })
	// Longer than two lives of a token that is not renewed.
	time.Sleep(11 * time.Second)
	if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
		t.Errorf("the token was not kept alive: %v", err)
	}
	cancel()
	running.Wait()
	if len(failures) > 0 {
		t.Errorf("keeping alive failed: %v", failures)
	}
	// Unused it dies, and there is no way back but a new secret id.
	time.Sleep(6 * time.Second)
	if _, err := client.Current(t.Context(), "keyherald/alice"); !errors.Is(err, kms.ErrForbidden) {
		t.Errorf("got %v with a spent secret id", err)
	}
}

func TestATokenIsReplacedBeforeItsLongestLifeEnds(t *testing.T) {
	e := withKey(t)
	config := e.role(t, "short", policy.VaultDevice(e.mount, alices, "alice"))
	e.call(t, http.MethodPost, "auth/"+e.mount+"/role/short", map[string]any{"token_ttl": "2s", "token_max_ttl": "3s"})
	client := reads(t, config)
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
			t.Fatal(err)
		}
	}
	accessors := e.call(t, "LIST", "auth/token/accessors", nil)["keys"].([]any)
	if len(accessors) > 200 {
		t.Errorf("%d tokens live: each call logs in", len(accessors))
	}
}

func TestARevokedTokenIsReplacedOnceAndAForbiddenPathCostsNoLogin(t *testing.T) {
	e := withKey(t)
	config := e.role(t, "device", policy.VaultDevice(e.mount, alices, "alice"))
	logins := func() int {
		t.Helper()
		answer, err := e.server.Call(t.Context(), "LIST", "sys/leases/lookup/auth/"+e.mount+"/login", nil)
		if err != nil {
			return 0
		}
		return len(answer["keys"].([]any))
	}
	client := reads(t, config)
	for range 5 {
		if _, err := client.Current(t.Context(), "keyherald/bob"); !errors.Is(err, kms.ErrForbidden) {
			t.Fatalf("got %v for another user's key", err)
		}
	}
	if n := logins(); n != 1 {
		t.Errorf("%d logins after refusals, and one was needed", n)
	}
	e.call(t, http.MethodPost, "sys/leases/revoke-prefix/auth/"+e.mount+"/login", map[string]any{"sync": true})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if _, err := client.Current(t.Context(), "keyherald/alice"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := logins(); n != 1 {
		t.Errorf("%d logins after the token was revoked, and one was needed", n)
	}
}

func TestRootCanReadAndThePreflightSaysSo(t *testing.T) {
	e := withKey(t)
	config := e.config
	config.Auth.Method, config.Auth.TokenFile = "token", file(t, e.server.Token)
	client, err := vaultmeta.New(config)
	check(t, err)
	if readable, err := client.CanReadSecret(t.Context(), "keyherald/alice"); err != nil || !readable {
		t.Errorf("readable=%v, %v", readable, err)
	}
}
