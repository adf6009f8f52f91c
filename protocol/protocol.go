// Package protocol is what the Keyherald server's bot and a managed device say to each other: the content of the
// to-device events, always inside Olm, never in clear. It is pure: shapes, limits and their checks, no I/O.
//
// Ids are UUIDv7, times Unix milliseconds, keys unpadded base64. Unknown fields are ignored, so that a server can
// serve devices two minor versions back. What comes from the other side is untrusted until Validate said yes.
package protocol

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Version is the protocol version a device states when it enrolls.
const Version = 1

// SecretMegolmBackup is the only secret of version 1: the private key of the user's key backup.
const SecretMegolmBackup = "m.megolm_backup.v1"

// The to-device event types.
var (
	TypeEnrollRequest  = event.Type{Type: "io.keyherald.enroll.request", Class: event.ToDeviceEventType}
	TypeEnrollResponse = event.Type{Type: "io.keyherald.enroll.response", Class: event.ToDeviceEventType}
	TypeTrigger        = event.Type{Type: "io.keyherald.rotation.trigger", Class: event.ToDeviceEventType}
	TypeCancel         = event.Type{Type: "io.keyherald.rotation.cancel", Class: event.ToDeviceEventType}
	TypeProgress       = event.Type{Type: "io.keyherald.rotation.progress", Class: event.ToDeviceEventType}
	TypeStatus         = event.Type{Type: "io.keyherald.device.status", Class: event.ToDeviceEventType}
	TypeRevoked        = event.Type{Type: "io.keyherald.device.revoked", Class: event.ToDeviceEventType}
)

// Millis is a time as it travels: Unix milliseconds.
type Millis int64

// At converts to the form that travels.
func At(t time.Time) Millis { return Millis(t.UnixMilli()) }

// Time converts back, in UTC.
func (m Millis) Time() time.Time { return time.UnixMilli(int64(m)).UTC() }

// EnrollRequest is the device's first message to the bot. The server believes none of it: it compares the keys with
// the Olm sender and with what the homeserver has signed (see relay). What it is asked on is one of Code, Proof, where an
// admin granted that, and Again: a device that was enrolled before its user's identity was reset. Servers before these two
// call a request without a code malformed.
type EnrollRequest struct {
	ProtocolVersion int           `json:"protocol_version"`
	Code            string        `json:"code,omitempty"`
	Proof           *Proof        `json:"proof,omitempty"`
	Again           bool          `json:"again,omitempty"`
	BotUserID       id.UserID     `json:"bot_user_id"`
	BotMasterKey    id.Ed25519    `json:"bot_master_key"`
	UserMasterKey   id.Ed25519    `json:"user_master_key"`
	DeviceID        id.DeviceID   `json:"device_id"`
	IdentityKey     id.Curve25519 `json:"identity_key"`
	SigningKey      id.Ed25519    `json:"signing_key"`
	Name            string        `json:"name,omitempty"`
	SoftwareVersion string        `json:"software_version,omitempty"`
}

// Validate reports the first field that cannot be right, whatever the sender is.
func (r EnrollRequest) Validate() error {
	switch {
	case r.ProtocolVersion < 1:
		return errors.New("protocol_version is missing")
	case r.Code == "" && r.Proof == nil && !r.Again:
		return errors.New("code is missing")
	case r.Code != "" && (r.Proof != nil || r.Again) || r.Proof != nil && r.Again:
		return errors.New("code, proof and again do not go together")
	case r.UserMasterKey == "" || r.BotMasterKey == "":
		return errors.New("a master key is missing")
	case r.DeviceID == "" || r.IdentityKey == "" || r.SigningKey == "":
		return errors.New("the device's keys are missing")
	case len(r.Name) > 256 || len(r.SoftwareVersion) > 64:
		return errors.New("name or software_version is too long")
	case r.Proof != nil:
		return r.Proof.Validate()
	}
	return nil
}

// EnrollResponse answers an EnrollRequest. SequenceFloor is the highest sequence the server ever gave out for this
// user and device; the device obeys only triggers above it. UserMasterKey is the identity of the user that is accepted, or
// waits to be; it is missing in the answers of older servers.
type EnrollResponse struct {
	Accepted      bool       `json:"accepted"`
	Reason        Refusal    `json:"reason,omitempty"`
	SequenceFloor int64      `json:"sequence_floor"`
	UserMasterKey id.Ed25519 `json:"user_master_key,omitempty"`
	// Again is of the request that is answered, since the last word about that may come days later.
	Again    bool     `json:"again,omitempty"`
	Settings Settings `json:"settings"`
}

