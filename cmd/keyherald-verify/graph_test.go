package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// One mistake must not hide itself: nothing that writes the log is in the program that verifies it. And it can have no
// network or database where it has no package for one.
func TestTheVerifierSharesNothingWithWhatWritesTheLog(t *testing.T) {
	const module = "github.com/keyherald/keyherald/"
	for _, system := range []string{"linux", "darwin", "windows"} {
		deps := dependencies(t, system, ".")
		for _, dep := range deps {
			if strings.HasPrefix(dep, module) && dep != module+"verify" && dep != module+"cmd/keyherald-verify" {
				t.Errorf("%s: the verifier contains %s", system, dep)
			}
			if dep == "net" || strings.HasPrefix(dep, "net/") || strings.HasPrefix(dep, "database/") || dep == "os/exec" || dep == "golang.org/x/mod/sumdb/tlog" {
				t.Errorf("%s: the verifier contains %s", system, dep)
			}
		}
	}
	// The same look does find them where they belong.
	server := dependencies(t, "linux", "../keyherald")
	for _, found := range []string{module + "audit", module + "postgres", "net", "database/sql"} {
		if !slices.Contains(server, found) {
			t.Errorf("the server's binary has no %s: the test looks for the wrong names", found)
		}
	}
}

func dependencies(t *testing.T, system, target string) []string {
	t.Helper()
	list := exec.Command("go", "list", "-tags", "goolm", "-deps", target)
	list.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}
