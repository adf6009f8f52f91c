package protocol

import (
	"errors"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

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
	// RequestID comes back in the answer. Devices before it sent none.
	RequestID uuid.UUID `json:"request_id,omitzero"`
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
	Again bool `json:"again,omitempty"`
	// RequestID is the request's; older servers send none.
	RequestID uuid.UUID `json:"request_id,omitzero"`
	Settings  Settings  `json:"settings"`
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
