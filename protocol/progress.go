package protocol

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

// Progress is one report about an attempt. ReportID makes a repeated report harmless. A field that is nil says
// nothing about its subject. Store is missing in the reports of older devices.
type Progress struct {
	ReportID     uuid.UUID      `json:"report_id"`
	RotationID   uuid.UUID      `json:"rotation_id"`
	Attempt      int            `json:"attempt"`
	Stage        Stage          `json:"stage"`
	KMSVersion   string         `json:"kms_version,omitempty"`
	Backup       *BackupReport  `json:"backup,omitempty"`
	Carried      *CarriedReport `json:"carried,omitempty"`
	RecoveryCopy RecoveryCopy   `json:"recovery_copy,omitempty"`
	Deliveries   []Delivery     `json:"deliveries,omitempty"`
	Error        *ErrorReport   `json:"error,omitempty"`
	// Round and Cause are of a push beyond the rotation's own: its number, and why it was made.
	Round        int        `json:"round,omitempty"`
	Cause        string     `json:"cause,omitempty"`
	SequenceMark int64      `json:"sequence_mark,omitempty"`
	Store        *StoreMark `json:"store,omitempty"`
	At           Millis     `json:"at"`
}

// Stage is how far an attempt came, in the order of work.
type Stage string

// The stages a device reports. StageRejected and StageNeedsAttention end the attempt without a change of key;
// StageFailed reports an error (retryable or not) and leaves the attempt where it was. StageCarryingOver tells how far a
// long carry-over is. StageWithdrawn gives the targets of an attempt that a newer trigger or a cancel ended their
// outcomes, and says nothing else. StageCleanedUp tells that the version that was replaced is deleted.
const (
	StageTriggerAccepted     Stage = "trigger_accepted"
	StageFetched             Stage = "fetched"
	StageBackupCreated       Stage = "backup_created"
	StageRecoveryCopyWritten Stage = "recovery_copy_written"
	StageCarryingOver        Stage = "carrying_over"
	StageCarriedOver         Stage = "carried_over"
	StagePushed              Stage = "pushed"
	StageCleanedUp           Stage = "cleaned_up"
	StageRejected            Stage = "rejected"
	StageNeedsAttention      Stage = "needs_attention"
	StageFailed              Stage = "failed"
	StageWithdrawn           Stage = "withdrawn"
)

// BackupReport names the key-backup version a device made or found to be ours.
type BackupReport struct {
	Version    string `json:"version"`
	OldVersion string `json:"old_version,omitempty"`
	PublicKey  string `json:"public_key"`
	Created    bool   `json:"created"`
}

// CarriedReport counts what was carried over from older versions. Complete means that the set of (room, session) of
// every older version is contained in the new one. Total 0 with Complete: nothing to carry.
type CarriedReport struct {
	Total       int      `json:"total"`
	Carried     int      `json:"carried"`
	Undecrypted int      `json:"undecrypted,omitempty"`
	Sessions    []string `json:"undecrypted_sessions,omitempty"`
	Complete    bool     `json:"complete"`
}

// RecoveryCopy is the state of the key's copy in secret storage (4S).
type RecoveryCopy string

// The states of the recovery copy: written and read back; the user has no secret storage; left stale because the
// operator allowed it.
const (
	RecoveryCopyWritten RecoveryCopy = "written"
	RecoveryCopyNone    RecoveryCopy = "none"
	RecoveryCopyStale   RecoveryCopy = "stale_allowed"
)

// Outcome is what became of one target, as far as it can be known: clients do not acknowledge a push.
type Outcome string

// The outcomes. Superseded means withdrawn before the homeserver was known to have the push. Adopted is claimed only
// where a managed receiver reported holding the key.
const (
	OutcomeSent              Outcome = "sent"
	OutcomeSkippedUnverified Outcome = "skipped_unverified"
	OutcomeSkippedExcluded   Outcome = "skipped_excluded"
	OutcomeSkippedDehydrated Outcome = "skipped_dehydrated"
	OutcomeNoOneTimeKey      Outcome = "no_one_time_key"
	OutcomeFailed            Outcome = "failed"
	OutcomeSuperseded        Outcome = "superseded"
	OutcomeAdopted           Outcome = "adopted"
)

// Known reports whether the word is one of the outcomes.
func (o Outcome) Known() bool {
	switch o {
	case OutcomeSent, OutcomeSkippedUnverified, OutcomeSkippedExcluded, OutcomeSkippedDehydrated, OutcomeNoOneTimeKey,
		OutcomeFailed, OutcomeSuperseded, OutcomeAdopted:
		return true
	}
	return false
}

// Delivery is the outcome for one device of the user. Forms names the event types that were sent.
type Delivery struct {
	DeviceID id.DeviceID `json:"device_id"`
	Outcome  Outcome     `json:"outcome"`
	Forms    []string    `json:"forms,omitempty"`
	Round    int         `json:"round,omitempty"`
}

// ErrorReport says what went wrong. Code is one of the ErrorCode words, Message is for people and holds no secret.
type ErrorReport struct {
	Code      ErrorCode `json:"code"`
	Message   string    `json:"message,omitempty"`
	Retryable bool      `json:"retryable"`
}

// Validate reports the first field that cannot be right.
func (p Progress) Validate() error {
	switch {
	case p.ReportID == uuid.Nil || p.RotationID == uuid.Nil:
		return errors.New("report_id or rotation_id is missing")
	case p.Attempt < 1:
		return errors.New("attempt is below 1")
	case p.Stage == "":
		return errors.New("stage is missing")
	case p.Store != nil && !p.Store.valid():
		return errors.New("store is no mark")
	}
	switch p.RecoveryCopy {
	case "", RecoveryCopyWritten, RecoveryCopyNone, RecoveryCopyStale:
	default:
		return fmt.Errorf("recovery_copy is %q", p.RecoveryCopy)
	}
	for _, d := range p.Deliveries {
		if d.DeviceID == "" || !d.Outcome.Known() {
			return fmt.Errorf("a delivery has outcome %q", d.Outcome)
		}
	}
	return nil
}
