package demo

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/testsetec"
)

// system is the company's key-management system. What it gives as configuration leads through the taps.
type system interface {
	// start starts it, and the credentials of server and devices.
	start(ctx context.Context, w *World) error
	// rights writes what the credentials may do, once the server's configuration is there.
	rights(ctx context.Context, w *World) error
	// server and device are the keys under `kms` in a configuration, in YAML's flow style.
	server() string
	device(ctx context.Context, w *World, account string) (string, error)
	putKey(ctx context.Context, path string, key backupkey.Key) (version string, err error)
}

// systems are those that the demo knows, by the names in configurations.
var systems = map[string]func() system{"setec": func() system { return &setecSystem{} }, "vault": func() system { return &vaultSystem{} }}

// titles are what a person reads.
var titles = map[string]string{"setec": "setec", "vault": "Vault"}

type setecSystem struct {
	*testsetec.Server
	serverURL, deviceURL string
}

func (k *setecSystem) start(ctx context.Context, w *World) (err error) {
	if k.Server, err = testsetec.Start(ctx, w.config.Dir); err != nil {
		return err
	}
	w.closers = append(w.closers, k.Close)
	serverURL, err := k.Principal("keyherald-server", testsetec.ServerRules("keyherald/*"))
	if err != nil {
		return err
	}
	if k.serverURL, err = w.tap("the KMS", serverURL); err != nil {
		return err
	}
	deviceURL, err := k.Principal("alice-device", testsetec.DeviceRules(kmsPath))
	if err != nil {
		return err
	}
	k.deviceURL, err = w.tapDevice(deviceURL)
	return err
}

// rights are the principals' from the start.
func (k *setecSystem) rights(context.Context, *World) error { return nil }

func (k *setecSystem) server() string { return fmt.Sprintf(`type: setec, url: "%s"`, k.serverURL) }

func (k *setecSystem) device(context.Context, *World, string) (string, error) {
	return fmt.Sprintf(`type: setec, url: "%s"`, k.deviceURL), nil
}

func (k *setecSystem) putKey(ctx context.Context, path string, key backupkey.Key) (string, error) {
	return k.PutKey(ctx, path, key)
}

// vaultSystem is Vault as an enterprise sets it up: AppRoles for the server and for each user's devices, whose secret ids
// come wrapped, and the policies that `keyherald kms policy` prints.
type vaultSystem struct {
	*keyheraldtest.Vault
	serverURL, deviceURL string
}

func (k *vaultSystem) start(ctx context.Context, w *World) (err error) {
	if k.Vault, err = keyheraldtest.StartVault(ctx, w.config.Dir, false); err != nil {
		return err
	}
	w.closers = append(w.closers, k.Close)
	if k.serverURL, err = w.tap("the KMS", k.URL); err != nil {
		return err
	}
	if k.deviceURL, err = w.tapDevice(k.URL); err != nil {
		return err
	}
	for _, call := range []struct {
		endpoint string
		body     any
	}{
		{"sys/auth/approle", map[string]any{"type": "approle"}},
		{"auth/approle/role/keyherald-server", map[string]any{"role_id": "keyherald-server", "token_policies": "keyherald-server", "token_no_default_policy": true, "token_ttl": "10m"}},
		{"auth/approle/role/alice-device", map[string]any{"role_id": "alice-device", "token_policies": "keyherald-device", "token_no_default_policy": true, "token_ttl": "10m"}},
	} {
		if _, err := k.Call(ctx, http.MethodPost, call.endpoint, call.body); err != nil {
			return err
		}
	}
	secretID, err := k.Call(ctx, http.MethodPost, "auth/approle/role/keyherald-server/secret-id", nil)
	if err != nil {
		return err
	}
	return w.write("vault.secret-id", fmt.Sprint(secretID["secret_id"]))
}

// rights are a policy for the server, and one for all devices, whose entity's name leads each to its own user's key.
func (k *vaultSystem) rights(ctx context.Context, w *World) error {
	for _, side := range []string{"server", "device"} {
		policy, err := w.keyherald(ctx, "kms", "policy", "corporate", "--path", "keyherald/{user}/backup-key", "--for", side)
		if err != nil {
			return err
		}
		if _, err := k.Call(ctx, http.MethodPut, "sys/policies/acl/keyherald-"+side, map[string]string{"policy": policy}); err != nil {
			return err
		}
	}
	methods, err := k.Call(ctx, http.MethodGet, "sys/auth", nil)
	if err != nil {
		return err
	}
	method, ok := methods["approle/"].(map[string]any)
	if !ok {
		return fmt.Errorf("no method of Vault's is approle/: %v", methods)
	}
	entity, err := k.Call(ctx, http.MethodPost, "identity/entity", map[string]any{"name": "alice"})
	if err != nil {
		return err
	}
	_, err = k.Call(ctx, http.MethodPost, "identity/entity-alias", map[string]any{"name": "alice-device", "canonical_id": entity["id"], "mount_accessor": method["accessor"]})
	return err
}

func (k *vaultSystem) server() string {
	return fmt.Sprintf(`type: vault, url: "%s", auth: {method: approle, role_id: keyherald-server, secret_id_file: vault.secret-id}`, k.serverURL)
}

// device has each account's secret id wrapped in a token that opens once.
func (k *vaultSystem) device(ctx context.Context, w *World, account string) (string, error) {
	wrapped, err := k.CallWith(ctx, http.Header{"X-Vault-Token": {k.Token}, "X-Vault-Wrap-Ttl": {"5m"}}, http.MethodPost, "auth/approle/role/alice-device/secret-id", nil)
	if err != nil {
		return "", err
	}
	if err := w.write(account+".wrapped-secret-id", fmt.Sprint(wrapped["token"])); err != nil {
		return "", err
	}
	return fmt.Sprintf(`type: vault, url: "%s", auth: {method: approle, role_id: alice-device, wrapped_secret_id_file: ../%s.wrapped-secret-id}`, k.deviceURL, account), nil
}

func (k *vaultSystem) putKey(ctx context.Context, path string, key backupkey.Key) (string, error) {
	return k.PutValue(ctx, "secret", path, key.RevealBase64(), key.PublicKey())
}

// tapDevice leads the devices' connections to the KMS through a tap of their own.
func (w *World) tapDevice(target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	if w.deviceTap, err = keyheraldtest.StartTap(u.Host); err != nil {
		return "", err
	}
	w.closers = append(w.closers, w.deviceTap.Close)
	return w.deviceTap.Through(target)
}
