package kms_test

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/kms"
)

func TestVersionsAreOrderedWhereBothAreNumbers(t *testing.T) {
	for _, c := range []struct {
		a, b           string
		newer, ordered bool
	}{
		{"10", "9", true, true}, {"9", "10", false, true}, {"3", "3", false, true}, {"18446744073709551615", "1", true, true},
		{"v2", "v1", false, false}, {"", "1", false, false}, {"-1", "1", false, false}, {"18446744073709551616", "1", false, false},
	} {
		if newer, ordered := kms.NewerVersion(c.a, c.b); newer != c.newer || ordered != c.ordered {
			t.Errorf("%q after %q: newer=%v ordered=%v", c.a, c.b, newer, ordered)
		}
	}
}

// The server's clients stand on nothing that can read a secret.
func TestMetadataClientsDoNotStandOnSecretClients(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-tags", "goolm", "-deps", "./setecmeta", "./filemeta", "./vaultmeta", "./awsmeta", "./kmsconfig", "./policy").Output()
	if err != nil {
		t.Fatal(err)
	}
	forbidden := regexp.MustCompile(`/kms/(.*)secret$|/backup/|setec/client/setec$|/backup$|/kms/internal/numbered$`)
	if !strings.Contains(string(out), "setec/types/api") {
		t.Fatal("the list of packages is not the right one")
	}
	for line := range strings.Lines(string(out)) {
		if forbidden.MatchString(strings.TrimSpace(line)) {
			t.Errorf("the metadata clients import %s", line)
		}
	}
}
