package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The server can read metadata of a key-management system and never a secret: no package that could is in its binary.
func TestTheServersBinaryHasNoPackageThatReadsASecret(t *testing.T) {
	deps := dependencies(t, ".")
	for _, forbidden := range []string{"kms/secret", "kms/setecsecret", "kms/filesecret", "kms/vaultsecret", "kms/awssecret", "kms/internal/numbered",
		"keyherald/device", "keyherald/backup", "setec/client"} {
		for _, dep := range deps {
			if strings.Contains(dep, forbidden) {
				t.Errorf("the server's binary contains %s", dep)
			}
		}
	}
	// The same look does find them where they belong.
	device := dependencies(t, "../keyherald-device")
	for _, name := range []string{"kms/secret", "kms/setecsecret", "kms/filesecret", "kms/vaultsecret", "kms/awssecret", "kms/internal/numbered"} {
		if !slices.ContainsFunc(device, func(dep string) bool { return strings.HasSuffix(dep, name) }) {
			t.Errorf("the device's binary has no %s: the test looks for the wrong name", name)
		}
	}
}

func dependencies(t *testing.T, target string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-tags", "goolm", "-deps", target).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}
