// Package sas is one side of a verification by short authentication string between two devices of one user: m.sas.v1
// over to-device messages, with curve25519-hkdf-sha256, sha256 and hkdf-hmac-sha256.v2, by emoji and decimals
// (client-server API, "Key verification framework" and "Short Authentication String (SAS) verification"). It is pure:
// messages go in and come out, and the person's word is asked for by nobody but the caller. Fresh keys are all it takes
// from elsewhere.
//
// Nothing that the homeserver says is believed. The caller brings the keys it presents, and they count as verified only
// when the persons at both ends saw the same symbols, and the other side's MACs fit these keys.
package sas

import (
	"crypto/ecdh"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Device is a device of the user, with the key that the homeserver presents for it.
type Device struct {
	ID         id.DeviceID
	SigningKey id.Ed25519
}

// Side is who verifies. MasterKey is the user's cross-signing master key as the homeserver presents it, which the peer has
// to vouch for, and Others are his other devices that may be the peer.
type Side struct {
	UserID    id.UserID
	Device    Device
	MasterKey id.Ed25519
	Others    []Device
}

// Message is to be sent to these devices of the user, outside Olm.
type Message struct {
	Type    string
	To      []id.DeviceID
	Content json.RawMessage
}

// Stage is how far a verification is.
type Stage string

// The stages. Only in Comparing is there something to show and to confirm. Done and Cancelled are ends.
const (
	Requested Stage = "requested" // we asked, nobody is ready
	Ready     Stage = "ready"     // both are, nobody started
	Started   Stage = "started"   // we started, and wait for the other's acceptance
	Accepted  Stage = "accepted"  // the other started, and we wait for its key
	KeySent   Stage = "key sent"  // we started, and wait for the other's key
	Comparing Stage = "comparing" // the persons compare what both sides show
	Confirmed Stage = "confirmed" // ours did; the other side's MACs, or its last word, are missing
	Done      Stage = "done"      // both sides are
	Cancelled Stage = "cancelled" // by either side
)

// Life is how long a request is good for, by its timestamp; one from further ahead than Ahead is none (client-server API,
// m.key.verification.request).
const (
	Life  = 10 * time.Minute
	Ahead = 5 * time.Minute
)

// The event types.
var (
	typeRequest = event.ToDeviceVerificationRequest.Type
	typeReady   = event.ToDeviceVerificationReady.Type
	typeStart   = event.ToDeviceVerificationStart.Type
	typeAccept  = event.ToDeviceVerificationAccept.Type
	typeKey     = event.ToDeviceVerificationKey.Type
	typeMAC     = event.ToDeviceVerificationMAC.Type
	typeDone    = event.ToDeviceVerificationDone.Type
	typeCancel  = event.ToDeviceVerificationCancel.Type
)

// Types are all event types of a verification.
func Types() []string {
	return []string{typeRequest, typeReady, typeStart, typeAccept, typeKey, typeMAC, typeDone, typeCancel}
}

// Verification is one side of one verification. It is not safe for concurrent use.
type Verification struct {
	side        Side
	transaction id.VerificationTransactionID
	stage       Stage
	asked       []id.DeviceID
	peer        Device

	// start is the canonical JSON of the m.key.verification.start that counts.
	start      []byte
	weStarted  bool
	methods    []event.SASMethod
	commitment []byte
	private    *ecdh.PrivateKey
	secret     []byte
	theirKey   string
	symbols    [6]byte

	vouched    bool // the other side's MACs fit its key and the master key
	sentDone   bool
	heardDone  bool
	cancelCode event.VerificationCancelCode
	cancelWhy  string
	cancelOurs bool
}

// Ask begins a verification with whichever of these devices answers first.
func Ask(side Side, transaction id.VerificationTransactionID, now time.Time) (*Verification, Message) {
	v := &Verification{side: side, transaction: transaction, stage: Requested}
	for _, device := range side.Others {
		v.asked = append(v.asked, device.ID)
	}
	return v, v.message(typeRequest, v.asked, map[string]any{"from_device": side.Device.ID, "methods": []event.VerificationMethod{event.VerificationMethodSAS},
		"timestamp": now.UnixMilli()})
}

// Request is what an m.key.verification.request says.
type Request struct {
	From        id.DeviceID
	Transaction id.VerificationTransactionID
	At          time.Time
	SAS         bool
}

// ReadRequest reads the content of an m.key.verification.request; ok is false where it is none, or not of now.
func ReadRequest(content json.RawMessage, now time.Time) (request Request, ok bool) {
	var c struct {
		From        id.DeviceID                  `json:"from_device"`
		Transaction id.VerificationTransactionID `json:"transaction_id"`
		Methods     []event.VerificationMethod   `json:"methods"`
		Timestamp   int64                        `json:"timestamp"`
	}
	if json.Unmarshal(content, &c) != nil || c.From == "" || c.Transaction == "" {
		return Request{}, false
	}
	request = Request{c.From, c.Transaction, time.UnixMilli(c.Timestamp), slices.Contains(c.Methods, event.VerificationMethodSAS)}
	return request, now.Sub(request.At) < Life && request.At.Sub(now) < Ahead
}

// Answer agrees to a request of another device; ok is false where it is not one of side.Others, or cannot do m.sas.v1.
func Answer(side Side, request Request) (v *Verification, ready Message, ok bool) {
	i := slices.IndexFunc(side.Others, func(d Device) bool { return d.ID == request.From })
	if i < 0 || !request.SAS {
		return nil, Message{}, false
	}
	v = &Verification{side: side, transaction: request.Transaction, stage: Ready, peer: side.Others[i]}
	return v, v.message(typeReady, v.to(), map[string]any{"from_device": side.Device.ID, "methods": []event.VerificationMethod{event.VerificationMethodSAS}}), true
}

// Stage is how far it is.
func (v *Verification) Stage() Stage { return v.stage }

// Peer is the other device, once one answered.
func (v *Verification) Peer() id.DeviceID { return v.peer.ID }

// Transaction is the verification's id, which all its messages carry.
func (v *Verification) Transaction() id.VerificationTransactionID { return v.transaction }

// Cancellation is why it was cancelled, and whether by us. The reason is the other side's free text if it was not.
func (v *Verification) Cancellation() (code event.VerificationCancelCode, reason string, byUs bool) {
	return v.cancelCode, v.cancelWhy, v.cancelOurs
}

// Start starts m.sas.v1 where both are ready; at any other stage it does nothing. Where both sides start, the device with
// the smaller id is the one that did.
func (v *Verification) Start() []Message {
	if v.stage != Ready {
		return nil
	}
	message := v.message(typeStart, v.to(), &event.VerificationStartEventContent{
		FromDevice: v.side.Device.ID, Method: event.VerificationMethodSAS, Hashes: []event.VerificationHashMethod{event.VerificationHashMethodSHA256},
		KeyAgreementProtocols:      []event.KeyAgreementProtocol{event.KeyAgreementProtocolCurve25519HKDFSHA256},
		MessageAuthenticationCodes: []event.MACMethod{event.MACMethodHKDFHMACSHA256V2},
		ShortAuthenticationString:  []event.SASMethod{event.SASMethodDecimal, event.SASMethodEmoji},
	})
	v.start, v.weStarted, v.stage = canonical(message.Content), true, Started
	return []Message{message}
}

// Confirm is the person's word that both sides show the same. It does nothing unless there is something to compare.
func (v *Verification) Confirm() []Message {
	if v.stage != Comparing {
		return nil
	}
	v.stage = Confirmed
	return append([]Message{v.mac()}, v.finish()...)
}

// Mismatch is the person's word that they differ.
func (v *Verification) Mismatch() []Message {
	return v.Cancel(event.VerificationCancelCodeSASMismatch, "the symbols are not the same")
}

// Cancel ends the verification, and tells everybody who has heard of it.
func (v *Verification) Cancel(code event.VerificationCancelCode, reason string) []Message {
	if v.stage == Done || v.stage == Cancelled {
		return nil
	}
	to := v.to()
	v.stage, v.cancelCode, v.cancelWhy, v.cancelOurs = Cancelled, code, reason, true
	return []Message{v.cancellation(to, code, reason)}
}

func (v *Verification) cancellation(to []id.DeviceID, code event.VerificationCancelCode, reason string) Message {
	return v.message(typeCancel, to, map[string]any{"code": code, "reason": reason})
}

// to is the peer, or everybody who was asked while none answered.
func (v *Verification) to() []id.DeviceID {
	if v.peer.ID == "" {
		return v.asked
	}
	return []id.DeviceID{v.peer.ID}
}

// message adds the transaction id to a content.
func (v *Verification) message(eventType string, to []id.DeviceID, content any) Message {
	fields := map[string]json.RawMessage{}
	encoded, err := json.Marshal(content)
	if err == nil {
		err = json.Unmarshal(encoded, &fields)
	}
	if err == nil {
		fields["transaction_id"], err = json.Marshal(v.transaction)
	}
	if err == nil {
		encoded, err = json.Marshal(fields)
	}
	if err != nil {
		// Every content here is made of strings, lists and numbers of our own.
		panic(fmt.Sprintf("sas: encoding %s: %v", eventType, err))
	}
	return Message{Type: eventType, To: to, Content: encoded}
}
