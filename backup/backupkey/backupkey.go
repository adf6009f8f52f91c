// Package backupkey is the private key of a key backup, in a type that never prints. It is pure.
package backupkey

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/crypto/utils"
)

// Key is a Curve25519 private key of m.megolm_backup.v1.curve25519-aes-sha2. Whatever prints it prints "(redacted)".
//
// The private key is behind a function because fmt cannot call the methods of a Key in somebody's unexported field: it
// prints such a field by reflection, and follows a pointer into the bytes where the verb is wrong for it. Nothing that
// walks values gets into a closure.
type Key struct{ private func() *ecdh.PrivateKey }

// ErrNotAKey means that a value is no 32-byte key. No error of this package contains the value.
var ErrNotAKey = errors.New("not a key: 32 bytes are needed, as base64 (padded or not) or as a Matrix recovery key")

// Parse reads 32 bytes in base64, padded or not, or a Matrix recovery key (client-server API, "Recovery key").
func Parse(value string) (Key, error) {
	value = strings.TrimSpace(value)
	if raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "=")); err == nil && len(raw) == 32 {
		return FromBytes(raw)
	}
	if raw := utils.DecodeBase58RecoveryKey(strings.Join(strings.Fields(value), "")); len(raw) == 32 {
		return FromBytes(raw)
	}
	return Key{}, ErrNotAKey
}

// FromBytes takes 32 raw bytes.
func FromBytes(raw []byte) (Key, error) {
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return Key{}, ErrNotAKey
	}
	return wrap(private), nil
}

// Generate makes a key.
func Generate() (Key, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("making a key: %w", err)
	}
	return wrap(private), nil
}

func wrap(private *ecdh.PrivateKey) Key {
	return Key{func() *ecdh.PrivateKey { return private }}
}

// IsZero reports the zero Key.
func (k Key) IsZero() bool { return k.private == nil }

// Reveal returns the 32 bytes; nil for the zero Key.
func (k Key) Reveal() []byte {
	if k.private == nil {
		return nil
	}
	return k.private().Bytes()
}

// RevealBase64 returns the key as m.secret.send carries it: unpadded base64.
func (k Key) RevealBase64() string { return base64.RawStdEncoding.EncodeToString(k.Reveal()) }

// Private returns the key for the Diffie-Hellman of a backup; nil for the zero Key.
func (k Key) Private() *ecdh.PrivateKey {
	if k.private == nil {
		return nil
	}
	return k.private()
}

// PublicKey is the unpadded base64 of the public key, as auth_data.public_key has it.
func (k Key) PublicKey() string {
	if k.private == nil {
		return ""
	}
	return base64.RawStdEncoding.EncodeToString(k.private().PublicKey().Bytes())
}

// Fits reports whether a public key, padded or not, is this key's.
func (k Key) Fits(publicKey string) bool {
	return k.private != nil && strings.TrimRight(publicKey, "=") == k.PublicKey()
}

// String redacts.
func (k Key) String() string { return "(redacted)" }

// GoString redacts.
func (k Key) GoString() string { return "(redacted)" }

// Format redacts whatever the verb is.
func (k Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(redacted)")) }

// MarshalJSON redacts.
func (k Key) MarshalJSON() ([]byte, error) { return []byte(`"(redacted)"`), nil }
