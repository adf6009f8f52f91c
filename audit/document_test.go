package audit

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/audit-events.md")

const documentIntro = `# What the audit log tells

Every event of the log has one of these actions. The server seals no other, and none with an actor, subject, outcome or
detail field that its action does not have here. docs/audit-log.md has the format of an event; docs/auditors.md is the guide.

This page is generated from the code (` + "`go test -tags goolm ./audit -update`" + `).

- **Who acts** looks like this: %s.
  Admins, operators and auditors use the same command line and the same API, which know the account or the caller and not
  what its owner is employed for.
- **Outcomes**: ` + "`accepted`, `refused`, `failed`, and `reported_by_device`" + ` for what only the device says. A refused event always has
  ` + "`refusal`" + ` in its detail. An admin's action has its name also where it was refused.
- **Identifiers** of foreign origin (a notification's id, a KMS path and version, a device's id, a name of the
  configuration) are shown as they came if they are printable, no longer than 64 to 512 bytes by kind, and cannot be a
  key. Else they are shown as ` + "`sha256:`" + ` and the first half of their SHA-256 in hex: where a text, or a part of it, is 32 bytes in
  base64 or hex, or a Matrix recovery key. So a KMS that names a secret by its value does not put it into the log. A user
  id that is none is shown so too, and the id of a dehydrated device, which is a public key.
- **Public keys** stand in the log as the first half of the SHA-256, in hex, of their unpadded base64. The keys that checkpoints
  are verified with stand there whole.
- **Words** are those that are listed. ` + "`unrecognized`" + ` stands for a word of a device's that is not.
- **Text that an admin wrote** is a reason of at most 500 bytes on one line. One that contains what could be a key, an
  enrollment code or a signing secret is refused.

What has no event: reading by plain SQL; what the command line refuses before it asks the server (a flag or id that is
none); commands and calls that only read rotations, devices and users; what the API refuses before
it asks the server (a body that cannot be read, too many calls); files that ` + "`keyherald bot keygen`, `registration` and `audit keygen`" + ` write
(` + "`server.started` and `audit.signing_keys_changed`" + ` name the keys among them when they are used); a notification that is answered 503,
which its sender sends again; a message or report that came twice; a lease that is lost, but by the one that takes it;
calls of the homeserver's, which cause nothing; checkpoints that a sink does not take, which metrics and the server's own
log tell.
`

// docs/audit-events.md is the vocabulary; `go test -tags goolm ./audit -update` writes it.
func TestTheDocumentOfEventsIsWhatTheCodeSays(t *testing.T) {
	var b strings.Builder
	var looks []string
	for _, role := range []Role{Notifier, Reconciler, Managed, Sender, Admin, Ruler, Relay, Signer, Anybody} {
		who := string(role)
		switch role {
		case Admin:
			who = "admin, operator, auditor"
		case Ruler:
			who = "a rule of the policy"
		case Sender:
			who = "sender (of whose device nothing is proved)"
		}
		looks = append(looks, fmt.Sprintf("%s `%s`", who, role.looks()))
	}
	fmt.Fprintf(&b, documentIntro, strings.Join(looks, ", "))
	group := ""
	for _, e := range vocabulary {
		if noun, _, _ := strings.Cut(string(e.action), "."); noun != group {
			group = noun
			fmt.Fprintf(&b, "\n## %s\n", group)
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", e.action, e.tells)
		fmt.Fprintf(&b, "Who acts: %s. About: %s. Of a rotation: %s. Outcomes: %s.\n", list(e.who, "%s"), list(e.about, "%s"), e.rotation, list(e.outcomes, "`%s`"))
		if len(e.fields) > 0 {
			b.WriteString("\n| detail | is | means |\n| --- | --- | --- |\n")
		}
		for _, f := range e.fields {
			means := f.means
			if len(f.words) > 0 {
				means += ": " + list(f.words, "`%s`")
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, f.kind, means)
		}
	}
	const path = "../docs/audit-events.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != b.String() {
		t.Errorf("docs/audit-events.md is not what the code says (%v): run `go test -tags goolm ./audit -update`", err)
	}
}

func list[T ~string](all []T, format string) string {
	texts := make([]string, len(all))
	for i, one := range all {
		texts[i] = fmt.Sprintf(format, string(one))
	}
	return strings.Join(slices.Compact(texts), ", ")
}
