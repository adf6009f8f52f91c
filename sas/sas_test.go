package sas

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

const user = id.UserID("@alice:example.org")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// key is a text as long as an Ed25519 key's, which is all that a MAC needs.
func key(name string) id.Ed25519 {
	return id.Ed25519(strings.Repeat(name, 43)[:43])
}

var (
	ours   = Device{"AAAA", key("a")}
	theirs = Device{"BBBB", key("b")}
	third  = Device{"CCCC", key("c")}
)

func sideOf(device Device, others ...Device) Side {
	return Side{UserID: user, Device: device, MasterKey: key("m"), Others: others}
}

// pair is two sides that are ready: the first asked.
func pair(t interface{ Fatal(...any) }) (asked, answered *Verification) {
	asked, request := Ask(sideOf(ours, theirs), "txn", now)
	read, ok := ReadRequest(request.Content, now.Add(time.Second))
	if !ok {
		t.Fatal("the request is not read")
	}
	answered, ready, ok := Answer(sideOf(theirs, ours), read)
	if !ok {
		t.Fatal("the request is not answered")
	}
	if out := asked.Receive(ready.Type, ready.Content); len(out) != 0 || asked.Stage() != Ready {
		t.Fatal("after the answer it is", asked.Stage())
	}
	return asked, answered
}

// play hands messages over, each to the other side, until there are none.
func play(a, b *Verification, fromA, fromB []Message) {
	for len(fromA)+len(fromB) > 0 {
		var nextA, nextB []Message
		for _, m := range fromA {
			nextB = append(nextB, b.Receive(m.Type, m.Content)...)
		}
		for _, m := range fromB {
			nextA = append(nextA, a.Receive(m.Type, m.Content)...)
		}
		fromA, fromB = nextA, nextB
	}
}

func TestBothSidesShowTheSameAndAreDoneWhoeverStarts(t *testing.T) {
	for name, starts := range map[string][2]bool{"the one that asked": {true, false}, "the one that answered": {false, true}, "both at once": {true, true}} {
		for confirmsFirst := range 2 {
			t.Run(fmt.Sprintf("%s, side %d confirms first", name, confirmsFirst), func(t *testing.T) {
				a, b := pair(t)
				var fromA, fromB []Message
				if starts[0] {
					fromA = a.Start()
				}
				if starts[1] {
					fromB = b.Start()
				}
				play(a, b, fromA, fromB)
				if a.Stage() != Comparing || b.Stage() != Comparing {
					t.Fatalf("they are %s and %s", a.Stage(), b.Stage())
				}
				if !slices.Equal(a.Emoji(), b.Emoji()) || !slices.Equal(a.Decimals(), b.Decimals()) || len(a.Emoji()) != 7 || len(a.Decimals()) != 3 {
					t.Errorf("they show %v %v and %v %v", a.Emoji(), a.Decimals(), b.Emoji(), b.Decimals())
				}
				if confirmsFirst == 0 {
					play(a, b, a.Confirm(), nil)
					play(a, b, nil, b.Confirm())
				} else {
					play(a, b, nil, b.Confirm())
					play(a, b, a.Confirm(), nil)
				}
				if a.Stage() != Done || b.Stage() != Done {
					t.Errorf("they are %s and %s", a.Stage(), b.Stage())
				}
				if a.Peer() != theirs.ID || b.Peer() != ours.ID {
					t.Errorf("their peers are %s and %s", a.Peer(), b.Peer())
				}
				if a.Emoji() != nil || a.Decimals() != nil || a.Confirm() != nil || a.Cancel("m.user", "") != nil || a.Receive(typeCancel, json.RawMessage(`{"transaction_id":"txn"}`)) != nil {
					t.Error("after the end there is still something to do")
				}
			})
		}
	}
}

