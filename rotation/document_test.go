package rotation

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/attention.md")

// docs/attention.md is the table of causes; `go test -tags goolm ./rotation -update` writes it.
func TestTheDocumentOfCausesIsWhatTheCodeSays(t *testing.T) {
	var b strings.Builder
	b.WriteString("# What needs attention\n\nA rotation that cannot go on by itself says `needs_attention` with one of these causes, in `keyherald rotations list`\n" +
		"and `show`, in `keyherald_rotations_needing_attention`, and in the audit log. The device keeps looking, with growing\npauses: once the cause is mended the rotation goes on, and `keyherald rotations retry` makes it look at once.\n\n" +
		"This page is generated from the code (`go test -tags goolm ./rotation -update`).\n\n| cause | who acts | what to do |\n| --- | --- | --- |\n")
	for _, a := range Attentions() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", a.Cause, a.Who, a.NextAction)
	}
	const path = "../docs/attention.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != b.String() {
		t.Errorf("docs/attention.md is not what the code says (%v): run `go test -tags goolm ./rotation -update`", err)
	}
}
