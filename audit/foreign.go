package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
	"maunium.net/go/mautrix/crypto/utils"
)

// Identifiers of foreign origin. Whoever converts to one of these types says where the text is from; a test lists every
// place that does.
type (
	SourceName      string // a notification source, as the configuration names it
	NotificationID  string // as its sender chose it
	CredentialID    string // the id of a source's signing key or other credential, never the credential
	KMSName         string // as the configuration names it
	KMSPath         string // of a secret in its KMS
	KMSVersion      string // of a secret in its KMS
	ReaderName      string // who read a secret, as its KMS names him
	StorageKeyID    string // of a key of the user's secret storage: its id, never the key
	SinkName        string // a sink of checkpoints, as the configuration names it
	LogName         string // a log, or the origin of its checkpoints
	AccountName     string // an account of the machine that a command ran on
	IssuerName      string // who vouches for a caller of the API, as the configuration names it
	PersonName      string // a caller of the API, as his issuer names him
	TokenName       string // an API token, as whoever made it named it, never the token
	RouteName       string // what was called, as the API's document names it
	HostName        string
	SoftwareVersion string
	Filter          string // what somebody who read the log asked for: an actor, or a pattern of actions
	RuleName        string // of the company's policy
	PolicyHash      string // the first half of the SHA-256 of a policy's document, in hex
	UserPattern     string // of user ids, as an admin wrote it
	ProofName       string // what a device shows instead of a code, as the configuration names it
	PublicKey       string // base64; it enters as its fingerprint alone
)

// maxIdentifier bounds what is shown as it came, in bytes.
const maxIdentifier = 255

// shown is an identifier as the log shows it: as it came, or its fingerprint where it is longer than most bytes, is no
// printable text, or could be a key: a KMS that is configured wrongly may name a secret by its value.
func shown(text string, most int) string {
	if len(text) > most || !printable(text) || looksLikeKey(text) {
		return fingerprint(text)
	}
	return text
}

// fingerprint is the first half of a SHA-256, in hex.
func fingerprint(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:16])
}

// fingerprintOfKey is the same key's with padding and without.
func fingerprintOfKey(publicKey string) string {
	return strings.TrimPrefix(fingerprint(strings.TrimRight(publicKey, "=")), "sha256:")
}

func printable(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// looksLikeKey reports whether a text is, or has as one of its parts, 32 bytes in base64 (of either alphabet, padded or
// not) or hex, or a Matrix recovery key with or without its spaces. A key in base64 that has a / in it is found where it
// stands alone or after another separator, not inside of a path.
func looksLikeKey(text string) bool {
	words := strings.FieldsFunc(text, func(r rune) bool { return !inBase64(r) || strings.ContainsRune("+/-_", r) })
	for first := range words {
		joined := ""
		for _, word := range words[first:] {
			if joined += word; len(joined) > 64 {
				break
			}
			if len(joined) >= 44 && utils.DecodeBase58RecoveryKey(joined) != nil {
				return true
			}
		}
	}
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return !inBase64(r) }) {
		if is32Bytes(part) || slices.ContainsFunc(strings.Split(part, "/"), is32Bytes) ||
			slices.ContainsFunc(strings.FieldsFunc(part, func(r rune) bool { return strings.ContainsRune("/+-_", r) }), is32Bytes) {
			return true
		}
	}
	return false
}

// inBase64 knows both alphabets; padding separates.
func inBase64(r rune) bool {
	return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("+/-_", r)
}

func is32Bytes(text string) bool {
	var raw []byte
	switch len(text) {
	case 43:
		if raw, _ = base64.RawStdEncoding.DecodeString(text); len(raw) != 32 {
			raw, _ = base64.RawURLEncoding.DecodeString(text)
		}
	case 64:
		raw, _ = hex.DecodeString(text)
	}
	return len(raw) == 32
}

// Reason is what an admin wrote: the one free text in the log.
type Reason struct{ text string }

// maxReason bounds a reason, in bytes.
const maxReason = 500

// Errors of NewReason. None contains the text.
var (
	ErrNoReason      = errors.New("a reason is needed: it stands in the audit log")
	ErrUnusualReason = fmt.Errorf("the reason cannot stand in the audit log: write up to %d bytes of plain text on one line", maxReason)
	ErrSecretReason  = errors.New("the reason contains what could be a key, a token or an enrollment code: the audit log keeps it for good, so write it without")
)

// NewReason takes 1 to 500 bytes of printable text, and nothing that could be a key, a token or an enrollment code.
func NewReason(text string) (Reason, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return Reason{}, ErrNoReason
	case len(text) > maxReason || !printable(text):
		return Reason{}, ErrUnusualReason
	case looksLikeKey(text):
		return Reason{}, ErrSecretReason
	}
	for _, mark := range []string{"kh1.", "kht1.", "whsec_", "PRIVATE KEY", "PRIVATE+KEY", "AGE-SECRET-KEY"} {
		if strings.Contains(strings.ToUpper(text), strings.ToUpper(mark)) {
			return Reason{}, ErrSecretReason
		}
	}
	return Reason{text}, nil
}

// WhyNoReason is the word for an error of NewReason.
func WhyNoReason(err error) Refusal {
	if errors.Is(err, ErrNoReason) {
		return RefusedNoReason
	}
	return RefusedReason
}

// VerifierKey is a public key that checkpoints are verified with, as C2SP signed-note writes it: it stands in the log
// whole, so that a log can name its own keys.
type VerifierKey struct{ text string }

// ParseVerifierKey takes a verifier key, and refuses a signer key.
func ParseVerifierKey(text string) (VerifierKey, error) {
	if _, err := note.NewVerifier(text); err != nil {
		return VerifierKey{}, errors.New("this is no verifier key (<name>+<hash>+<key>)")
	}
	return VerifierKey{text}, nil
}