func TestARequestIsReadIfItIsOfNow(t *testing.T) {
	tests := []struct {
		name, content string
		ok            bool
	}{
		{"a request", `{"from_device":"BBBB","transaction_id":"t","methods":["m.sas.v1"],"timestamp":%d}`, true},
		{"one that is too old", `{"from_device":"BBBB","transaction_id":"t","methods":["m.sas.v1"],"timestamp":1000}`, false},
		{"one from far ahead", `{"from_device":"BBBB","transaction_id":"t","methods":["m.sas.v1"],"timestamp":99999999999999}`, false},
		{"one without a device", `{"transaction_id":"t","methods":["m.sas.v1"],"timestamp":%d}`, false},
		{"one without a transaction", `{"from_device":"BBBB","methods":["m.sas.v1"],"timestamp":%d}`, false},
		{"no JSON", `{`, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, ok := ReadRequest(json.RawMessage(strings.ReplaceAll(test.content, "%d", fmt.Sprint(now.UnixMilli()))), now)
			if ok != test.ok {
				t.Errorf("got %t", ok)
			}
		})
	}
	for name, request := range map[string]Request{"of a device that may not be the peer": {From: third.ID, Transaction: "t", SAS: true}, "without m.sas.v1": {From: theirs.ID, Transaction: "t"}} {
		if _, _, ok := Answer(sideOf(ours, theirs), request); ok {
			t.Errorf("a request %s is answered", name)
		}
	}
}

// sent is the only message, of this type.
func sent(t *testing.T, out []Message, eventType string) map[string]any {
	t.Helper()
	if len(out) != 1 || out[0].Type != eventType {
		t.Fatalf("%d messages go out, want one %s", len(out), eventType)
	}
	var content map[string]any
	if err := json.Unmarshal(out[0].Content, &content); err != nil {
		t.Fatal(err)
	}
	return content
}

func TestTheOthersAreToldWhenOneDeviceAnswered(t *testing.T) {
	v, request := Ask(sideOf(ours, theirs, third), "txn", now)
	if !slices.Equal(request.To, []id.DeviceID{theirs.ID, third.ID}) {
		t.Fatalf("the request goes to %v", request.To)
	}
	out := v.Receive(typeReady, json.RawMessage(`{"transaction_id":"txn","from_device":"BBBB","methods":["m.sas.v1"]}`))
	if content := sent(t, out, typeCancel); content["code"] != "m.accepted" || !slices.Equal(out[0].To, []id.DeviceID{third.ID}) {
		t.Errorf("%v is told %v", out[0].To, content)
	}
	// The other one was just as quick: it has been told, and changes nothing.
	if out := v.Receive(typeReady, json.RawMessage(`{"transaction_id":"txn","from_device":"CCCC","methods":["m.sas.v1"]}`)); out != nil || v.Stage() != Ready || v.Peer() != theirs.ID {
		t.Errorf("then it is %s with %s", v.Stage(), v.Peer())
	}
}

