// Package msc4385 is the push of MSC4385: m.secret.send without a prior m.secret.request, in both forms found on the
// wire, and the rules by which a receiver accepts one. It is pure and depends on the standard library alone.
//
// The proposal: events sent without a corresponding request "MUST be sent without an request_id property, but MUST
// include a name property"; those with a request_id "are handled as before". Shipped clients take the later form, the
// event type io.element.msc4385.secret.push, which has no request_id at all.
package msc4385

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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

// Build makes the content of an unsolicited event: exactly name and secret, in either form.
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

// Parse reads a decrypted event. A request_id that is there but empty, null or no string is neither form: "without"
// means absent. A property given twice is refused, since receivers would differ in which one they read.
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

func object(content []byte) (map[string]json.RawMessage, error) {
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
			return nil, fmt.Errorf("%w: property %q is there twice", ErrNeither, key)
		}
		properties[key] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("%w: malformed JSON", ErrNeither)
	}
	return properties, nil
}

// Sender is who sent an event, as far as the receiver proved it.
type Sender struct {
	UserID      string
	CrossSigned bool
	ThisDevice  bool
}

// Verdict is what a policy says of a secret.
type Verdict string

// The verdicts.
const (
	Accept Verdict = "accept"
	Ask    Verdict = "ask"
	Refuse Verdict = "refuse"
)

// Decide applies the rules to an unsolicited secret: only from a cross-signed device of the same user, and then as the
// policy says for its name. A name the policy does not know is refused.
func Decide(own string, sender Sender, name string, policy map[string]Verdict) (Verdict, string) {
	switch {
	case sender.UserID != own:
		return Refuse, "another_user"
	case sender.ThisDevice:
		return Refuse, "from_this_device"
	case !sender.CrossSigned:
		return Refuse, "device_not_cross_signed"
	}
	verdict, ok := policy[name]
	if !ok || verdict == Refuse {
		return Refuse, "secret_not_accepted"
	}
	return verdict, ""
}
