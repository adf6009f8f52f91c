package policy

import (
	"fmt"
	"strings"
)

// VaultIdentity stands for the name of the caller's entity in a policy of Vault or OpenBao: one policy for all devices.
const VaultIdentity = "{{identity.entity.name}}"

// VaultServer is the policy of the server's token.
func VaultServer(mount string, place Place) string {
	var b strings.Builder
	b.WriteString("# The Keyherald server: versions and public keys of all users' keys, and never a key.\n")
	pattern := everyone(place.Path)
	rule(&b, mount+"/metadata/"+pattern, "read")
	b.WriteString("# What no policy permits is refused already. This refuses it even where another policy of the token permits it.\n")
	rule(&b, mount+"/data/"+pattern, "deny")
	var denied string
	for _, path := range place.recovery(placeholder, "+") {
		// A pattern that ends in * has what is below in it.
		if all := everyone(path); all != denied {
			denied = all
			rule(&b, mount+"/data/"+all, "deny")
		}
	}
	ownToken(&b)
	return b.String()
}

// VaultDevice is the policy of a managed device's token. user is a name, or VaultIdentity.
func VaultDevice(mount string, place Place, user string) string {
	var b strings.Builder
	b.WriteString("# A managed device: its own user's key, and nothing else.\n")
	path := at(place.Path, user)
	if place.Write {
		rule(&b, mount+"/data/"+path, "create", "read", "update")
		rule(&b, mount+"/metadata/"+path, "create", "patch", "read", "update")
	} else {
		rule(&b, mount+"/data/"+path, "read")
		rule(&b, mount+"/metadata/"+path, "read")
	}
	says, capabilities := "written once, never read", []string{"create"}
	if place.RecoveryRead {
		says, capabilities = "written once, and read to find out whether it was", []string{"create", "read"}
	}
	for i, path := range place.recovery(user, "+") {
		what := "The recovery key of an identity that the device makes"
		if i > 0 {
			what = "A recovery key that replaces another, under its id"
		}
		b.WriteString("# " + what + ": " + says + ".\n")
		rule(&b, mount+"/data/"+path, capabilities...)
		rule(&b, mount+"/metadata/"+path, "read")
	}
	ownToken(&b)
	return b.String()
}

// everyone is a path as a pattern for all users: + is one whole name. Where a user's name is part of a longer one, the
// pattern ends before it, as * stands at the end only.
func everyone(path string) string {
	names := strings.Split(path, "/")
	for i, name := range names {
		if name == placeholder {
			names[i] = "+"
		} else if before, _, ok := strings.Cut(name, placeholder); ok {
			return strings.Join(append(names[:i:i], before+"*"), "/")
		}
	}
	return strings.Join(names, "/")
}

func ownToken(b *strings.Builder) {
	b.WriteString("# Its own token: whether it is valid, a longer life, and what it may do.\n")
	rule(b, "auth/token/lookup-self", "read")
	rule(b, "auth/token/renew-self", "update")
	rule(b, "sys/capabilities-self", "update")
}

func rule(b *strings.Builder, path string, capabilities ...string) {
	fmt.Fprintf(b, "path %q {\n  capabilities = [\"%s\"]\n}\n", path, strings.Join(capabilities, `", "`))
}