// Settings are the server's wishes; they can only narrow the device's own configuration.
type Settings struct {
	StatusIntervalSeconds int `json:"status_interval_seconds,omitempty"`
}

// Refusal is why an enrollment was refused, one word each.
type Refusal string

// The refusals of an enrollment.
const (
	RefusedCodeUnknown        Refusal = "code_unknown"
	RefusedCodeUsed           Refusal = "code_used"
	RefusedCodeExpired        Refusal = "code_expired"
	RefusedCodeBurned         Refusal = "code_burned"
	RefusedOtherUser          Refusal = "code_for_another_user"
	RefusedKeysMismatch       Refusal = "keys_do_not_match"
	RefusedMasterKeyMismatch  Refusal = "master_key_does_not_match"
	RefusedNotCrossSigned     Refusal = "device_not_cross_signed"
	RefusedWrongBot           Refusal = "wrong_bot"
	RefusedProtocolVersion    Refusal = "protocol_version_not_served"
	RefusedMalformed          Refusal = "malformed"
	RefusedIdentityKeyChanged Refusal = "identity_key_changed"
	RefusedStoreWentBack      Refusal = "store_went_backwards"
	// These are of proofs: what is shown in place of a code.
	RefusedNoGrant          Refusal = "no_grant"
	RefusedGrantUsedUp      Refusal = "grant_used_up"
	RefusedGrantExpired     Refusal = "grant_expired"
	RefusedGrantRevoked     Refusal = "grant_revoked"
	RefusedGrantBarred      Refusal = "grant_barred"
	RefusedNotFirstDevice   Refusal = "not_the_first_device"
	RefusedNotOnRoster      Refusal = "not_on_the_roster"
	RefusedProof            Refusal = "proof_wrong"
	RefusedProofExpired     Refusal = "proof_expired"
	RefusedProofElsewhere   Refusal = "proof_for_another_server"
	RefusedProofOtherUser   Refusal = "proof_of_another_user"
	RefusedProofUsed        Refusal = "proof_used"
	RefusedProofUnavailable Refusal = "proof_not_checkable_now"
	// These are of a device that asks again after its user's identity was reset. Queued is no end: an admin decides.
	RefusedQueued    Refusal = "waits_for_release"
	RefusedRejected  Refusal = "rejected"
	RefusedNotBefore Refusal = "not_enrolled_before"
)

// Later reports whether the same may be asked once more in a while.
func (r Refusal) Later() bool { return r == RefusedProofUnavailable || r == RefusedProofExpired }

// Explain says in a sentence what the refusal means and what to do.
func (r Refusal) Explain() string {
	switch r {
	case RefusedCodeUnknown:
		return "the server knows no such open code: ask the admin for a new one (keyherald enroll --user …)"
	case RefusedCodeUsed:
		return "the code was used by another device: every device needs a code of its own"
	case RefusedCodeExpired:
		return "the code timed out: ask the admin for a new one"
	case RefusedCodeBurned:
		return "the code was burned after five wrong tries: ask the admin for a new one"
	case RefusedOtherUser:
		return "the code was made for another user: check user_id in the account file"
	case RefusedKeysMismatch:
		return "the device's keys are not the ones the homeserver has for it: remove the device's store, log in as a new device and enroll again"
	case RefusedMasterKeyMismatch:
		return "the server sees another cross-signing identity of this user than the device: check the homeserver, then verify the device again"
	case RefusedNotCrossSigned:
		return "the device is not cross-signed by its user: verify it with the recovery key first"
	case RefusedWrongBot:
		return "the request names another bot than the one it reached: the code belongs to another Keyherald server"
	case RefusedProtocolVersion:
		return "the server does not serve this protocol version: update keyherald-device or the server"
	case RefusedIdentityKeyChanged:
		return "this device id was enrolled with other keys: revoke it first (keyherald devices revoke)"
	case RefusedStoreWentBack:
		return "this device's store went back to an earlier state: move it away, log the old device out, and enroll again, as a new login"
	case RefusedNoGrant:
		return "no grant lets this user's first device enroll by such a proof: ask the admin (keyherald grant list), or for a code"
	case RefusedGrantUsedUp:
		return "as many devices as the grant is for have enrolled: ask the admin for a new one"
	case RefusedGrantExpired:
		return "the grant timed out: ask the admin for a new one"
	case RefusedGrantRevoked:
		return "the grant was revoked: ask the admin"
	case RefusedGrantBarred:
		return "wrong proofs were shown five times for this user: put the proof in order, and ask the admin for a code or a new grant"
	case RefusedNotFirstDevice:
		return "the user has a managed device, or had one: another one needs a code (keyherald enroll --user …)"
	case RefusedNotOnRoster:
		return "the user is not on the roster: ask the admin to add him (keyherald roster add), or for a code"
	case RefusedProof:
		return "the proof is none: check enrollment.proof in the account file, and that the server trusts its issuer"
	case RefusedProofExpired:
		return "the proof has expired, or the clocks are apart: get a fresh one"
	case RefusedProofElsewhere:
		return "the token is not for this server, or lacks a claim that the server demands: check its audience"
	case RefusedProofOtherUser:
		return "the proof is another user's: check user_id and enrollment.proof in the account file"
	case RefusedProofUsed:
		return "another device showed this token before: get a fresh one"
	case RefusedProofUnavailable:
		return "the server cannot read the issuer's keys now: it is tried again"
	case RefusedQueued:
		return "an admin must release it first (keyherald reenrollments): the device is told then, and goes on by itself"
	case RefusedRejected:
		return "an admin rejected it, or the user left the roster: a code is needed now"
	case RefusedNotBefore:
		return "the server does not know this device, or trusts it as it is: enroll it with a code"
	default:
		return "the request was malformed: update keyherald-device"
	}
}

