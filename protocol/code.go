package protocol

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// Code is a one-time enrollment code: which bot to trust, by the fingerprint of its master key, and 128 random bits
// that the server knows only as a SHA-256. It prints redacted; Reveal is for the one place that shows it to a person.
type Code struct {
	BotUserID    id.UserID
	BotMasterKey id.Ed25519
	random       string
}

const codePrefix = "kh1"

// NewCode makes a code for the bot with this master key.
func NewCode(bot id.UserID, masterKey id.Ed25519) (Code, error) {
	if bot == "" || masterKey == "" {
		return Code{}, errors.New("making an enrollment code: the bot's user id and master key are needed")
	}
	var bits [16]byte
	if _, err := rand.Read(bits[:]); err != nil {
		return Code{}, fmt.Errorf("making an enrollment code: %w", err)
	}
	return Code{BotUserID: bot, BotMasterKey: masterKey, random: base64.RawURLEncoding.EncodeToString(bits[:])}, nil
}

// ParseCode reads the form that Reveal writes: kh1.<user id>.<master key>.<random>, each part unpadded URL-safe
// base64. The error never contains the code.
func ParseCode(s string) (Code, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 4 || parts[0] != codePrefix {
		return Code{}, errors.New("this is not an enrollment code: it has the form kh1.….….…, as `keyherald enroll` prints it")
	}
	user, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || len(user) == 0 || user[0] != '@' || !strings.Contains(string(user), ":") {
		return Code{}, errors.New("the enrollment code is damaged (bot user id): copy it again, whole")
	}
	key, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 32 {
		return Code{}, errors.New("the enrollment code is damaged (master key): copy it again, whole")
	}
	random, err := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil || len(random) != 16 {
		return Code{}, errors.New("the enrollment code is damaged (random part): copy it again, whole")
	}
	return Code{
		BotUserID:    id.UserID(user),
		BotMasterKey: id.Ed25519(base64.RawStdEncoding.EncodeToString(key)),
		random:       parts[3],
	}, nil
}

// ParseMasterKey checks that a text is the public key that a bot is pinned by: 32 bytes in unpadded base64.
func ParseMasterKey(text string) (id.Ed25519, error) {
	if raw, err := base64.RawStdEncoding.DecodeString(text); err != nil || len(raw) != 32 {
		return "", errors.New("it is not the fingerprint of a bot's master key, 43 characters of base64, as `keyherald bot keygen` prints it")
	}
	return id.Ed25519(text), nil
}

// Reveal returns the code for the person who carries it to the device.
func (c Code) Reveal() string {
	key, _ := base64.RawStdEncoding.DecodeString(string(c.BotMasterKey))
	return strings.Join([]string{
		codePrefix,
		base64.RawURLEncoding.EncodeToString([]byte(c.BotUserID)),
		base64.RawURLEncoding.EncodeToString(key),
		c.random,
	}, ".")
}

// RevealRandom returns the part that travels in EnrollRequest.Code.
func (c Code) RevealRandom() string { return c.random }

// Hash is what the server keeps of a code.
func (c Code) Hash() [32]byte { return HashCode(c.random) }

// HashCode is the SHA-256 of a code's random part as it travels.
func HashCode(random string) [32]byte { return sha256.Sum256([]byte(random)) }

// String redacts.
func (c Code) String() string { return codePrefix + ".(redacted)" }

// GoString redacts.
func (c Code) GoString() string { return c.String() }

// Format redacts whatever the verb is: %+v and %x would reach the field otherwise.
func (c Code) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }
