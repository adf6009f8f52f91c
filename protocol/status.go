package protocol

import (
	"errors"
	"slices"

	"github.com/google/uuid"
)

// Status is what a device says of itself every hour and on change. It heals lost reports: the last rotation and its
// stage are repeated in it.
type Status struct {
	ReportID          uuid.UUID    `json:"report_id"`
	BackupVersion     string       `json:"backup_version,omitempty"`
	PublicKey         string       `json:"public_key,omitempty"`
	HoldsKey          bool         `json:"holds_key"`
	Count             int          `json:"count"`
	ETag              string       `json:"etag,omitempty"`
	TargetsVerified   int          `json:"targets_verified"`
	TargetsUnverified int          `json:"targets_unverified"`
	LastRotation      *uuid.UUID   `json:"last_rotation,omitempty"`
	LastStage         Stage        `json:"last_stage,omitempty"`
	HighestSequence   int64        `json:"highest_sequence,omitempty"`
	Drifted           *DriftReport `json:"drifted,omitempty"`
	OldBackups        []OldBackup  `json:"old_backups,omitempty"`
	Acts              []Act        `json:"acts,omitempty"`
	SoftwareVersion   string       `json:"software_version,omitempty"`
	Store             *StoreMark   `json:"store,omitempty"`
	At                Millis       `json:"at"`
}

// Validate reports the first field that cannot be right.
func (s Status) Validate() error {
	switch {
	case s.ReportID == uuid.Nil:
		return errors.New("report_id is missing")
	case s.Store != nil && !s.Store.valid():
		return errors.New("store is no mark")
	case len(s.Acts) > MaxActs:
		return errors.New("there are too many acts")
	}
	for _, act := range s.Acts {
		if err := act.validate(); err != nil {
			return err
		}
	}
	return nil
}

// OldBackup is a key-backup version that was replaced. Until is when it may be deleted, where it is kept for that long.
type OldBackup struct {
	Version     string         `json:"version"`
	State       OldBackupState `json:"state"`
	CarriedOver bool           `json:"carried_over"`
	Until       Millis         `json:"until,omitempty"`
}

// OldBackupState is what becomes of an old key-backup version.
type OldBackupState string

// The states of an old version: kept until its grace is over, held by somebody's word, deleted.
const (
	OldBackupKept    OldBackupState = "kept_until"
	OldBackupHeld    OldBackupState = "held"
	OldBackupDeleted OldBackupState = "deleted"
)

// SaysTheSame reports whether a later status says nothing new: all but what always moves (how many room keys there are)
// and what is told elsewhere (the rotation it was about).
func (s Status) SaysTheSame(later Status) bool {
	var drift, laterDrift DriftKind
	if s.Drifted != nil {
		drift = s.Drifted.Kind
	}
	if later.Drifted != nil {
		laterDrift = later.Drifted.Kind
	}
	return s.BackupVersion == later.BackupVersion && s.PublicKey == later.PublicKey && s.HoldsKey == later.HoldsKey &&
		s.TargetsVerified == later.TargetsVerified && s.TargetsUnverified == later.TargetsUnverified &&
		s.SoftwareVersion == later.SoftwareVersion && drift == laterDrift && slices.Equal(s.OldBackups, later.OldBackups)
}

// DriftReport tells that the world is not as Keyherald left it.
type DriftReport struct {
	Kind    DriftKind `json:"kind"`
	Message string    `json:"message,omitempty"`
}

// DriftKind is how the world drifted.
type DriftKind string

// The drifts: the KMS's current version is not the key backup's key though no rotation is under way; the user reset
// the key backup himself; the user has no key backup any more.
const (
	DriftKMS    DriftKind = "kms_version_not_ours"
	DriftBackup DriftKind = "backup_reset_by_user"
	DriftNone   DriftKind = "backup_gone"
)
