package protocol

// ErrorCode is why a device rejected a trigger, stopped, or failed at a step. The words are stable: the server's
// rules (package rotation) and the operators' documentation stand on them.
type ErrorCode string

// Why a trigger is rejected: nothing was done, and nothing will be for this attempt.
const (
	RejectedNotPinnedBot ErrorCode = "not_the_pinned_bot"
	RejectedOtherUser    ErrorCode = "another_user"
	RejectedSecret       ErrorCode = "secret_not_allowed"
	RejectedKMS          ErrorCode = "kms_or_path_not_configured"
	RejectedSequence     ErrorCode = "out_of_sequence"
	RejectedExpired      ErrorCode = "expired"
	RejectedNotYetIssued ErrorCode = "not_yet_issued"
	RejectedAction       ErrorCode = "action_not_supported"
	RejectedNotPushed    ErrorCode = "not_the_last_push"
	RejectedMalformed    ErrorCode = "malformed"
	// RejectedUserOptedOut: the user switched key backup off. It is found once the trigger was accepted.
	RejectedUserOptedOut ErrorCode = "user_opted_out"
	// StoreWentBackwards also ends the device's enrollment: whoever sees it first, device or server, tells the other.
	StoreWentBackwards ErrorCode = "store_went_backwards"
)

// Why a device needs somebody: the causes of needs_attention. All but carry_over_incomplete stop it before anything changed
// in this step; that one comes after the push, and keeps the old version from ever being deleted.
const (
	AttentionOldKeyMissing           ErrorCode = "old_key_missing"
	AttentionRecoveryCopyNotWritable ErrorCode = "recovery_copy_not_writable"
	AttentionKeyNotUsable            ErrorCode = "key_not_usable"
	AttentionKeyMismatch             ErrorCode = "key_does_not_match_metadata"
	AttentionKMSForbidden            ErrorCode = "kms_forbidden"
	AttentionBackupChanged           ErrorCode = "backup_changed"
	AttentionNotCrossSigned          ErrorCode = "needs_enrollment"
	AttentionCarryOverIncomplete     ErrorCode = "carry_over_incomplete"
	AttentionTriggerRefused          ErrorCode = "trigger_refused"
)

// Retryable faults: the device tries again by itself.
const (
	FaultKMSUnavailable        ErrorCode = "kms_unavailable"
	FaultHomeserverUnavailable ErrorCode = "homeserver_unavailable"
	FaultInternal              ErrorCode = "internal"
)
