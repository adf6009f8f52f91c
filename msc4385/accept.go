package msc4385

// Sender is who sent an event, as far as the receiver proved it. CrossSigned means that the chain from the sending
// device reaches the master key that the receiver trusts for its own user; a chain to any other key does not count.
type Sender struct {
	UserID      string
	CrossSigned bool
	// ThisDevice is true for the receiver itself.
	ThisDevice bool
	// Dehydrated is true for a dehydrated device (MSC3814): it runs nowhere, so it has nothing to send.
	Dehydrated bool
}

// Verdict is what a policy says of a secret, and what [Decide] makes of an event.
type Verdict string

// The verdicts. Ask is the prompt that the proposal allows: nothing is used before the user agreed.
const (
	Accept Verdict = "accept"
	Ask    Verdict = "ask"
	Refuse Verdict = "refuse"
)

// Decide applies the rules to an unsolicited secret: only from a cross-signed device of the same user, own, and then as
// the policy says for its name. A name that the policy does not know, or knows with an unknown verdict, is refused. The
// reason is one word for logs, empty unless refused: another_user, from_this_device, dehydrated_device,
// device_not_cross_signed or secret_not_accepted. A response to a request is not for Decide: it is handled as before.
func Decide(own string, sender Sender, name string, policy map[string]Verdict) (verdict Verdict, reason string) {
	switch {
	case own == "" || sender.UserID != own:
		return Refuse, "another_user"
	case sender.ThisDevice:
		return Refuse, "from_this_device"
	case sender.Dehydrated:
		return Refuse, "dehydrated_device"
	case !sender.CrossSigned:
		return Refuse, "device_not_cross_signed"
	}
	switch verdict := policy[name]; verdict {
	case Accept, Ask:
		return verdict, ""
	}
	return Refuse, "secret_not_accepted"
}

// Pick chooses among the pushes of one secret, given in the order of their arrival, the newest one that fits: for the
// key backup, whose derived public key is that of the server's current version. Only unsolicited messages are
// considered. ok is false if none fits; then keep them, since a push may arrive before the change it belongs to is seen.
func Pick(pushes []Message, fits func(Secret) bool) (newest Message, ok bool) {
	for i := len(pushes) - 1; i >= 0; i-- {
		if pushes[i].Kind == Unsolicited && fits(pushes[i].Secret) {
			return pushes[i], true
		}
	}
	return Message{}, false
}
