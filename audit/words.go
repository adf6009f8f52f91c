package audit

import (
	"reflect"

	"github.com/keyherald/keyherald/msc4385"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Refusal is why the server refused something.
type Refusal string

// Why a notification is refused.
const (
	RefusedUnknownSource   Refusal = "unknown_source"
	RefusedBodyUnreadable  Refusal = "body_unreadable"
	RefusedTooLarge        Refusal = "too_large"
	RefusedNotSigned       Refusal = "not_signed"
	RefusedWrongSignature  Refusal = "wrong_signature"
	RefusedStale           Refusal = "stale"
	RefusedMediaType       Refusal = "unsupported_media_type"
	RefusedMalformed       Refusal = "malformed"
	RefusedConflict        Refusal = "same_id_with_another_body"
	RefusedNoUserID        Refusal = "mapped_to_no_user_id"
	RefusedNoUsableVersion Refusal = "no_usable_version"
	RefusedUnusablePath    Refusal = "mapped_to_no_path"
	RefusedTooSlow         Refusal = "body_too_slow"
	RefusedAddress         Refusal = "wrong_address"
	RefusedNoCredentials   Refusal = "no_credentials"
	RefusedCredentials     Refusal = "wrong_credentials"
	RefusedCertificate     Refusal = "wrong_certificate"
	RefusedToken           Refusal = "wrong_token"
	RefusedClaims          Refusal = "wrong_claims"
	RefusedTopic           Refusal = "wrong_topic"
	RefusedOrigin          Refusal = "wrong_origin"
)

// Why a caller of the API is refused, beside his credentials.
const (
	RefusedExpired      Refusal = "expired"
	RefusedRevoked      Refusal = "revoked"
	RefusedNoRole       Refusal = "no_role"
	RefusedRole         Refusal = "wrong_role"
	RefusedSeveralUsers Refusal = "one_user_at_a_time"
)

// Why an API token is not made or revoked.
const (
	RefusedName         Refusal = "unusable_name"
	RefusedUnknownToken Refusal = "unknown_token"
	RefusedUnknownRole  Refusal = "unknown_role"
)

// APIRole is what a caller of the API may do.
type APIRole string

// The roles; docs/api.md says which routes are for which.
const (
	APIAdmin    APIRole = "admin"
	APIHelpdesk APIRole = "helpdesk"
	APIOperator APIRole = "operator"
	APIAuditor  APIRole = "auditor"
)

// Why a message to the bot is refused.
const (
	RefusedNotEncrypted        Refusal = "not_encrypted"
	RefusedUnknownSender       Refusal = "unknown_sender"
	RefusedTooMany             Refusal = "too_many_of_strangers"
	RefusedBeforeRestore       Refusal = "from_before_the_restore"
	RefusedUndecryptable       Refusal = "undecryptable"
	RefusedNotEnrolled         Refusal = "not_enrolled"
	RefusedMalformedEnrollment Refusal = "malformed_enrollment"
	RefusedMalformedProgress   Refusal = "malformed_progress"
	RefusedMalformedStatus     Refusal = "malformed_status"
	RefusedUnknownType         Refusal = "unknown_type"
	RefusedUnknownActs         Refusal = "unknown_acts"
	RefusedUnknownRotation     Refusal = "unknown_rotation"
	RefusedWrongTries          Refusal = "wrong_tries"
	RefusedStoreBranched       Refusal = "marks_of_two_branches"
	RefusedStoreConfessed      Refusal = "the_device_says_so"
	RefusedIdentityChanged     Refusal = "identity_changed_or_not_cross_signed"
)

// Why a message of the bot's goes nowhere.
const (
	RefusedByHomeserver Refusal = "the_homeserver_refused"
	RefusedNoOneTimeKey Refusal = "no_one_time_key"
	RefusedUserLeft     Refusal = "user_left_the_room"
	RefusedTooLate      Refusal = "too_late"
)

// Why what an admin or operator asked for is refused.
const (
	RefusedEnded             Refusal = "ended"
	RefusedHeld              Refusal = "held"
	RefusedNotHeld           Refusal = "not_held"
	RefusedBesideOthers      Refusal = "others_of_the_request_refused"
	RefusedAlreadySo         Refusal = "already_so"
	RefusedUnknownDevice     Refusal = "unknown_device"
	RefusedLife              Refusal = "life_out_of_bounds"
	RefusedNoReason          Refusal = "no_reason"
	RefusedReason            Refusal = "unusable_reason"
	RefusedNothingLost       Refusal = "nothing_lost"
	RefusedNoSuchEvent       Refusal = "no_such_event"
	RefusedUnreadable        Refusal = "unreadable"
	RefusedIsRedaction       Refusal = "redaction"
	RefusedIsLoss            Refusal = "accepted_loss"
	RefusedIsKeys            Refusal = "signing_keys"
	RefusedRedactedBefore    Refusal = "redacted_before"
	RefusedDetailMissing     Refusal = "detail_missing"
	RefusedForeignIdentity   Refusal = "another_identity_at_the_homeserver"
	RefusedHalfPlace         Refusal = "kms_or_path_alone"
	RefusedUnknownPlace      Refusal = "unknown_place"
	RefusedNotPushed         Refusal = "not_pushed_last"
	RefusedLoginByHomeserver Refusal = "login_refused"
	RefusedPolicy            Refusal = "contradicts_itself"
	RefusedNotTheNewest      Refusal = "not_the_newest"
	RefusedParameters        Refusal = "unusable_parameters"
	RefusedNobody            Refusal = "nobody_is_meant"
	RefusedNotThere          Refusal = "users_that_are_not_there"
	RefusedUnknownCampaign   Refusal = "unknown_campaign"
	RefusedOtherRequest      Refusal = "same_key_with_another_request"
	RefusedCampaignState     Refusal = "not_in_this_state"
	RefusedOwnCampaign       Refusal = "by_who_asked_for_it"
	RefusedOtherHash         Refusal = "another_hash"
	RefusedApprovalExpired   Refusal = "approval_expired"
	RefusedPattern           Refusal = "unusable_pattern"
	RefusedUnknownProof      Refusal = "unknown_proof"
	RefusedBounds            Refusal = "number_out_of_bounds"
	RefusedUnknownGrant      Refusal = "unknown_grant"

	RefusedUnknownReenrollment Refusal = "unknown_reenrollment"
)

// Why what an admin asked for of the roster is refused.
const (
	RefusedEntry         Refusal = "unusable_entry"
	RefusedTooManyUsers  Refusal = "too_many_users"
	RefusedTooManyLeave  Refusal = "too_many_would_leave"
	RefusedNotOnRoster   Refusal = "not_on_the_roster"
	RefusedNotExempt     Refusal = "not_exempt"
	RefusedEndsInThePast Refusal = "ends_in_the_past"
)

// Problem is why something failed.
type Problem string

// The problems.
const (
	ProblemWentBack         Problem = "went_back"
	ProblemDiverged         Problem = "diverged"
	ProblemTreeDamaged      Problem = "tree_damaged"
	ProblemForeignStatement Problem = "foreign_statement"
	ProblemAltered          Problem = "altered"
	ProblemError            Problem = "error"
)

// Cause is why something happened to a campaign that nobody asked for.
type Cause string

// The causes.
const (
	CauseWaiting         Cause = "too_many_waiting"
	CauseFailing         Cause = "too_many_failing"
	CauseChanged         Cause = "changed"
	CauseAltered         Cause = "altered_in_the_database"
	CauseApprovalExpired Cause = "approval_expired"
	CauseAborted         Cause = "aborted"
	CauseRestored        Cause = "database_restored"
)

// Ignored is why a notification changed nothing.
type Ignored string

// Why a notification is ignored: it is none of ours, which is normal for a shared KMS, or was taken before; or it tells
// that somebody read a key who may, or a version that is not the current one any more.
const (
	IgnoredUnmapped       Ignored = "unmapped"
	IgnoredRepeated       Ignored = "repeated"
	IgnoredExpectedReader Ignored = "expected_reader"
	IgnoredOldVersion     Ignored = "old_version"
)

// Handshake is a kind of a sender's request about its subscription.
type Handshake string

// The handshakes.
const (
	HandshakeEventGrid      Handshake = "event_grid_validation"
	HandshakeSNSSubscribed  Handshake = "sns_subscription"
	HandshakeSNSUnsubscribe Handshake = "sns_unsubscribed"
)

// Message is what a message of the bot's to a device is about, as the keys of its outbox begin.
type Message string

// The messages beside triggers.
const (
	MessageEnrollmentAnswer Message = "enroll"
	MessageRevoked          Message = "revoked"
	MessageCancel           Message = "cancel"
	MessageGreeting         Message = "greet"
	MessageStoreWentBack    Message = "went_back"
	MessageNewSession       Message = "unwedge"
	MessageRepeat           Message = "repeat"
)

// NoticeAbout is what a notice in one of the bot's rooms is about.
type NoticeAbout string

// What users are told, and then what the admin room is.
const (
	NoticeKeyGiven       NoticeAbout = "key_given"
	NoticeDevicesWithout NoticeAbout = "devices_without_key"
	NoticeUserMustAct    NoticeAbout = "user_must_act"
	NoticeKeyNotReplaced NoticeAbout = "key_not_replaced"
	NoticeServerStarted  NoticeAbout = "server_started"
	NoticeStatus         NoticeAbout = "status"
	NoticeCampaign       NoticeAbout = "campaign"
	NoticeRestored       NoticeAbout = "database_restored"
)

// Command is by which command the log was read or exported.
type Command string

// The commands: watch is of `keyherald rotations`, compliance is one of its own, the others are of `keyherald audit`.
const (
	CommandWatch        Command = "watch"
	CommandList         Command = "list"
	CommandShow         Command = "show"
	CommandFollow       Command = "follow"
	CommandCompleteness Command = "completeness"
	CommandVerify       Command = "verify"
	CommandProve        Command = "prove"
	CommandReport       Command = "report"
	CommandExport       Command = "export"
	CommandCompliance   Command = "compliance"
)

// Format is in which form the log went out.
type Format string

// The formats.
const (
	FormatJSONLines Format = "jsonl"
	FormatCSV       Format = "csv"
	FormatOCSF      Format = "ocsf"
	FormatBundle    Format = "bundle"
	FormatReport    Format = "report"
)

// Secret is which of a user's secrets a device dealt with (client-server API, "Secrets"): its name, never what it is.
type Secret string

// The secrets that have a word.
const (
	SecretMegolmBackup Secret = "m.megolm_backup.v1"
	SecretMaster       Secret = "m.cross_signing.master"
	SecretSelfSigning  Secret = "m.cross_signing.self_signing"
	SecretUserSigning  Secret = "m.cross_signing.user_signing"
	SecretOther        Secret = "other"
)

// ActReason is why a device refused something to its user's other devices, or why its account ended.
type ActReason string

// The reasons that devices give.
const (
	ActTooManyRequests ActReason = "too_many_requests"
	ActDeviceUnknown   ActReason = "device_unknown"
	ActDehydrated      ActReason = "dehydrated_device"
	ActNotCrossSigned  ActReason = "device_not_cross_signed"
	ActExcluded        ActReason = "device_excluded"
	ActNotAllowed      ActReason = "secret_not_allowed"
	ActNotHeld         ActReason = "secret_not_held"
	ActNoKeyBackup     ActReason = "no_key_backup"
	ActUserDeactivated ActReason = "user_deactivated"
	ActLoginRefused    ActReason = "login_refused"
)

func vocabularyOf[T Vocabulary]() string { return reflect.TypeFor[T]().String() }

// The words of other rooms that may stand in the log.
var (
	apiRoles           = []APIRole{APIAdmin, APIHelpdesk, APIOperator, APIAuditor}
	enrollmentRefusals = []protocol.Refusal{protocol.RefusedCodeUnknown, protocol.RefusedCodeUsed, protocol.RefusedCodeExpired, protocol.RefusedCodeBurned,
		protocol.RefusedOtherUser, protocol.RefusedKeysMismatch, protocol.RefusedMasterKeyMismatch, protocol.RefusedNotCrossSigned, protocol.RefusedWrongBot,
		protocol.RefusedProtocolVersion, protocol.RefusedMalformed, protocol.RefusedIdentityKeyChanged, protocol.RefusedStoreWentBack,
		protocol.RefusedQueued, protocol.RefusedRejected, protocol.RefusedNotBefore}
	grantRefusals = []protocol.Refusal{protocol.RefusedNoGrant, protocol.RefusedGrantUsedUp, protocol.RefusedGrantExpired, protocol.RefusedGrantRevoked,
		protocol.RefusedGrantBarred, protocol.RefusedNotFirstDevice, protocol.RefusedNotOnRoster, protocol.RefusedProof, protocol.RefusedProofExpired, protocol.RefusedProofElsewhere,
		protocol.RefusedProofOtherUser, protocol.RefusedProofUsed, protocol.RefusedProofUnavailable, protocol.RefusedProtocolVersion, protocol.RefusedWrongBot,
		protocol.RefusedKeysMismatch, protocol.RefusedMasterKeyMismatch, protocol.RefusedNotCrossSigned, protocol.RefusedIdentityKeyChanged, protocol.RefusedStoreWentBack}
	proofTypes = protocol.ProofTypes
	stages     = []protocol.Stage{protocol.StageTriggerAccepted, protocol.StageFetched, protocol.StageBackupCreated, protocol.StageRecoveryCopyWritten,
		protocol.StageCarryingOver, protocol.StageCarriedOver, protocol.StageCleanedUp, protocol.StagePushed, protocol.StageRejected, protocol.StageNeedsAttention, protocol.StageFailed, protocol.StageWithdrawn}
	errorCodes = []protocol.ErrorCode{protocol.RejectedNotPinnedBot, protocol.RejectedOtherUser, protocol.RejectedSecret, protocol.RejectedKMS,
		protocol.RejectedSequence, protocol.RejectedExpired, protocol.RejectedNotYetIssued, protocol.RejectedNotPushed, protocol.RejectedAction, protocol.RejectedMalformed,
		protocol.StoreWentBackwards, protocol.AttentionOldKeyMissing, protocol.AttentionRecoveryCopyNotWritable, protocol.AttentionKeyNotUsable,
		protocol.AttentionKeyMismatch, protocol.AttentionKMSForbidden, protocol.AttentionBackupChanged, protocol.AttentionNotCrossSigned,
		protocol.AttentionCarryOverIncomplete, protocol.AttentionTriggerRefused, protocol.RejectedUserOptedOut, protocol.FaultKMSUnavailable, protocol.FaultHomeserverUnavailable,
		protocol.FaultInternal}
	outcomes = []protocol.Outcome{protocol.OutcomeSent, protocol.OutcomeSkippedUnverified, protocol.OutcomeSkippedExcluded, protocol.OutcomeSkippedDehydrated,
		protocol.OutcomeNoOneTimeKey, protocol.OutcomeFailed, protocol.OutcomeSuperseded, protocol.OutcomeAdopted}
	recoveryCopies = []protocol.RecoveryCopy{protocol.RecoveryCopyWritten, protocol.RecoveryCopyNone, protocol.RecoveryCopyStale}
	drifts         = []protocol.DriftKind{protocol.DriftKMS, protocol.DriftBackup, protocol.DriftNone}
	reasons        = []rotation.Reason{rotation.ReasonCompromise, rotation.ReasonDisclosed, rotation.ReasonPolicy, rotation.ReasonDrift}
	states         = []rotation.State{rotation.Received, rotation.WaitingForEnrollment, rotation.Working, rotation.Done, rotation.Failed, rotation.Superseded,
		rotation.TimedOut, rotation.Cancelled}
	holds = []rotation.Hold{rotation.HoldStorm, rotation.HoldReadAgain, rotation.HoldLogUnsigned, rotation.HoldPolicy, rotation.HoldWindow}
	forms = []msc4385.Form{msc4385.FormSend, msc4385.FormPush}
)
