package audit

import (
	"encoding/base64"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Name is the name of a detail field. A constant is one; a text of unknown origin is not.
type Name string

// Field is one fact of a detail.
type Field struct {
	name  Name
	kind  kind
	value any
	// words is the vocabulary of a word, or of each word of a list.
	words string
}

// Detail is what is known beside the event's own fields. A name stands in it once.
type Detail []Field

// kind is what a field holds, as docs/audit-events.md names it.
type kind string

const (
	aNumber      kind = "number"
	aTime        kind = "time, Unix ms"
	aFlag        kind = "yes or no"
	anIdentifier kind = "identifier"
	identifiers  kind = "identifiers"
	aWord        kind = "word"
	someWords    kind = "words"
	aRoot        kind = "root hash, base64"
	aFingerprint kind = "fingerprint of a public key"
	publicKeys   kind = "public keys"
	aText        kind = "text that an admin wrote"
)

// Identifier names something: ours by type, or what others name things by.
type Identifier interface {
	uuid.UUID | id.UserID | id.DeviceID | id.RoomID | id.KeyBackupVersion | SourceName | NotificationID | CredentialID | KMSName | KMSPath |
		KMSVersion | ReaderName | StorageKeyID | SinkName | LogName | HostName | SoftwareVersion | Filter | RuleName | PolicyHash |
		campaign.Hash | UserPattern | ProofName | RouteName
}

// Vocabulary are the types whose words are documented. A word that is not in the table of its field enters as
// `unrecognized`: a device of another version may use others, and what a device writes is not ours.
type Vocabulary interface {
	Refusal | Problem | Message | NoticeAbout | Command | Format | Ignored | Handshake | Secret | ActReason |
		Outcome | protocol.Refusal | protocol.ProofType | protocol.Stage | protocol.ErrorCode | protocol.Outcome | protocol.RecoveryCopy | protocol.DriftKind | rotation.State | rotation.Hold |
		rotation.Reason | campaign.Kind | Cause | msc4385.Form | APIRole
}

// unrecognized stands for a word that the vocabulary does not have.
const unrecognized = "unrecognized"

// ID is an identifier.
func ID[T Identifier](name Name, value T) Field {
	return Field{name: name, kind: anIdentifier, value: identifierText(value)}
}

// IDs is a list of identifiers.
func IDs[T Identifier](name Name, values []T) Field {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = identifierText(v)
	}
	return Field{name: name, kind: identifiers, value: list}
}

func identifierText(value any) string {
	switch v := value.(type) {
	case uuid.UUID:
		return v.String()
	case id.UserID:
		return userText(v)
	case id.DeviceID:
		return deviceIDText(v)
	case id.RoomID:
		return shown(string(v), maxIdentifier)
	case id.KeyBackupVersion:
		return shown(string(v), 64)
	case SourceName:
		return shown(string(v), 128)
	case NotificationID:
		return shown(string(v), maxIdentifier)
	case CredentialID:
		return shown(string(v), 128)
	case KMSName:
		return shown(string(v), 128)
	case KMSPath:
		return shown(string(v), 512)
	case KMSVersion:
		return shown(string(v), 128)
	case ReaderName:
		return shown(string(v), 512)
	case StorageKeyID:
		return shown(string(v), 128)
	case SinkName:
		return shown(string(v), 128)
	case LogName:
		return shown(string(v), maxIdentifier)
	case HostName:
		return shown(string(v), maxIdentifier)
	case RuleName:
		return shown(string(v), 64)
	case PolicyHash:
		return shown(string(v), 64)
	case Filter:
		return shown(string(v), maxIdentifier)
	case UserPattern:
		return shown(string(v), id.UserIDMaxLength)
	case ProofName:
		return shown(string(v), 64)
	case campaign.Hash:
	case RouteName:
		return shown(string(v), 64)
	case SoftwareVersion:
		return shown(string(v), 64)
	}
	return unrecognized
}

// Word is one word of a documented vocabulary.
func Word[T Vocabulary](name Name, value T) Field {
	return Field{name: name, kind: aWord, value: string(value), words: vocabularyOf[T]()}
}

// Words is a list of words.
func Words[T Vocabulary](name Name, values []T) Field {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return Field{name: name, kind: someWords, value: list, words: vocabularyOf[T]()}
}

// Number is a count, a size or a number of something.
func Number[T int | int64](name Name, value T) Field {
	return Field{name: name, kind: aNumber, value: int64(value)}
}

// Time is a moment.
func Time(name Name, value time.Time) Field {
	return Field{name: name, kind: aTime, value: value.UnixMilli()}
}

// Flag is a yes or no.
func Flag(name Name, value bool) Field { return Field{name: name, kind: aFlag, value: value} }

// Root is the root hash of a tree. A plain [32]byte, which may be a key, is none.
func Root[T interface{ tlog.Hash }](name Name, value T) Field {
	sum := tlog.Hash(value)
	return Field{name: name, kind: aRoot, value: base64.StdEncoding.EncodeToString(sum[:])}
}

// Fingerprint names a public key, in unpadded base64, by the first half of that text's SHA-256, in hex.
func Fingerprint[T id.Ed25519 | id.Curve25519 | PublicKey](name Name, publicKey T) Field {
	return Field{name: name, kind: aFingerprint, value: fingerprintOfKey(string(publicKey))}
}

// VerifierKeys are the public keys that checkpoints are verified with, whole.
func VerifierKeys(name Name, keys []VerifierKey) Field {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = k.text
	}
	return Field{name: name, kind: publicKeys, value: list}
}

// Text is what an admin wrote.
func Text(name Name, reason Reason) Field { return Field{name: name, kind: aText, value: reason.text} }
