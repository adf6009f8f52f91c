package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestThePoliciesOfEachKMSArePrinted(t *testing.T) {
	example, err := os.ReadFile("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	systems := `kms:
  keys: {type: vault, url: "https://vault.example.org", mount: company/keys, check_path: keyherald/alice, auth: {method: token, token_file: t}}
  cloud: {type: aws, region: us-gov-west-1, check_path: keyherald/alice}
  here: {type: file, dir: kms, check_path: keyherald/alice}
`
	if err := os.WriteFile(path, []byte(strings.Replace(string(example), "kms:\n", systems, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, args, want, not string
	}{
		{"the server's in Vault", "keys --for server", `path "company/keys/metadata/keyherald/+/backup-key"`, "identity"},
		{"a template in Vault", "keys --for device", `path "company/keys/data/keyherald/{{identity.entity.name}}/backup-key"`, "+"},
		{"one user's in Vault", "keys --user alice", `path "company/keys/data/keyherald/alice/backup-key"`, "identity"},
		{"a writing device's in Vault", "keys --for device --write", `["create", "read", "update"]`, "deny"},
		{"AWS in its partition", "cloud --account 111122223333", "arn:aws-us-gov:secretsmanager:us-gov-west-1:111122223333:secret:keyherald/${aws:PrincipalTag/matrix_user}/backup-key-??????", "{user}"},
		{"setec's for one user", "corporate --user alice", `"keyherald/alice/backup-key.metadata"`, "{user}"},
		{"the recovery key's path", "keys --for device --recovery-path keyherald/{user}/recovery-key", "recovery-key", "update\", \"read"},
		{"nobody reads it where that is not asked for", "keys --for device --recovery-path keyherald/{user}/recovery-key", `["create"]`, `["create", "read"]`},
		{"a device that reads it", "keys --for device --recovery-path keyherald/{user}/recovery-key --recovery-read", `["create", "read"]`, `["create"]`},
		{"a device that replaces it", "keys --for device --recovery-path keyherald/{user}/recovery-key --recovery-replace", `{{identity.entity.name}}/recovery-key/+"`, `["create", "read"]`},
		{"the server never reads it", "keys --for server --recovery-path keyherald/{user}/recovery-key --recovery-read --recovery-replace", `path "company/keys/data/keyherald/+/recovery-key/+"`, "create"},
		{"AWS's", "cloud --for device --recovery-path keyherald/{user}/recovery-key --recovery-read --recovery-replace", "recovery-key/*-??????", "BatchGetSecretValue"},
		{"setec's", "corporate --user alice --for device --recovery-path keyherald/{user}/recovery-key --recovery-read", `"keyherald/alice/recovery-key.metadata"`, "recovery-key/*"},
	} {
		out, err := kmsPolicy(path, test.args)
		if err != nil || !strings.Contains(out, test.want) || strings.Contains(out, test.not) {
			t.Errorf("%s: %v\n%s", test.name, err, out)
		}
	}
	for _, test := range []struct{ name, args, want string }{
		{"a KMS that is not there", "elsewhere", "there are cloud, corporate, here, keys"},
		{"setec without a user", "corporate", "say --user alice"},
		{"a directory", "here", "for development"},
		{"a side of all", "--for server", "--for is server or device, of one KMS"},
		{"a side that is none", "keys --for both", "--for is server or device"},
		{"a user that is a pattern", "keys --user *", "means something else in a policy"},
		{"recovery keys that are nowhere", "keys --recovery-read", "name the path where these are"},
		{"recovery keys above the keys", "keys --recovery-path keyherald/{user} --recovery-replace", "keep these at a path of their own"},
		{"a path without a user", "keys --path keyherald/alice", "must have {user} in it once"},
	} {
		if out, err := kmsPolicy(path, test.args); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v\n%s", test.name, err, out)
		}
	}
}

func kmsPolicy(config, args string) (string, error) {
	cmd := newCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	words := []string{"kms", "policy", "-c", config}
	if !strings.Contains(args, "--path") {
		words = append(words, "--path", "keyherald/{user}/backup-key")
	}
	cmd.SetArgs(append(words, strings.Fields(args)...))
	err := cmd.Execute()
	return out.String(), err
}
