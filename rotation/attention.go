package rotation

import "github.com/keyherald/keyherald/protocol"

// Attention says who has to do what about a cause of needs_attention.
type Attention struct {
	Cause protocol.ErrorCode
	// Who acts: admin, user or operator.
	Who string
	// NextAction is a sentence an admin can follow.
	NextAction string
}

// attentions is the one table of causes. What a device answers to nobody (a trigger of a stranger, or one that it cannot
// read) is not among them.
var attentions = []Attention{
	{protocol.AttentionOldKeyMissing, "user", "the private key of the current key backup is nowhere to be had, and the user's other devices have been asked for it: let him open a verified client that has it, or provide his recovery key (keyherald-device provide-recovery-key), then retry"},
	{protocol.AttentionRecoveryCopyNotWritable, "user", "the recovery key the device holds does not open the user's secret storage: provide the present one (keyherald-device provide-recovery-key), or allow a stale copy (recovery: allow_stale) in the account file"},
	{protocol.AttentionKeyNotUsable, "admin", "the KMS holds something that is not a 32-byte key (base64 or Matrix recovery key): put a right key there as a new version"},
	{protocol.AttentionKeyMismatch, "admin", "the KMS's metadata names another public key than the key derives: correct the metadata or put a new version"},
	{protocol.AttentionKMSForbidden, "operator", "the KMS refuses the device: give its credentials read access to exactly this user's path"},
	{protocol.AttentionBackupChanged, "user", "the user or another client changed the key backup during the rotation: ask him, then rotate again"},
	{protocol.AttentionNotCrossSigned, "operator", "the managed device is no longer cross-signed by the user, or his identity changed: verify it again, then release it (keyherald reenrollments) or enroll it with a code"},
	{protocol.AttentionCarryOverIncomplete, "admin", "some room keys of the old key backup cannot be decrypted and stay there alone; the old version is kept; look at the device's log for the session ids"},
	{protocol.AttentionTriggerRefused, "operator", "the homeserver refuses the message to the device for good: its answer is in the server's log and outbox; mend it there, then retry"},
	{protocol.RejectedOtherUser, "operator", "the device refused a trigger for another user: check the mapping of the notification source"},
	{protocol.RejectedSecret, "operator", "the device refused a secret it does not rotate: check the mapping of the notification source"},
	{protocol.RejectedKMS, "operator", "the KMS or path is not the one in the device's own account file: make mapping and account file agree"},
	{protocol.RejectedSequence, "operator", "the device has seen a higher sequence: if the server's database was restored, declare it; the next trigger goes above the reported mark"},
	{protocol.RejectedExpired, "admin", "the trigger came after its expiry: check the clocks of server and device, then rotate again"},
	{protocol.RejectedNotYetIssued, "operator", "the trigger comes from the future: check the clocks of server and device"},
	{protocol.RejectedAction, "operator", "the device does not know this action: update keyherald-device"},
	{protocol.RejectedUserOptedOut, "user", "the user switched key backup off in his client, and nothing is done against his will: if he is to have a key backup, let him switch it on there, then retry; else cancel the rotation"},
	{protocol.StoreWentBackwards, "operator", "the managed device's store went back to an earlier state (a restored snapshot or backup, or a copy), so the device is enrolled no more: stop it, move its store (its .db file and those beside it with the same name) away, log its old device out of the user's account, and enroll it again with a new code (keyherald enroll), which logs it in as a new device; a store that was copied and not restored is a leak: rotate"},
}

// Attentions returns the table of causes, in its order.
func Attentions() []Attention { return append([]Attention(nil), attentions...) }

// NextAction says what to do about a cause; unknown causes point to the device's log.
func NextAction(cause protocol.ErrorCode) string {
	for _, a := range attentions {
		if a.Cause == cause {
			return a.Who + ": " + a.NextAction
		}
	}
	return "operator: look at the device's log (keyherald-device status) for the reason"
}
