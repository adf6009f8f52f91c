package audit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Unsealed is the Index of a Record that no checkpoint covers yet.
const Unsealed = -1

// Record is an event as the database keeps it, with its place in the tree. What is nil is not there: Body where the
// event was deleted, Salt and Detail where the detail was redacted, LeafHash where the event is not sealed yet.
type Record struct {
	ID       uuid.UUID
	Index    int64
	LeafHash []byte
	Body     []byte
	Salt     []byte
	Detail   []byte
	// RedactedBy is the event that redacted the detail, uuid.Nil for none.
	RedactedBy uuid.UUID
}

// Fields are the fields of an event's canonical bytes.
type Fields struct {
	Version    int
	ID         uuid.UUID
	Time       time.Time
	Actor      string
	Action     Action
	Subject    string
	Rotation   string
	Outcome    Outcome
	Commitment []byte
}

// ParseBody reads an event's bytes. It checks their form no further: the hash over them does.
func ParseBody(raw []byte) (Fields, error) {
	var b body
	if err := json.Unmarshal(raw, &b); err != nil {
		return Fields{}, fmt.Errorf("reading an audit event: %w", err)
	}
	commitment, err := base64.RawStdEncoding.DecodeString(b.Commitment)
	if err != nil || b.V != FormatVersion {
		return Fields{}, fmt.Errorf("reading the audit event %s: version %d or its commitment is not what this program knows", b.ID, b.V)
	}
	return Fields{Version: b.V, ID: b.ID, Time: time.UnixMilli(b.Time).UTC(), Actor: b.Actor, Action: b.Action, Subject: b.Subject,
		Rotation: b.Rotation, Outcome: b.Outcome, Commitment: commitment}, nil
}
