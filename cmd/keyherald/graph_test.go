package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The server can read metadata of a key-management system and never a secret: no package that could is in its binary.
func TestTheServersBinaryHasNoPackageThatReadsASecret(t *testing.T) {
	deps := dependencies(t, ".")
	for _, forbidden := range []string{"kms/secret", "kms/setecsecret", "kms/filesecret", "keyherald/device", "keyherald/backup", "setec/client"} {
		for _, dep := range deps {
			if strings.Contains(dep, forbidden) {
				t.Errorf("the server's binary contains %s", dep)
			}
		}
	}
	// The same look does find them where they belong.
	found := false
	for _, dep := range dependencies(t, "../keyherald-device") {
		found = found || strings.HasSuffix(dep, "kms/setecsecret")
	}
	if !found {
		t.Error("the device's binary has no setecsecret: the test looks for the wrong names")
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
