//go:build kms

package demo

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// The main job with Vault: a server that sees metadata alone, devices by wrapped secret ids, and the policies that the
// program prints. And the preflight says what is wrong with rights that are too many, or too few.
func TestTheDemoHoldsWithVault(t *testing.T) {
	var out bytes.Buffer
	held := false
	_, err := Run(t.Context(), Config{Programs: programs(t), Dir: t.TempDir(), Homeserver: keyheraldtest.StartDendrite, KMS: "vault", Out: &out, Hold: func(ctx context.Context, w *World) error {
		held = true
		rightsOnPurpose(ctx, t, w)
		return nil
	}})
	if err != nil || !held {
		t.Fatalf("%v\n%s", err, out.String())
	}
	lastLineIsOK(t, out.String())
}

func rightsOnPurpose(ctx context.Context, t *testing.T, w *World) {
	call := func(method, endpoint string, body any) map[string]any {
		t.Helper()
		answer, err := w.Vault.Call(ctx, method, endpoint, body)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	config, err := os.ReadFile(filepath.Join(w.config.Dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ policies, want string }{
		"a device's rights":                    {"keyherald-device-alice", "CAN READ SECRETS"},
		"all rights under the metadata's deny": {"everything,keyherald-server", "these credentials are refused"},
		"all rights":                           {"everything", "CAN READ SECRETS"},
		"none":                                 {"nothing", "FAIL  KMS corporate: reading the Vault metadata"},
	} {
		device, err := w.Keyherald(ctx, "kms", "policy", "corporate", "--path", "keyherald/{user}/backup-key", "--for", "device", "--user", "alice")
		if err != nil {
			t.Fatal(err)
		}
		call(http.MethodPut, "sys/policies/acl/keyherald-device-alice", map[string]string{"policy": device})
		call(http.MethodPut, "sys/policies/acl/everything", map[string]string{"policy": `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`})
		call(http.MethodPut, "sys/policies/acl/nothing", map[string]string{"policy": `path "auth/token/lookup-self" { capabilities = ["read"] }`})
		call(http.MethodPost, "auth/approle/role/other", map[string]any{"role_id": "other", "token_policies": c.policies, "token_no_default_policy": true})
		secretID := call(http.MethodPost, "auth/approle/role/other/secret-id", nil)["secret_id"].(string)
		if err := w.Write("other.secret-id", secretID); err != nil {
			t.Fatal(err)
		}
		changed := strings.NewReplacer("role_id: keyherald-server", "role_id: other", "vault.secret-id", "other.secret-id").Replace(string(config))
		if changed == string(config) {
			t.Fatal("the configuration has no AppRole")
		}
		if err := w.Write("other.yaml", changed); err != nil {
			t.Fatal(err)
		}
		out, err := w.Keyherald(ctx, "check", "-c", "other.yaml")
		if !strings.Contains(out, c.want) || (err == nil) != strings.Contains(c.want, "refused") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if strings.Contains(out, secretID) {
			t.Errorf("%s: the secret id is shown", name)
		}
	}
}