// Action is what a trigger asks for.
type Action string

// The actions: take the KMS's key, make the key on the device and put it into the KMS, and push the last key once more. A
// device that does not know one rejects it as RejectedAction.
const (
	ActionPush   Action = "push"
	ActionRotate Action = "rotate"
	ActionRepeat Action = "repeat"
)

// KMSRef names one version of one secret in a key-management system, by the name both sides' configs give the KMS.
type KMSRef struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	Version string `json:"version"`
}

// Trigger tells a device that the KMS holds a newer key. Sequence is above every earlier one of the same user and
// secret; IssuedAt and ExpiresAt bound its life, with five minutes of skew allowed. Reported is the highest mark the
// server has seen from the device: one whose store is behind it does nothing any more.
type Trigger struct {
	RotationID uuid.UUID     `json:"rotation_id"`
	Attempt    int           `json:"attempt"`
	Sequence   int64         `json:"sequence"`
	UserID     id.UserID     `json:"user_id"`
	Secret     string        `json:"secret"`
	Action     Action        `json:"action"`
	KMS        KMSRef        `json:"kms"`
	Exclude    []id.DeviceID `json:"exclude,omitempty"`
	Reason     string        `json:"reason,omitempty"`
	IssuedAt   Millis        `json:"issued_at"`
	ExpiresAt  Millis        `json:"expires_at"`
	Reported   *StoreMark    `json:"reported,omitempty"`
	// OldBackupGrace is how long the key-backup version that is replaced is kept; nil is as the account file says.
	OldBackupGrace *Seconds `json:"old_backup_grace,omitempty"`
	// ReplaceRecoveryKey asks for a new recovery key as well, after the key.
	ReplaceRecoveryKey bool `json:"replace_recovery_key,omitempty"`
}

// Seconds is a span of time in whole seconds.
type Seconds int64

// Duration converts.
func (s Seconds) Duration() time.Duration { return time.Duration(s) * time.Second }

// Skew is how far the two clocks may be apart before a trigger counts as expired or not yet issued.
const Skew = 5 * time.Minute

// Validate reports the first field that cannot be right.
func (t Trigger) Validate() error {
	switch {
	case t.RotationID == uuid.Nil:
		return errors.New("rotation_id is missing")
	case t.Attempt < 1:
		return errors.New("attempt is below 1")
	case t.Sequence < 1:
		return errors.New("sequence is below 1")
	case t.UserID == "" || t.Secret == "" || t.Action == "":
		return errors.New("user_id, secret or action is missing")
	case t.KMS.Name == "" || t.KMS.Path == "" || (t.KMS.Version == "" && t.Action != ActionRotate):
		return errors.New("kms is incomplete")
	case t.ExpiresAt <= t.IssuedAt:
		return errors.New("expires_at is not after issued_at")
	}
	return nil
}

// Cancel asks the device to stop a rotation where it is; what is done stays done.
type Cancel struct {
	RotationID uuid.UUID `json:"rotation_id"`
	Reason     string    `json:"reason,omitempty"`
}

// Revoked tells a device that the server obeys it no more, and expects no obedience. The reason store_went_backwards
// means that the device may come back as a new login.
type Revoked struct {
	DeviceID id.DeviceID `json:"device_id"`
	Reason   string      `json:"reason,omitempty"`
	At       Millis      `json:"at"`
}

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
