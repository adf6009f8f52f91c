package protocol

import (
	"errors"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

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