// What arrives at the wrong time, is malformed, or offers nothing that we know ends the verification with its code.
func TestWhatDoesNotBelongEndsItWithItsCode(t *testing.T) {
	at := map[Stage]func(t *testing.T) *Verification{
		Requested: func(*testing.T) *Verification { v, _ := Ask(sideOf(ours, theirs), "txn", now); return v },
		Ready:     func(t *testing.T) *Verification { v, _ := pair(t); return v },
		Started:   func(t *testing.T) *Verification { v, _ := pair(t); v.Start(); return v },
		Accepted: func(t *testing.T) *Verification {
			a, b := pair(t)
			a.Receive(typeStart, b.Start()[0].Content)
			return a
		},
		KeySent: func(t *testing.T) *Verification {
			a, b := pair(t)
			a.Receive(typeAccept, b.Receive(typeStart, a.Start()[0].Content)[0].Content)
			return a
		},
		Comparing: func(t *testing.T) *Verification { a, b := pair(t); play(a, b, a.Start(), nil); return a },
		Confirmed: func(t *testing.T) *Verification {
			a, b := pair(t)
			play(a, b, a.Start(), nil)
			a.Confirm()
			return a
		},
	}
	const goodStart = `{"transaction_id":"txn","from_device":"BBBB","method":"m.sas.v1","hashes":["sha256"],"key_agreement_protocols":["curve25519-hkdf-sha256"],` +
		`"message_authentication_codes":["hkdf-hmac-sha256.v2"],"short_authentication_string":["decimal","emoji"]}`
	goodAccept := `{"transaction_id":"txn","commitment":"` + encode(make([]byte, 32)) + `","hash":"sha256","key_agreement_protocol":"curve25519-hkdf-sha256",` +
		`"message_authentication_code":"hkdf-hmac-sha256.v2","short_authentication_string":["decimal"]}`
	zero := `{"transaction_id":"txn","key":"` + encode(make([]byte, 32)) + `"}`
	tests := []struct {
		name            string
		at              Stage
		eventType, with string
		code            event.VerificationCancelCode
	}{
		{"a start before anybody is ready", Requested, typeStart, goodStart, "m.unexpected_message"},
		{"an answer that cannot do m.sas.v1", Requested, typeReady, `{"transaction_id":"txn","from_device":"BBBB","methods":["m.qr_code.scan.v1"]}`, "m.unknown_method"},
		{"a second answer", Ready, typeReady, `{"transaction_id":"txn","from_device":"BBBB","methods":["m.sas.v1"]}`, "m.unexpected_message"},
		{"a start by another device", Ready, typeStart, strings.Replace(goodStart, "BBBB", "CCCC", 1), "m.unexpected_message"},
		{"a start of another method", Ready, typeStart, `{"transaction_id":"txn","from_device":"BBBB","method":"m.reciprocate.v1"}`, "m.unknown_method"},
		{"both start, with other methods", Started, typeStart, `{"transaction_id":"txn","from_device":"BBBB","method":"m.reciprocate.v1"}`, "m.unexpected_message"},
		{"a start with the broken MAC of libolm alone", Ready, typeStart, strings.Replace(goodStart, ".v2", "", 1), "m.unknown_method"},
		{"a start with the key agreement that binds no keys", Ready, typeStart, strings.Replace(goodStart, "curve25519-hkdf-sha256", "curve25519", 1), "m.unknown_method"},
		{"a start without a known hash", Ready, typeStart, strings.Replace(goodStart, "sha256\"]", "md5\"]", 1), "m.unknown_method"},
		{"a start with nothing to show", Ready, typeStart, strings.Replace(goodStart, `"decimal","emoji"`, `"song"`, 1), "m.unknown_method"},
		{"a start that is malformed", Ready, typeStart, `{"transaction_id":"txn","from_device":5}`, "m.invalid_message"},
		{"a second start", Accepted, typeStart, goodStart, "m.unexpected_message"},
		{"an acceptance before a start", Ready, typeAccept, goodAccept, "m.unexpected_message"},
		{"an acceptance of what was not offered", Started, typeAccept, strings.Replace(goodAccept, ".v2", "", 1), "m.unknown_method"},
		{"an acceptance that shows nothing", Started, typeAccept, strings.Replace(goodAccept, `["decimal"]`, `[]`, 1), "m.unknown_method"},
		{"an acceptance without a commitment", Started, typeAccept, strings.Replace(goodAccept, encode(make([]byte, 32)), "", 1), "m.invalid_message"},
		{"a second acceptance", KeySent, typeAccept, goodAccept, "m.unexpected_message"},
		{"a key that was not committed to", KeySent, typeKey, `{"transaction_id":"txn","key":"` + encode(bytes.Repeat([]byte{9}, 32)) + `"}`, "m.mismatched_commitment"},
		{"a key before its time", Started, typeKey, zero, "m.unexpected_message"},
		{"a key of low order", Accepted, typeKey, zero, "m.invalid_message"},
		{"a key that is too short", Accepted, typeKey, `{"transaction_id":"txn","key":"AAAA"}`, "m.invalid_message"},
		{"a second key", Comparing, typeKey, zero, "m.unexpected_message"},
		{"MACs before there is a secret", KeySent, typeMAC, `{"transaction_id":"txn","keys":"AAAA","mac":{}}`, "m.unexpected_message"},
		{"MACs that are none", Comparing, typeMAC, `{"transaction_id":"txn","keys":"AAAA","mac":{"ed25519:BBBB":"AAAA"}}`, "m.key_mismatch"},
		{"a last word too early", Comparing, typeDone, `{"transaction_id":"txn"}`, "m.unexpected_message"},
		{"a last word before the MACs", Confirmed, typeDone, `{"transaction_id":"txn"}`, "m.unexpected_message"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := at[test.at](t)
			if v.Stage() != test.at {
				t.Fatalf("it is %s, want %s", v.Stage(), test.at)
			}
			out := v.Receive(test.eventType, json.RawMessage(test.with))
			if content := sent(t, out, typeCancel); content["code"] != string(test.code) || content["transaction_id"] != "txn" {
				t.Errorf("it is cancelled with %v", content)
			}
			if code, _, byUs := v.Cancellation(); v.Stage() != Cancelled || code != test.code || !byUs {
				t.Errorf("it is %s with %s", v.Stage(), code)
			}
		})
	}
	for stage, make := range at {
		v := make(t)
		v.Receive(typeCancel, json.RawMessage(`{"transaction_id":"txn","code":"m.user","reason":"no"}`))
		if code, reason, byUs := v.Cancellation(); v.Stage() != Cancelled || code != "m.user" || reason != "no" || byUs {
			t.Errorf("cancelled when it was %s, it is %s with %s", stage, v.Stage(), code)
		}
		v = make(t)
		for _, content := range []string{`{"transaction_id":"another"}`, `{}`, `{`, `null`, ``} {
			if out := v.Receive(typeCancel, json.RawMessage(content)); out != nil || v.Stage() != stage {
				t.Errorf("%s changes it to %s", content, v.Stage())
			}
		}
	}
}

