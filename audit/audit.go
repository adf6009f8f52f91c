// Package audit is the vocabulary of the audit log: what an event is, its canonical bytes, and the commitment to its
// detail. It is pure; package postgres keeps the events in the transaction of their effect.
//
// An event says who did what to whom, with which outcome; what else is known stands in the detail, which lives apart
// with its salt and is bound to the event by HMAC-SHA256(salt, detail), so that it can be redacted without touching
// the event. Key material cannot enter: detail fields are made by the constructors below, and there is none for bytes
// or free text of foreign origin; a public key enters as its fingerprint.
package audit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// FormatVersion is the version of the canonical bytes.
const FormatVersion = 1

// Outcome is how an action ended.
type Outcome string

// The outcomes. Reported marks what only a device says of itself.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused"
	Reported Outcome = "reported_by_device"
	Failed   Outcome = "failed"
)

// Event is one line of the log, before it is sealed.
type Event struct {
	Time     time.Time
	Actor    string
	Action   Action
	Subject  string
	Rotation uuid.UUID
	Outcome  Outcome
	Detail   Detail
}

// Sealed is an event as it is kept: the canonical bytes, and apart from them the detail and its salt.
type Sealed struct {
	ID     uuid.UUID
	Body   []byte
	Salt   []byte
	Detail []byte
}

// body is the canonical form: the fields in this order, no spaces, as encoding/json writes a struct.
type body struct {
	V          int       `json:"v"`
	ID         uuid.UUID `json:"id"`
	Time       int64     `json:"time"`
	Actor      string    `json:"actor"`
	Action     Action    `json:"action"`
	Subject    string    `json:"subject"`
	Rotation   string    `json:"rotation,omitempty"`
	Outcome    Outcome   `json:"outcome"`
	Commitment string    `json:"commitment"`
}

// Seal gives the event its id and fixes its bytes.
func (e Event) Seal() (Sealed, error) {
	if e.Actor == "" || e.Action == "" || e.Outcome == "" {
		return Sealed{}, fmt.Errorf("sealing an audit event: actor, action or outcome is missing in %q", e.Action)
	}
	eventID, err := uuid.NewV7()
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	salt := make([]byte, 32)
	if _, err := rand.Read(salt); err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	detail, err := json.Marshal(e.Detail.fields())
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	b := body{
		V: FormatVersion, ID: eventID, Time: e.Time.UnixMilli(), Actor: e.Actor, Action: e.Action, Subject: e.Subject,
		Outcome: e.Outcome, Commitment: base64.RawStdEncoding.EncodeToString(Commit(salt, detail)),
	}
	if e.Rotation != uuid.Nil {
		b.Rotation = e.Rotation.String()
	}
	encoded, err := json.Marshal(b)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	return Sealed{ID: eventID, Body: encoded, Salt: salt, Detail: detail}, nil
}

// Commit is the commitment to a detail: HMAC-SHA256 with the salt as key.
func Commit(salt, detail []byte) []byte {
	mac := hmac.New(sha256.New, salt)
	mac.Write(detail)
	return mac.Sum(nil)
}

// Field is one fact of a detail.
type Field struct {
	key   string
	value any
}

// Detail is what is known beside the event's own fields.
type Detail []Field

func (d Detail) fields() map[string]any {
	fields := make(map[string]any, len(d))
	for _, f := range d {
		fields[f.key] = f.value
	}
	return fields
}

// ID is an identifier: of a user, device, notification, rotation, path or version.
func ID[T ~string](key string, value T) Field { return Field{key, string(value)} }

// Word is one word of a documented vocabulary.
func Word[T ~string](key string, value T) Field { return Field{key, string(value)} }

// Number is a count or a version number.
func Number[T ~int | ~int64](key string, value T) Field { return Field{key, int64(value)} }

// Flag is a yes or no.
func Flag(key string, value bool) Field { return Field{key, value} }

// Words is a list of words.
func Words[T ~string](key string, values []T) Field {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return Field{key, list}
}

// Counts is a count by word.
func Counts[T ~string](key string, counts map[T]int) Field { return Field{key, counts} }

// Hash is a SHA-256, in base64.
func Hash(key string, sum [32]byte) Field {
	return Field{key, base64.StdEncoding.EncodeToString(sum[:])}
}

// Fingerprint names a public key by the first half of its SHA-256, in hex.
func Fingerprint[T ~string](key string, publicKey T) Field {
	sum := sha256.Sum256([]byte(publicKey))
	return Field{key, hex.EncodeToString(sum[:16])}
}
