//go:build kms

package kms_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/kmstest"
	"github.com/keyherald/keyherald/kms/policy"
	"github.com/keyherald/keyherald/kms/vaultmeta"
	"github.com/keyherald/keyherald/kms/vaultsecret"
)

// vault is one server for all tests; each has an engine of its own.
var vault *keyheraldtest.Vault

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "keyherald-kms-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		vault, err = keyheraldtest.StartVault(context.Background(), dir, true)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := vault.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var engines atomic.Int32

// engine is a KV v2 engine at a mount of its own, with one AppRole for each policy.
type engine struct {
	server *keyheraldtest.Vault
	mount  string
	config vaultmeta.Config
}

func newEngine(t *testing.T, server *keyheraldtest.Vault) engine {
	t.Helper()
	e := engine{server: server, mount: fmt.Sprintf("kv%d", engines.Add(1))}
	e.call(t, http.MethodPost, "sys/mounts/"+e.mount, map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	e.call(t, http.MethodPost, "sys/auth/"+e.mount, map[string]any{"type": "approle"})
	e.config = vaultmeta.Config{URL: server.URL, CAFile: server.CAFile, Mount: e.mount, Auth: vaultmeta.Config{}.Auth}
	return e
}

func (e engine) call(t *testing.T, method, endpoint string, body any) map[string]any {
	t.Helper()
	answer, err := e.server.Call(t.Context(), method, endpoint, body)
	check(t, err)
	return answer
}

// role makes an AppRole with one policy, or none, and returns the configuration that logs in by it.
func (e engine) role(t *testing.T, name, rules string) vaultmeta.Config {
	t.Helper()
	role := map[string]any{"token_policies": []string{}, "token_no_default_policy": true}
	if rules != "" {
		e.call(t, http.MethodPut, "sys/policies/acl/"+e.mount+"-"+name, map[string]string{"policy": rules})
		role["token_policies"] = []string{e.mount + "-" + name}
	}
	e.call(t, http.MethodPost, "auth/"+e.mount+"/role/"+name, role)
	config := e.config
	config.Auth.Method, config.Auth.Mount = "approle", e.mount
	config.Auth.RoleID = e.call(t, http.MethodGet, "auth/"+e.mount+"/role/"+name+"/role-id", nil)["role_id"].(string)
	config.Auth.SecretIDFile = filepath.Join(t.TempDir(), "secret-id")
	check(t, os.WriteFile(config.Auth.SecretIDFile, []byte(e.secretID(t, name)+"\n"), 0o600))
	return config
}

func (e engine) secretID(t *testing.T, role string) string {
	t.Helper()
	return e.call(t, http.MethodPost, "auth/"+e.mount+"/role/"+role+"/secret-id", nil)["secret_id"].(string)
}

// put writes as an administrator does who follows docs/kms.md: the public key first.
func (e engine) put(t *testing.T, path, value, public string) string {
	t.Helper()
	version, err := e.server.PutValue(t.Context(), e.mount, path, value, public)
	check(t, err)
	return version
}

// The rights are those that `keyherald kms policy` prints.
func TestVaultConforms(t *testing.T) {
	plain, err := keyheraldtest.StartVault(t.Context(), t.TempDir(), false)
	check(t, err)
	t.Cleanup(func() { check(t, plain.Close()) })
	kmstest.Run(t, kmstest.Traits{HasPublicKey: true, Absent: "99"}, func(t *testing.T) kmstest.KMS {
		e := newEngine(t, plain)
		var seen func() []byte
		e.config.URL, seen = kmstest.Record(t, plain.URL)
		place := policy.Place{Path: "keyherald/{user}"}
		reading := strings.Join([]string{policy.VaultDevice(e.mount, place, "alice"), policy.VaultDevice(e.mount, place, "nobody"),
			policy.VaultDevice(e.mount, place, "later"), policy.VaultDevice(e.mount, place, "bob")}, "\n")
		place.Write = true
		server := e.role(t, "server", policy.VaultServer(e.mount, place))
		reader := e.role(t, "reader", reading)
		writer := e.role(t, "writer", policy.VaultDevice(e.mount, place, "alice")+policy.VaultDevice(e.mount, place, "nobody")+policy.VaultDevice(e.mount, place, "bob"))
		stranger := e.role(t, "stranger", `path "sys/capabilities-self" { capabilities = ["update"] }`)
		meta := func(config vaultmeta.Config) *vaultmeta.Client {
			client, err := vaultmeta.New(config)
			check(t, err)
			return client
		}
		secrets := func(config vaultsecret.Config) *vaultsecret.Client {
			client, err := vaultsecret.New(config, nil)
			check(t, err)
			return client
		}
		return kmstest.KMS{Metadata: meta(server), Privileged: meta(reader), Secrets: secrets(writer), ReadOnly: secrets(reader),
			Stranger: meta(stranger), StrangerSecrets: secrets(stranger), Put: e.put, Traffic: seen}
	})
}

// A version that was deleted or destroyed is not there, for either client; what is restored is.
func TestADeletedVersionIsNotThere(t *testing.T) {
	e := newEngine(t, vault)
	metadata, err := vaultmeta.New(e.role(t, "server", policy.VaultServer(e.mount, alices)))
	check(t, err)
	writing := alices
	writing.Write = true
	secrets, err := vaultsecret.New(e.role(t, "device", policy.VaultDevice(e.mount, writing, "alice")), nil)
	check(t, err)
	first, err := backupkey.Generate()
	check(t, err)
	const path = "keyherald/alice"
	e.put(t, path, first.RevealBase64(), first.PublicKey())
	e.put(t, path, "second", "")
	gone := func(why string) {
		t.Helper()
		_, described := metadata.Current(t.Context(), path)
		_, current := secrets.Current(t.Context(), path)
		_, fetched := secrets.Fetch(t.Context(), path, "")
		_, version := secrets.Fetch(t.Context(), path, "2")
		for _, err := range []error{described, current, fetched, version} {
			if !errors.Is(err, kms.ErrNotFound) || kms.Retryable(err) {
				t.Errorf("%s: got %v, which must be a lasting ErrNotFound", why, err)
			}
		}
		if versions, err := secrets.Versions(t.Context(), path); err != nil || len(versions) != 1 || versions[0] != "1" {
			t.Errorf("%s: the versions are %v, %v", why, versions, err)
		}
		if value, err := secrets.Fetch(t.Context(), path, "1"); err != nil || value.Verify() != nil {
			t.Errorf("%s: the earlier version: %v", why, err)
		}
	}
	e.call(t, http.MethodPost, e.mount+"/delete/"+path, map[string]any{"versions": []int{2}})
	gone("deleted")
	e.call(t, http.MethodPost, e.mount+"/undelete/"+path, map[string]any{"versions": []int{2}})
	if current, err := secrets.Current(t.Context(), path); err != nil || current != "2" {
		t.Errorf("restored: the current version is %q, %v", current, err)
	}
	e.call(t, http.MethodPost, e.mount+"/destroy/"+path, map[string]any{"versions": []int{2}})
	gone("destroyed")
	// A new key comes after it all the same, where none is current.
	key, err := backupkey.Generate()
	check(t, err)
	if version, err := secrets.Write(t.Context(), path, "", key); err != nil || version != "3" {
		t.Fatalf("written as version %q, %v", version, err)
	}
	if described, err := metadata.Current(t.Context(), path); err != nil || described.Version != "3" || described.PublicKey != key.PublicKey() {
		t.Errorf("the metadata is %+v, %v", described, err)
	}
}

func TestOtherPeoplesMetadataAndKeysOfVersionsThatAreReadableStay(t *testing.T) {
	e := newEngine(t, vault)
	writing := alices
	writing.Write = true
	secrets, err := vaultsecret.New(e.role(t, "device", policy.VaultDevice(e.mount, writing, "alice")), nil)
	check(t, err)
	const path = "keyherald/alice"
	e.call(t, http.MethodPost, e.mount+"/metadata/"+path, map[string]any{"max_versions": 3, "custom_metadata": map[string]string{"owner": "the matrix team", "public_key.99": "announced"}})
	after := ""
	for range 5 {
		key, err := backupkey.Generate()
		check(t, err)
		after, err = secrets.Write(t.Context(), path, after, key)
		check(t, err)
	}
	metadata := e.call(t, http.MethodGet, e.mount+"/metadata/"+path, nil)
	custom := metadata["custom_metadata"].(map[string]any)
	// The versions 3 to 5 are kept; the public key of version 2 went with the next write's or stays until then.
	for _, key := range []string{"owner", "public_key.99", "public_key.3", "public_key.4", "public_key.5"} {
		if custom[key] == nil {
			t.Errorf("%s is gone: %v", key, custom)
		}
	}
	if custom["public_key.1"] != nil || metadata["max_versions"].(float64) != 3 {
		t.Errorf("the metadata is %v", metadata)
	}
}

func TestAPathIsTheSamePathToVaultWhateverIsInIt(t *testing.T) {
	e := newEngine(t, vault)
	config := e.role(t, "admin", `path "`+e.mount+`/*" { capabilities = ["create", "read", "update", "patch"] }
path "sys/capabilities-self" { capabilities = ["update"] }`)
	metadata, err := vaultmeta.New(config)
	check(t, err)
	secrets, err := vaultsecret.New(config, nil)
	check(t, err)
	for _, path := range []string{"with space/key", "ümläut/key", "per%cent/key", "per%2fcent/key", "question?mark/key", "hash#sign/key", "plus+sign/key", "semi;colon/key", "...three/key"} {
		t.Run(path, func(t *testing.T) {
			key, err := backupkey.Generate()
			check(t, err)
			_, err = secrets.Write(t.Context(), path, "", key)
			if err != nil {
				t.Fatal(err)
			}
			value, err := secrets.Fetch(t.Context(), path, "")
			check(t, err)
			described, err := metadata.Current(t.Context(), path)
			check(t, err)
			if !value.Key.Fits(key.PublicKey()) || described.PublicKey != key.PublicKey() || described.Version != "1" {
				t.Errorf("another secret was reached: %+v", described)
			}
		})
	}
}

func TestASealedVaultIsUnavailable(t *testing.T) {
	sealed, err := keyheraldtest.StartVault(t.Context(), t.TempDir(), false)
	check(t, err)
	t.Cleanup(func() { check(t, sealed.Close()) })
	e := newEngine(t, sealed)
	config := e.role(t, "server", policy.VaultServer(e.mount, alices))
	metadata, err := vaultmeta.New(config)
	check(t, err)
	if _, err := metadata.Current(t.Context(), "keyherald/alice"); !errors.Is(err, kms.ErrNotFound) {
		t.Fatalf("got %v before it was sealed", err)
	}
	e.call(t, http.MethodPut, "sys/seal", nil)
	fresh, err := vaultmeta.New(config)
	check(t, err)
	for _, client := range []*vaultmeta.Client{metadata, fresh} {
		if _, err := client.Current(t.Context(), "keyherald/alice"); !kms.Retryable(err) || !strings.Contains(err.Error(), "sealed") {
			t.Errorf("got %v from a sealed Vault", err)
		}
	}
}

// One policy for all devices: whose entity is named alice reaches Alice's key, and nobody else's.
func TestThePolicyThatIsATemplateReachesTheCallersOwnKeyAlone(t *testing.T) {
	e := newEngine(t, vault)
	place := policy.Place{Path: "keyherald/{user}/backup-key", RecoveryPath: "keyherald/{user}/recovery-key", Write: true}
	config := e.role(t, "device", policy.VaultDevice(e.mount, place, policy.VaultIdentity))
	accessor := e.call(t, http.MethodGet, "sys/auth", nil)[e.mount+"/"].(map[string]any)["accessor"]
	name := "alice-" + e.mount
	entity := e.call(t, http.MethodPost, "identity/entity", map[string]any{"name": name})["id"]
	e.call(t, http.MethodPost, "identity/entity-alias", map[string]any{"name": config.Auth.RoleID, "canonical_id": entity, "mount_accessor": accessor})
	secrets, err := vaultsecret.New(config, nil)
	check(t, err)
	key, err := backupkey.Generate()
	check(t, err)
	own, others := "keyherald/"+name+"/backup-key", "keyherald/bob/backup-key"
	_, err = secrets.Write(t.Context(), own, "", key)
	check(t, err)
	value, err := secrets.Fetch(t.Context(), own, "")
	check(t, err)
	check(t, value.Verify())
	e.put(t, others, key.RevealBase64(), key.PublicKey())
	_, fetched := secrets.Fetch(t.Context(), others, "")
	_, current := secrets.Current(t.Context(), others)
	_, written := secrets.Write(t.Context(), others, "1", key)
	created := secrets.Create(t.Context(), "keyherald/bob/recovery-key", "value")
	for _, err := range []error{fetched, current, written, created} {
		if !errors.Is(err, kms.ErrForbidden) {
			t.Errorf("got %v for another user's", err)
		}
	}
	// The recovery key is created once, and not read.
	recovery := "keyherald/" + name + "/recovery-key"
	check(t, secrets.Create(t.Context(), recovery, key.RevealBase64()))
	if err := secrets.Create(t.Context(), recovery, "another"); !errors.Is(err, kms.ErrExists) {
		t.Errorf("got %v for one that is there", err)
	}
	if _, err := secrets.Fetch(t.Context(), recovery, ""); !errors.Is(err, kms.ErrForbidden) {
		t.Errorf("the recovery key was read: %v", err)
	}
	if err := secrets.Create(t.Context(), recovery+"/ID", key.RevealBase64()); !errors.Is(err, kms.ErrForbidden) {
		t.Errorf("got %v below it", err)
	}
	// Where devices replace recovery keys and may read them, each finds out what it put there, and nothing of others.
	place.RecoveryRead, place.RecoveryReplace = true, true
	config = e.role(t, "replacing", policy.VaultDevice(e.mount, place, name))
	secrets, err = vaultsecret.New(config, nil)
	check(t, err)
	check(t, secrets.Create(t.Context(), recovery+"/ID", key.RevealBase64()))
	for _, path := range []string{recovery, recovery + "/ID"} {
		if kept, err := secrets.Fetch(t.Context(), path, ""); err != nil || !kept.Key.Fits(key.PublicKey()) {
			t.Errorf("%s cannot be read: %v", path, err)
		}
		if err := secrets.Create(t.Context(), path, "another"); !errors.Is(err, kms.ErrExists) {
			t.Errorf("got %v for %s, which is there", err, path)
		}
	}
	if _, err := secrets.Fetch(t.Context(), "keyherald/bob/recovery-key/ID", ""); !errors.Is(err, kms.ErrForbidden) {
		t.Errorf("got %v for another user's", err)
	}
	server, err := vaultmeta.New(e.role(t, "server", policy.VaultServer(e.mount, place)))
	check(t, err)
	if described, err := server.Current(t.Context(), own); err != nil || described.PublicKey != key.PublicKey() {
		t.Errorf("the server sees %+v, %v", described, err)
	}
	for _, path := range []string{own, others, recovery, recovery + "/ID"} {
		if readable, err := server.CanReadSecret(t.Context(), path); err != nil || readable {
			t.Errorf("the server and %s: readable=%v, %v", path, readable, err)
		}
	}
}
