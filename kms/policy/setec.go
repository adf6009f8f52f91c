package policy

import (
	"encoding/json"
	"strings"
)

type grant struct {
	Source      []string             `json:"src"`
	Destination []string             `json:"dst"`
	App         map[string][]aclRule `json:"app"`
}

// aclRule is setec's acl.Rule, whose * is any characters, also slashes.
type aclRule struct {
	Action []string `json:"action"`
	Secret []string `json:"secret"`
}

// setecCapability is the name of setec's rights in a tailnet's policy file.
const setecCapability = "tailscale.com/cap/secrets"

// SetecServer is the grant of the server's node in the tailnet's policy file.
func SetecServer(place Place) string {
	return encodeGrant("tag:keyherald-server", aclRule{[]string{"info"}, []string{at(place.Path, "*")}})
}

// SetecDevice is the grant of the node of one user's managed device. setec's rules have no place for a user's name, so
// there is one for each.
func SetecDevice(place Place, user string) string {
	path := at(place.Path, user)
	rules := []aclRule{{[]string{"get", "info"}, []string{path, path + ".metadata"}}}
	if place.Write {
		rules[0].Action = []string{"create-version", "get", "info"}
	}
	if keys := place.recovery(user, "*"); keys != nil {
		rules = append(rules, aclRule{[]string{"create-version", "info"}, keys})
		if place.RecoveryRead {
			// The companion, too: it is not there, and without the right to it setec does not say so.
			rules = append(rules, aclRule{[]string{"get"}, append(keys[:len(keys):len(keys)], keys[0]+".metadata")})
		}
	}
	return encodeGrant("tag:keyherald-device-"+user, rules...)
}

func encodeGrant(source string, rules ...aclRule) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	// Nothing of it can fail to be encoded.
	_ = encoder.Encode(grant{[]string{source}, []string{"tag:setec"}, map[string][]aclRule{setecCapability: rules}})
	return b.String()
}