func TestAPersonWhoSeesSomethingElseEndsIt(t *testing.T) {
	a, b := pair(t)
	play(a, b, a.Start(), nil)
	play(a, b, a.Mismatch(), nil)
	for _, v := range []*Verification{a, b} {
		if code, _, _ := v.Cancellation(); v.Stage() != Cancelled || code != event.VerificationCancelCodeSASMismatch {
			t.Errorf("it is %s with %s", v.Stage(), code)
		}
	}
}

// The homeserver presents other keys to one side: with the same symbols seen, the MACs do not fit.
func TestKeysThatTheHomeserverMadeUpAreFound(t *testing.T) {
	tests := []struct {
		name string
		lied func(*Side)
	}{
		{"another key of the peer", func(s *Side) { s.Others[0].SigningKey = key("x") }},
		{"another key of ours", func(s *Side) { s.Device.SigningKey = key("x") }},
		{"another master key", func(s *Side) { s.MasterKey = key("x") }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, b := pair(t)
			a.side.Others = slices.Clone(a.side.Others)
			test.lied(&a.side)
			a.peer = a.side.Others[0]
			play(a, b, a.Start(), nil)
			play(a, b, a.Confirm(), b.Confirm())
			if a.Stage() == Done || b.Stage() == Done {
				t.Errorf("they are %s and %s", a.Stage(), b.Stage())
			}
		})
	}
}

