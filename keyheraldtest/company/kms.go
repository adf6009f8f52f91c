package company

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
	"github.com/keyherald/keyherald/kms/kmsconfig"
)

// system is the company's key-management system.
type system interface {
	// title is what a person reads.
	title() string
	// start starts it with what the server logs in by, and returns the URL at which the server reaches it.
	start(ctx context.Context, c *Company) (serverURL string, err error)
	// server are the keys under `kms` in the server's configuration, in YAML's flow style, beside url.
	server() string
	// rights writes what the server and the devices may do, once the server's configuration is there.
	rights(ctx context.Context, c *Company) error
	// deviceURL is where a user's devices reach it.
	deviceURL(c *Company, localpart string) (string, error)
	// device makes what one account of a user's logs in by, and returns the keys of its configuration beside url.
	device(ctx context.Context, c *Company, localpart, account string) (string, error)
	putKey(ctx context.Context, c *Company, path string, key backupkey.Key) (version string, err error)
}

// systems are those there are, by their type in configurations.
var systems = map[string]system{kmsconfig.Setec: setecSystem{}, kmsconfig.Vault: vaultSystem{}}

func systemNamed(name string) (system, error) {
	if name == "" {
		name = kmsconfig.Setec
	}
	if s, ok := systems[name]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("there is no company with the KMS %q: say setec or vault", name)
}

// KMSTitle is the KMS's name for people.
func (c *Company) KMSTitle() string { return c.kms.title() }

// PutKey makes a key a path's current version in the KMS, as an administrator does, and returns the version.
func (c *Company) PutKey(ctx context.Context, path string, key backupkey.Key) (version string, err error) {
	return c.kms.putKey(ctx, c, path, key)
}

// DeviceKMS gives the URL at which a user's managed devices reach the KMS.
func (c *Company) DeviceKMS(localpart string) (string, error) { return c.kms.deviceURL(c, localpart) }

// setecSystem is setec, where every principal has a URL of its own and its rights from the start.
type setecSystem struct{}

func (setecSystem) title() string { return "setec" }

func (setecSystem) start(ctx context.Context, c *Company) (string, error) {
	var err error
	if c.Setec, err = testsetec.Start(ctx, c.config.Dir); err != nil {
		return "", err
	}
	c.OnClose(c.Setec.Close)
	return c.Setec.Principal("keyherald-server", testsetec.ServerRules("keyherald/*"))
}

func (setecSystem) server() string { return "type: setec" }

func (setecSystem) rights(context.Context, *Company) error { return nil }

func (setecSystem) deviceURL(c *Company, localpart string) (string, error) {
	return c.Setec.Principal(localpart+"-device", testsetec.DeviceRules(KMSPath(localpart)))
}

func (setecSystem) device(context.Context, *Company, string, string) (string, error) {
	return "type: setec", nil
}

func (setecSystem) putKey(ctx context.Context, c *Company, path string, key backupkey.Key) (string, error) {
	return c.Setec.PutKey(ctx, path, key)
}

// vaultSystem is Vault as an enterprise sets it up: AppRoles for the server and for each user's devices, whose secret ids
// come wrapped, and the policies that `keyherald kms policy` prints.
type vaultSystem struct{}

func (vaultSystem) title() string { return "Vault" }

func (vaultSystem) start(ctx context.Context, c *Company) (string, error) {
	var err error
	if c.Vault, err = keyheraldtest.StartVault(ctx, c.config.Dir, false); err != nil {
		return "", err
	}
	c.OnClose(c.Vault.Close)
	if _, err := c.Vault.Call(ctx, http.MethodPost, "sys/auth/approle", map[string]any{"type": "approle"}); err != nil {
		return "", err
	}
	if err := c.appRole(ctx, "keyherald-server", "keyherald-server"); err != nil {
		return "", err
	}
	secretID, err := c.Vault.Call(ctx, http.MethodPost, "auth/approle/role/keyherald-server/secret-id", nil)
	if err != nil {
		return "", err
	}
	return c.Vault.URL, c.Write("vault.secret-id", fmt.Sprint(secretID["secret_id"]))
}

func (c *Company) appRole(ctx context.Context, name, policy string) error {
	_, err := c.Vault.Call(ctx, http.MethodPost, "auth/approle/role/"+name,
		map[string]any{"role_id": name, "token_policies": policy, "token_no_default_policy": true, "token_ttl": "10m"})
	return err
}

func (vaultSystem) server() string {
	return "type: vault, auth: {method: approle, role_id: keyherald-server, secret_id_file: vault.secret-id}"
}

// rights are a policy for the server, and one for all devices, whose entity's name leads each to its own user's key.
func (vaultSystem) rights(ctx context.Context, c *Company) error {
	for _, side := range []string{"server", "device"} {
		policy, err := c.Keyherald(ctx, "kms", "policy", "corporate", "--path", KMSPath("{user}"), "--for", side)
		if err != nil {
			return err
		}
		if _, err := c.Vault.Call(ctx, http.MethodPut, "sys/policies/acl/keyherald-"+side, map[string]string{"policy": policy}); err != nil {
			return err
		}
	}
	return nil
}

func (vaultSystem) deviceURL(c *Company, _ string) (string, error) { return c.Vault.URL, nil }

// device has each account's secret id wrapped in a token that opens once.
func (vaultSystem) device(ctx context.Context, c *Company, localpart, account string) (string, error) {
	role := localpart + "-device"
	if err := c.appRole(ctx, role, "keyherald-device"); err != nil {
		return "", err
	}
	if err := c.entity(ctx, localpart, role); err != nil {
		return "", err
	}
	wrapped, err := c.Vault.CallWith(ctx, http.Header{"X-Vault-Token": {c.Vault.Token}, "X-Vault-Wrap-Ttl": {"5m"}}, http.MethodPost, "auth/approle/role/"+role+"/secret-id", nil)
	if err != nil {
		return "", err
	}
	file := account + ".wrapped-secret-id"
	if err := c.Write(file, fmt.Sprint(wrapped["token"])); err != nil {
		return "", err
	}
	return fmt.Sprintf(`type: vault, auth: {method: approle, role_id: %s, wrapped_secret_id_file: "%s"}`, role, filepath.Join(c.config.Dir, file)), nil
}

// entity has Vault know by a user's name who logs in with a role.
func (c *Company) entity(ctx context.Context, name, role string) error {
	methods, err := c.Vault.Call(ctx, http.MethodGet, "sys/auth", nil)
	if err != nil {
		return err
	}
	method, ok := methods["approle/"].(map[string]any)
	if !ok {
		return fmt.Errorf("no method of Vault's is approle/: %v", methods)
	}
	if _, err := c.Vault.Call(ctx, http.MethodPost, "identity/entity", map[string]any{"name": name}); err != nil {
		return err
	}
	// What was made is told, and what was there already is not.
	entity, err := c.Vault.Call(ctx, http.MethodGet, "identity/entity/name/"+name, nil)
	if err != nil {
		return err
	}
	_, err = c.Vault.Call(ctx, http.MethodPost, "identity/entity-alias", map[string]any{"name": role, "canonical_id": entity["id"], "mount_accessor": method["accessor"]})
	return err
}

func (vaultSystem) putKey(ctx context.Context, c *Company, path string, key backupkey.Key) (string, error) {
	return c.Vault.PutValue(ctx, "secret", path, key.RevealBase64(), key.PublicKey())
}
