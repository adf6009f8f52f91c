package checkpoint

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// publicOf derives the verifier key of a signer key, PRIVATE+KEY+<name>+<hash>+<base64 of algorithm and seed>, which
// package note writes and reads but does not turn into its public half.
func publicOf(signerKey string) (string, error) {
	// The last part may have a + of its own.
	parts := strings.SplitN(signerKey, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if len(parts) < 5 || err != nil || len(raw) != 1+ed25519.SeedSize {
		return "", errors.New("it is no signer key with Ed25519")
	}
	public := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(parts[2], public)
}