// Whoever is in between may drop, repeat, delay, alter and invent: nobody is done who was not heard by the true peer, and
// whoever exchanged keys with somebody else shows other symbols.
func TestWhateverTheHomeserverDoesNobodyIsDoneWithoutHisPeer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := pair(t)
		var toA, toB []Message
		if rapid.Bool().Draw(t, "a starts") {
			toB = append(toB, a.Start()...)
		} else {
			toA = append(toA, b.Start()...)
		}
		forged := false
		for range 24 {
			if len(toA)+len(toB) == 0 {
				same := slices.Equal(a.Emoji(), b.Emoji()) && slices.Equal(a.Decimals(), b.Decimals())
				if a.Stage() == Comparing && b.Stage() == Comparing && !same {
					toB, toA = append(toB, a.Mismatch()...), append(toA, b.Mismatch()...)
				} else {
					toB, toA = append(toB, a.Confirm()...), append(toA, b.Confirm()...)
				}
				if len(toA)+len(toB) == 0 {
					break
				}
			}
			queue, to := &toA, a
			if len(toA) == 0 || len(toB) > 0 && rapid.Bool().Draw(t, "b's turn") {
				queue, to = &toB, b
			}
			message := (*queue)[0]
			switch rapid.SampledFrom([]string{"deliver", "deliver", "deliver", "deliver", "drop", "repeat", "alter"}).Draw(t, "what") {
			case "drop":
				*queue = (*queue)[1:]
				continue
			case "repeat":
				*queue = append(*queue, message)
			case "alter":
				altered := alter(t, message.Content)
				forged = forged || !bytes.Equal(canonical(altered), canonical(message.Content))
				message.Content = altered
			}
			*queue = (*queue)[1:]
			out := to.Receive(message.Type, message.Content)
			if to == a {
				toB = append(toB, out...)
			} else {
				toA = append(toA, out...)
			}
		}
		if forged && a.Stage() == Done && b.Stage() == Done && !bytes.Equal(a.secret, b.secret) {
			t.Fatal("both are done, with different secrets")
		}
		for _, v := range []*Verification{a, b} {
			if v.Stage() == Done && (!v.vouched || !bytes.Equal(a.secret, b.secret)) {
				t.Fatal("one side is done without the true peer's MACs")
			}
		}
	})
}

// alter changes one value of a content: a flipped character, or another type of value.
func alter(t *rapid.T, content json.RawMessage) json.RawMessage {
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(content, &fields) != nil {
		return content
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		if name != "transaction_id" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return content
	}
	slices.Sort(names)
	name := rapid.SampledFrom(names).Draw(t, "field")
	value := slices.Clone(fields[name])
	switch rapid.IntRange(0, 2).Draw(t, "how") {
	case 0:
		i := rapid.IntRange(0, len(value)-1).Draw(t, "at")
		if value[i] != '"' && value[i] != '{' && value[i] != '[' && value[i] != ']' && value[i] != '}' && value[i] != ',' && value[i] != ':' {
			value[i] ^= 1
		}
	case 1:
		value = json.RawMessage(`null`)
	default:
		value = json.RawMessage(`["x"]`)
	}
	if !json.Valid(value) {
		return content
	}
	fields[name] = value
	encoded, err := json.Marshal(fields)
	if err != nil {
		return content
	}
	return encoded
}

func FuzzReceive(f *testing.F) {
	for _, eventType := range Types() {
		f.Add(eventType, []byte(`{"transaction_id":"txn","from_device":"BBBB","methods":["m.sas.v1"],"method":"m.sas.v1","key":"AAAA","mac":{"ed25519:B":"A"}}`), 2)
	}
	f.Fuzz(func(t *testing.T, eventType string, content []byte, steps int) {
		a, b := pair(t)
		if steps > 0 {
			out := a.Start()
			for range steps % 4 {
				var back []Message
				for _, m := range out {
					back = append(back, b.Receive(m.Type, m.Content)...)
				}
				out = nil
				for _, m := range back {
					out = append(out, a.Receive(m.Type, m.Content)...)
				}
			}
		}
		a.Receive(eventType, content)
		b.Receive(eventType, content)
		ReadRequest(content, now)
		if a.Stage() == Done || b.Stage() == Done {
			t.Error("an invented message ends it well")
		}
	})
}
