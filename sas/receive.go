package sas

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Receive takes a message of the verification and returns what is to be sent. Messages of other verifications, and those
// that come after the end, are passed over.
func (v *Verification) Receive(eventType string, content json.RawMessage) []Message {
	var head struct {
		Transaction id.VerificationTransactionID `json:"transaction_id"`
	}
	if v.stage == Done || v.stage == Cancelled || json.Unmarshal(content, &head) != nil || head.Transaction != v.transaction {
		return nil
	}
	switch eventType {
	case typeReady:
		return v.ready(content)
	case typeStart:
		return v.started(content)
	case typeAccept:
		return v.accepted(content)
	case typeKey:
		return v.key(content)
	case typeMAC:
		return v.macs(content)
	case typeDone:
		if v.stage != Confirmed || !v.vouched {
			return v.unexpected("done")
		}
		v.heardDone = true
		return v.finish()
	case typeCancel:
		return v.cancelled(content)
	}
	return nil
}

func (v *Verification) unexpected(what string) []Message {
	return v.Cancel(event.VerificationCancelCodeUnexpectedMessage, fmt.Sprintf("%s came when the verification was %s", what, v.stage))
}

func (v *Verification) invalid(what string) []Message {
	return v.Cancel(event.VerificationCancelCodeInvalidMessage, what+" is malformed")
}

func (v *Verification) ready(content json.RawMessage) []Message {
	var c event.VerificationReadyEventContent
	if json.Unmarshal(content, &c) != nil {
		return v.invalid("ready")
	}
	i := slices.IndexFunc(v.side.Others, func(d Device) bool { return d.ID == c.FromDevice })
	switch {
	case v.stage != Requested && c.FromDevice != v.peer.ID:
		// It has been told, or is being told, that another one was first.
		return nil
	case v.stage != Requested:
		return v.unexpected("ready")
	case i < 0:
		return nil
	case !slices.Contains(c.Methods, event.VerificationMethodSAS):
		return v.Cancel(event.VerificationCancelCodeUnknownMethod, "the other device cannot compare symbols")
	}
	v.peer, v.stage = v.side.Others[i], Ready
	others := slices.DeleteFunc(slices.Clone(v.asked), func(d id.DeviceID) bool { return d == v.peer.ID })
	if len(others) == 0 {
		return nil
	}
	return []Message{v.cancellation(others, event.VerificationCancelCodeAccepted, "another device answered")}
}

func (v *Verification) started(content json.RawMessage) []Message {
	var c event.VerificationStartEventContent
	if json.Unmarshal(content, &c) != nil {
		return v.invalid("start")
	}
	switch {
	case v.stage != Ready && v.stage != Started || c.FromDevice != v.peer.ID:
		return v.unexpected("start")
	case c.Method != event.VerificationMethodSAS && v.stage == Started:
		return v.Cancel(event.VerificationCancelCodeUnexpectedMessage, "both sides started, with different methods")
	case c.Method != event.VerificationMethodSAS:
		return v.Cancel(event.VerificationCancelCodeUnknownMethod, "only m.sas.v1 is known")
	case v.stage == Started && v.side.Device.ID < v.peer.ID:
		// Both started: the device with the smaller id did, and the other's word is passed over.
		return nil
	}
	for _, method := range c.ShortAuthenticationString {
		if method == event.SASMethodDecimal || method == event.SASMethodEmoji {
			v.methods = append(v.methods, method)
		}
	}
	if len(v.methods) == 0 || !slices.Contains(c.Hashes, event.VerificationHashMethodSHA256) ||
		!slices.Contains(c.KeyAgreementProtocols, event.KeyAgreementProtocolCurve25519HKDFSHA256) ||
		!slices.Contains(c.MessageAuthenticationCodes, event.MACMethodHKDFHMACSHA256V2) {
		return v.Cancel(event.VerificationCancelCodeUnknownMethod, "there is no way of comparing that both sides know")
	}
	v.start, v.weStarted = canonical(content), false
	if problem := v.generate(); problem != nil {
		return problem
	}
	v.stage = Accepted
	return []Message{v.message(typeAccept, v.to(), &event.VerificationAcceptEventContent{
		Commitment: commitment(v.ourKey(), v.start), Hash: event.VerificationHashMethodSHA256, KeyAgreementProtocol: event.KeyAgreementProtocolCurve25519HKDFSHA256,
		MessageAuthenticationCode: event.MACMethodHKDFHMACSHA256V2, ShortAuthenticationString: v.methods,
	})}
}

