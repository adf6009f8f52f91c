package audit

// Action is what an event tells, as noun.verb.
type Action string

// The actions.
const (
	NotificationAccepted Action = "notification.accepted"
	NotificationUnusable Action = "notification.unusable"
	NotificationRefused  Action = "notification.refused"
	RotationSuperseded   Action = "rotation.superseded"
	RotationTimedOut     Action = "rotation.timed_out"
	RotationWaiting      Action = "rotation.waiting_for_enrollment"
	RotationHeld         Action = "rotation.held"
	RotationReleased     Action = "rotation.released"
	RotationRetried      Action = "rotation.retried"
	RotationCancelled    Action = "rotation.cancelled"
	CancelQueued         Action = "rotation.cancel_queued"
	RotationDone         Action = "rotation.done"
	RotationFailed       Action = "rotation.failed"
	TriggerQueued        Action = "trigger.queued"
	TriggerSent          Action = "trigger.sent"
	TriggerRefused       Action = "trigger.refused_by_homeserver"
	ProgressReported     Action = "progress.reported"
	DeliveryReported     Action = "delivery.reported"
	TriggersFrozen       Action = "triggers.frozen"
	TriggersThawed       Action = "triggers.thawed"
	StatusReported       Action = "status.reported"
	DriftReported        Action = "drift.reported"
	CodeCreated          Action = "enrollment_code.created"
	CodeBurned           Action = "enrollment_code.burned"
	DeviceEnrolled       Action = "device.enrolled"
	EnrollmentRefused    Action = "enrollment.refused"
	DeviceRevoked        Action = "device.revoked"
	RevocationQueued     Action = "device.revocation_queued"
	RotationReassigned   Action = "rotation.reassigned"
	DeviceWentBack       Action = "device.store_went_backwards"
	MessageUndecryptable Action = "message.undecryptable"
	MessageUnusable      Action = "message.unusable"
	DatabaseRestored     Action = "database.restored"
	DeviceGreeted        Action = "device.greeted"
	BotLogin             Action = "bot.login"
	LeaseTaken           Action = "bot.lease_taken"
)
