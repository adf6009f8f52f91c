package keyheraldtest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/crypto/utils"
)

// Search looks for private keys in whatever encoding they may have leaked.
type Search struct{ needles map[string][]byte }

// NewSearch makes a search for keys of 32 bytes by their names. Each is looked for raw, in hexadecimal, in base64 and
// base64url at every alignment, in base58 as a Matrix recovery key with and without spaces, and in the base64 of each
// of these texts (JSON carries []byte so).
func NewSearch(keys map[string][]byte) *Search {
	s := &Search{map[string][]byte{}}
	for name, key := range keys {
		recovery := utils.EncodeBase58RecoveryKey(key)
		texts := map[string]string{
			"raw": string(key), "hex": hex.EncodeToString(key), "HEX": strings.ToUpper(hex.EncodeToString(key)),
			"base58": recovery, "base58 without spaces": strings.ReplaceAll(recovery, " ", ""),
		}
		for form, text := range aligned(key) {
			texts[form] = text
		}
		for form, text := range texts {
			s.needles[name+" in "+form] = []byte(text)
			if form == "raw" {
				continue
			}
			for outer, nested := range aligned([]byte(text)) {
				s.needles[name+" in "+outer+" of "+form] = []byte(nested)
			}
		}
	}
	return s
}

// aligned encodes at the three offsets a value may have in a longer base64 text, without the characters that depend on
// its neighbours; padding is among those.
func aligned(value []byte) map[string]string {
	forms := map[string]string{}
	for offset := range 3 {
		padded := append(make([]byte, offset), value...)
		skip := (offset*8 + 5) / 6
		keep := len(padded) * 8 / 6
		suffix := string(rune('0' + offset))
		forms["base64+"+suffix] = base64.RawStdEncoding.EncodeToString(padded)[skip:keep]
		forms["base64url+"+suffix] = base64.RawURLEncoding.EncodeToString(padded)[skip:keep]
	}
	return forms
}

// In names what was found, sorted; empty is clean.
func (s *Search) In(haystack []byte) []string {
	var found []string
	for _, form := range slices.Sorted(maps.Keys(s.needles)) {
		if bytes.Contains(haystack, s.needles[form]) {
			found = append(found, form)
		}
	}
	return found
}