func (v *Verification) accepted(content json.RawMessage) []Message {
	var c event.VerificationAcceptEventContent
	if json.Unmarshal(content, &c) != nil {
		return v.invalid("accept")
	}
	if v.stage != Started {
		return v.unexpected("accept")
	}
	known := len(c.ShortAuthenticationString) > 0
	for _, method := range c.ShortAuthenticationString {
		known = known && (method == event.SASMethodDecimal || method == event.SASMethodEmoji)
	}
	if !known || c.Hash != event.VerificationHashMethodSHA256 || c.KeyAgreementProtocol != event.KeyAgreementProtocolCurve25519HKDFSHA256 ||
		c.MessageAuthenticationCode != event.MACMethodHKDFHMACSHA256V2 {
		return v.Cancel(event.VerificationCancelCodeUnknownMethod, "the other device chose what was not offered")
	}
	if len(c.Commitment) != 32 {
		return v.invalid("accept")
	}
	if problem := v.generate(); problem != nil {
		return problem
	}
	v.methods, v.commitment, v.stage = c.ShortAuthenticationString, c.Commitment, KeySent
	return []Message{v.keyMessage()}
}

func (v *Verification) generate() []Message {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return v.Cancel(event.VerificationCancelCodeUser, "no key could be made")
	}
	v.private = private
	return nil
}

func (v *Verification) keyMessage() Message {
	return v.message(typeKey, v.to(), &event.VerificationKeyEventContent{Key: v.private.PublicKey().Bytes()})
}

func (v *Verification) key(content json.RawMessage) []Message {
	var c event.VerificationKeyEventContent
	if json.Unmarshal(content, &c) != nil {
		return v.invalid("key")
	}
	if v.stage != KeySent && v.stage != Accepted {
		return v.unexpected("key")
	}
	theirs, err := ecdh.X25519().NewPublicKey(c.Key)
	if err != nil {
		return v.invalid("key")
	}
	v.theirKey = encode(theirs.Bytes())
	if v.stage == KeySent && !hmac.Equal(commitment(v.theirKey, v.start), v.commitment) {
		return v.Cancel(event.VerificationCancelCodeCommitmentMismatch, "the key is not the one that was committed to")
	}
	// A key of low order gives no secret, and is an error here.
	if v.secret, err = v.private.ECDH(theirs); err != nil {
		return v.invalid("key")
	}
	v.symbols = v.derive()
	first := v.stage == Accepted
	v.stage = Comparing
	if first {
		return []Message{v.keyMessage()}
	}
	return nil
}

// macs checks the other side's MACs. Its person may have been quicker than ours: then they wait for ours.
func (v *Verification) macs(content json.RawMessage) []Message {
	var c event.VerificationMACEventContent
	if json.Unmarshal(content, &c) != nil {
		return v.invalid("mac")
	}
	if v.stage != Comparing && v.stage != Confirmed || v.vouched {
		return v.unexpected("mac")
	}
	ids := make([]string, 0, len(c.MAC))
	for keyID := range c.MAC {
		ids = append(ids, keyID.String())
	}
	slices.Sort(ids)
	if !hmac.Equal(v.theirMAC(keyIDs, strings.Join(ids, ",")), c.Keys) {
		return v.Cancel(event.VerificationCancelCodeKeyMismatch, "the list of keys is not authentic")
	}
	// What else the other side vouches for is not asked about; these two it must know as we do.
	for _, key := range v.keysOf(v.peer) {
		mac, there := c.MAC[key.id]
		if !there {
			return v.Cancel(event.VerificationCancelCodeKeyMismatch, "the other device does not vouch for the keys that the homeserver presents")
		}
		if !hmac.Equal(v.theirMAC(key.id.String(), key.key), mac) {
			return v.Cancel(event.VerificationCancelCodeKeyMismatch, "a key is not the one that the homeserver presents")
		}
	}
	v.vouched = true
	return v.finish()
}

// finish says that we are done once both persons confirmed, and ends when the other side has said so too.
func (v *Verification) finish() []Message {
	var out []Message
	if v.stage == Confirmed && v.vouched && !v.sentDone {
		v.sentDone = true
		out = []Message{v.message(typeDone, v.to(), struct{}{})}
	}
	if v.sentDone && v.heardDone {
		v.stage = Done
	}
	return out
}

func (v *Verification) cancelled(content json.RawMessage) []Message {
	var c event.VerificationCancelEventContent
	if json.Unmarshal(content, &c) != nil {
		c.Code = event.VerificationCancelCodeInvalidMessage
	}
	var tell []Message
	if v.stage == Requested && len(v.asked) > 1 {
		// One device said no for all of them: the others go on asking their person otherwise.
		tell = []Message{v.cancellation(v.asked, event.VerificationCancelCodeUser, "it was declined on another device")}
	}
	v.stage, v.cancelCode, v.cancelWhy = Cancelled, c.Code, c.Reason
	return tell
}
