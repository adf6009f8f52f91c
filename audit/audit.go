// Package audit is the vocabulary of the audit log: what an event may tell, its canonical bytes, and the commitment to
// its detail. It is pure; package postgres keeps the events in the transaction of their effect.
//
// An event says who did what to whom, with which outcome; what else is known stands in the detail, which lives apart
// with its salt and is bound to the event by HMAC-SHA256(salt, detail), so that it can be redacted without touching
// the event. The table in vocabulary.go says what an event of each action may have, and Seal refuses everything else;
// docs/audit-events.md is that table for people.
//
// Key material cannot enter by type. Actors, subjects and detail fields are made by the constructors of this package,
// and none of them takes a plain string: what comes from elsewhere enters as one of the named types below, which say
// what it is, and is shown as it came only where it cannot be a key (foreign.go). A public key enters as its fingerprint.
package audit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
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
	Actor    Actor
	Action   Action
	Subject  Subject
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

// Seal gives the event its id and fixes its bytes. It fails for what the vocabulary does not have.
func (e Event) Seal() (Sealed, error) {
	fields, err := e.check()
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing the audit event %q: %w", e.Action, err)
	}
	eventID, err := uuid.NewV7()
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	salt := make([]byte, 32)
	if _, err := rand.Read(salt); err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	detail, err := json.Marshal(fields)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing an audit event: %w", err)
	}
	b := body{
		V: FormatVersion, ID: eventID, Time: e.Time.UnixMilli(), Actor: e.Actor.text, Action: e.Action, Subject: e.Subject.text,
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
