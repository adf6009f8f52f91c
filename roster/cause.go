package roster

import (
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Cause is why a user is not current: one of these, a device's drift, or a cause of docs/attention.md.
type Cause string

// The causes of a user's state that no rotation has.
const (
	NeverEnrolled         Cause = "never_enrolled"
	DeviceNeedsEnrollment Cause = "device_needs_enrollment"
	DeviceRevoked         Cause = "device_revoked"
	NoStatusYet           Cause = "no_status_yet"
	DeviceSilent          Cause = "device_silent"
	HeldForRelease        Cause = "held"
	HeldForSigning        Cause = "held_until_signed"
	HeldForWindow         Cause = "held_until_window"
	RotationFailed        Cause = "rotation_failed"
	RotationTimedOut      Cause = "rotation_timed_out"
	NoKeyBackup           Cause = "no_key_backup"
	KeyNotHeld            Cause = "key_not_held"
	PastMaxAge            Cause = "past_max_age"
	AgeUnknown            Cause = "age_unknown"
	KMSDrifted            Cause = Cause(protocol.DriftKMS)
	BackupReset           Cause = Cause(protocol.DriftBackup)
	BackupGone            Cause = Cause(protocol.DriftNone)
)

// Remedy says who has to do what about a cause.
type Remedy struct {
	Cause      Cause
	Who        string
	NextAction string
}

var remedies = []Remedy{
	{NeverEnrolled, "admin", "the user has no managed device: enroll one (keyherald enroll), or exempt him (keyherald roster exempt)"},
	{DeviceNeedsEnrollment, "admin", "the user's identity or the device's keys changed: ask him whether it was he. A device that his new identity has signed asks again and waits: release it (keyherald reenrollments); else verify it, or enroll it with a code (keyherald enroll)"},
	{DeviceRevoked, "admin", "the user's managed device was revoked: enroll another one (keyherald enroll), or take him off the roster"},
	{NoStatusYet, "operator", "the device was enrolled and has said nothing since: is it running (keyherald-device run), and does it reach the homeserver?"},
	{DeviceSilent, "operator", "no managed device of the user has sent a status for three intervals: is it running (keyherald-device run), and does it reach the homeserver?"},
	{HeldForRelease, "admin", "the rotation is held: keyherald rotations release lets it go"},
	{HeldForSigning, "operator", "the rotation waits until the audit log is signed again: see to the signer"},
	{HeldForWindow, "admin", "the rotation waits until a window of the user's policy opens; keyherald rotations release lets it go before"},
	{RotationFailed, "admin", "the rotation failed for good: see why (keyherald rotations show), mend it, then retry (keyherald rotations retry)"},
	{RotationTimedOut, "admin", "the rotation was open for 30 days and was given up: retry it (keyherald rotations retry)"},
	{NoKeyBackup, "admin", "the user has no key backup yet: begin his first rotation (keyherald rotate)"},
	{KeyNotHeld, "user", "the managed device does not hold the private key of the user's key backup: let him open a verified client that has it, or provide his recovery key (keyherald-device provide-recovery-key)"},
	{PastMaxAge, "admin", "the key is older than the policy allows: rotate it (keyherald rotate)"},
	{AgeUnknown, "admin", "nobody can say how old the key is: rotate it (keyherald rotate)"},
	{KMSDrifted, "admin", "the KMS has another key than the key backup, and no rotation is under way: notify Keyherald of the version, or rotate (keyherald rotate)"},
	{BackupReset, "user", "the user made another key backup himself: ask him, then rotate (keyherald rotate), or let on_drift in the account file decide"},
	{BackupGone, "user", "the user switched his key backup off: ask him; if he is to have one, let him switch it on, then rotate (keyherald rotate)"},
}

// Remedies returns the table of causes, in its order.
func Remedies() []Remedy { return append([]Remedy(nil), remedies...) }

// NextAction says what to do about a cause; it is empty for no cause.
func NextAction(cause Cause) string {
	if cause == "" {
		return ""
	}
	if known := nextActionOf(cause); known != "" {
		return known
	}
	return rotation.NextAction(protocol.ErrorCode(cause))
}

func nextActionOf(cause Cause) string {
	for _, r := range remedies {
		if r.Cause == cause {
			return r.Who + ": " + r.NextAction
		}
	}
	return ""
}
