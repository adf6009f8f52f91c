// Package msc4385 is the push of MSC4385, "Allowing m.secret.send without a prior m.secret.request": it builds and
// parses a push in both forms found on the wire, and holds the rules by which a receiver accepts one. It is pure, keeps
// nothing, depends on the standard library alone, and is meant for others to import.
//
// # The two forms
//
// The proposal's first text makes a property optional:
//
//	The request_id property of an m.secret.send event is optional. m.secret.send events may be sent without a
//	corresponding m.secret.request event, and if so, MUST be sent without an request_id property, but MUST include
//	a name property, which contains the name of the secret being shared. m.secret.send events with a request_id
//	property are handled as before.
//
// Shipped clients take the later form, the event type io.element.msc4385.secret.push with {name, secret}, which has no
// request_id at all. Clients that know neither discard it without harm, so a sender may send both.
//
// # What is without a request_id
//
// "Without" means that the property is absent. With m.secret.send a request_id that is there but is empty, null or no
// string is neither a push nor a response: reading it as a push would let a sender that always writes the property
// (empty) push by accident, and reading it as a response would match no request. With the later form request_id has no
// meaning, and like every unknown property it is ignored.
//
// # Whom to trust
//
// The caller decrypts, and proves to itself who sent the event and whether the sending device is cross-signed; this
// package believes what [Sender] says. [Decide] then applies the proposal's rules:
//
//	m.secret.send events without a request_id must only be accepted from cross-signed devices belonging to the same
//	user. In addition, the client MAY prompt the user before accepting the m.secret.send event. The client MAY also
//	only accept certain secrets.
//
// A client that was offline while a secret changed several times gets several pushes and "will have to determine which
// one is the current one": [Pick] does, with the caller's test of what works.
package msc4385

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// Form is the to-device event type a push travels as.
type Form string

// The two forms.
const (
	FormSend Form = "m.secret.send"
	FormPush Form = "io.element.msc4385.secret.push"
)

// Secret is a pushed secret. Whatever prints it prints "(redacted)".
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the value.
func (s Secret) Reveal() string { return s.value }

// String redacts.
func (s Secret) String() string { return "(redacted)" }

// GoString redacts.
func (s Secret) GoString() string { return "(redacted)" }

// Format redacts whatever the verb is.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(redacted)")) }

// MarshalText redacts, for loggers and for encoding/json alike; [Build] is the way onto the wire.
func (s Secret) MarshalText() ([]byte, error) { return []byte("(redacted)"), nil }

// Build makes the content of an unsolicited event of the type string(form): exactly name and secret, with no request_id
// property, in either form.
func Build(form Form, name string, secret Secret) (json.RawMessage, error) {
	if form != FormSend && form != FormPush {
		return nil, fmt.Errorf("msc4385: unknown form %q", form)
	}
	if name == "" || secret.value == "" {
		return nil, errors.New("msc4385: a push needs a name and a secret")
	}
	return json.Marshal(struct {
		Name   string `json:"name"`
		Secret string `json:"secret"`
	}{name, secret.value})
}

// Kind says what a parsed event is.
type Kind int

// Unsolicited has no request_id; Response has one and is handled as before.
const (
	Unsolicited Kind = iota + 1
	Response
)

// Message is a parsed event. Name is empty in a Response: its request knows the name.
type Message struct {
	Kind      Kind
	Form      Form
	Name      string
	Secret    Secret
	RequestID string
}

// ErrNeither means that an event is neither form, with the reason; it is discarded without harm.
var ErrNeither = errors.New("msc4385: neither an unsolicited secret nor a response")

// Parse reads a decrypted to-device event: its type, and its content as the JSON that was sent. Errors wrap
// [ErrNeither], say what is missing, and never repeat the content. A request_id that is there but empty, null or no
// string is neither form: "without" means absent. A property given twice is refused, since receivers would differ in
// which one they read. Unknown properties are ignored.
func Parse(eventType string, content []byte) (Message, error) {
	form := Form(eventType)
	if form != FormSend && form != FormPush {
		return Message{}, fmt.Errorf("%w: event type %q", ErrNeither, eventType)
	}
	properties, err := object(content)
	if err != nil {
		return Message{}, err
	}
	secret, ok := text(properties["secret"])
	if !ok {
		return Message{}, fmt.Errorf("%w: no secret", ErrNeither)
	}
	message := Message{Form: form, Secret: Secret{secret}}
	if raw, there := properties["request_id"]; there && form == FormSend {
		if message.RequestID, ok = text(raw); !ok {
			return Message{}, fmt.Errorf("%w: request_id is there but is no request's id", ErrNeither)
		}
		message.Kind = Response
		return message, nil
	}
	if message.Name, ok = text(properties["name"]); !ok {
		return Message{}, fmt.Errorf("%w: no name", ErrNeither)
	}
	message.Kind = Unsolicited
	return message, nil
}

// text reads a string that is not empty.
func text(raw json.RawMessage) (string, bool) {
	var value *string
	if len(raw) == 0 || json.Unmarshal(raw, &value) != nil || value == nil || *value == "" {
		return "", false
	}
	return *value, true
}

// object reads the properties of exactly one JSON object.
func object(content []byte) (map[string]json.RawMessage, error) {
	// encoding/json would replace invalid UTF-8 silently, and the secret would be another one.
	if !utf8.Valid(content) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrNeither)
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, fmt.Errorf("%w: not a JSON object", ErrNeither)
	}
	properties := map[string]json.RawMessage{}
	for decoder.More() {
		token, err := decoder.Token()
		key, ok := token.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("%w: malformed JSON", ErrNeither)
		}
		var value json.RawMessage
		if decoder.Decode(&value) != nil {
			return nil, fmt.Errorf("%w: malformed JSON", ErrNeither)
		}
		if _, twice := properties[key]; twice {
			return nil, fmt.Errorf("%w: a property is there twice", ErrNeither)
		}
		properties[key] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("%w: malformed JSON", ErrNeither)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: there is data after the JSON object", ErrNeither)
	}
	return properties, nil
}
