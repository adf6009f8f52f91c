package intake

import (
	"context"
	"crypto/sha256"
	"net/http"
	"regexp"
	"strings"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/strictjson"
)

// eventGrid reads what Azure Event Grid delivers, in its CloudEvents schema or in its own: one event or an array of
// them. Its samples have stray spaces in keys and values, so both are trimmed, and keys count in any case. A mapping may
// name subject, source (the topic, in Event Grid's schema), type, and fields of the data, as data.ObjectName.
//
// The CloudEvents schema begins with an OPTIONS request, Event Grid's own with a validation event, whose code is
// answered. It holds an address too, which is not asked.
type eventGrid struct{ origin string }

const (
	newSecretVersion = "Microsoft.KeyVault.SecretNewVersionCreated"
	validationEvent  = "Microsoft.EventGrid.SubscriptionValidationEvent"
	// eventGridOrigin is what Event Grid says in an OPTIONS request.
	eventGridOrigin = "eventgrid.azure.net"
)

func (eventGrid) read(_ context.Context, r *request) (said, *denial) {
	switch r.mediaType() {
	case "application/json", "application/cloudevents+json", "application/cloudevents-batch+json":
	default:
		return said{}, unsupported("send events of Event Grid as application/json or application/cloudevents+json")
	}
	body, denied := r.json()
	if denied != nil {
		return said{}, denied
	}
	body, ok := foldKeys(body)
	if !ok {
		return said{}, malformed("two JSON keys are the same but for spaces and case")
	}
	elements, ok := body.([]any)
	if !ok {
		elements = []any{body}
	}
	if len(elements) == 0 {
		return said{}, malformed("there is no event in the array")
	}
	var all said
	for _, element := range elements {
		e, denied := parseGridEvent(element)
		if denied != nil {
			return said{}, denied
		}
		if e.field("type") == validationEvent {
			return validation(e, len(elements))
		}
		all.events = append(all.events, e)
	}
	return all, nil
}

// foldKeys trims keys and makes them lower-case; ok is false where two become one.
func foldKeys(value any) (folded any, ok bool) {
	switch v := value.(type) {
	case map[string]any:
		members := make(map[string]any, len(v))
		for name, member := range v {
			name = strings.ToLower(strings.TrimSpace(name))
			if _, twice := members[name]; twice {
				return nil, false
			}
			if members[name], ok = foldKeys(member); !ok {
				return nil, false
			}
		}
		return members, true
	case []any:
		elements := make([]any, len(v))
		for i, element := range v {
			if elements[i], ok = foldKeys(element); !ok {
				return nil, false
			}
		}
		return elements, true
	}
	return value, true
}

// parseGridEvent reads one event. The two schemas name the same things differently; an event that has both names of one
// is neither's.
func parseGridEvent(element any) (event, *denial) {
	text := func(name string) string {
		return strings.TrimSpace(strictjson.TextAt(element, strings.ToLower(name)))
	}
	members, _ := element.(map[string]any)
	_, own := members["eventtype"]
	_, cloud := members["specversion"]
	typeName, sourceName := "type", "source"
	if own {
		typeName, sourceName = "eventtype", "topic"
	}
	id := text("id")
	if own == cloud || cloud && text("specversion") != "1.0" || id == "" || text(typeName) == "" {
		return event{}, malformed("not an event of Event Grid, neither in its own schema nor in that of CloudEvents 1.0")
	}
	if len(id) > maxID {
		return event{}, malformed("the event's id has more than 1024 bytes")
	}
	return event{id: id, sum: sha256.Sum256(strictjson.Canonical(element)), irrelevant: text(typeName) != newSecretVersion,
		field: func(name string) string {
			switch strings.ToLower(name) {
			case "type":
				return text(typeName)
			case "source":
				return text(sourceName)
			}
			return text(name)
		}}, nil
}

var validationCode = regexp.MustCompile(`^[A-Za-z0-9-]{1,128}$`)

// validation answers the event by which Event Grid asks whether the subscription is wanted. It comes alone.
func validation(e event, together int) (said, *denial) {
	code := e.field("data.validationCode")
	if together != 1 || !validationCode.MatchString(code) {
		return said{}, malformed("not a validation event of Event Grid")
	}
	return said{handshake: &handshake{kind: audit.HandshakeEventGrid, body: map[string]string{"validationResponse": code}}}, nil
}

// preflight answers the abuse protection of CloudEvents over HTTP
// (https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md, section 4). It says of nobody but Event
// Grid that it may send, and has no effect: what is sent must still prove where it is from.
func (g eventGrid) preflight(r *request) (map[string]string, *denial) {
	if !strings.EqualFold(r.header.Get("Webhook-Request-Origin"), g.origin) {
		return nil, refused(audit.RefusedOrigin)
	}
	return map[string]string{"WebHook-Allowed-Origin": g.origin, "WebHook-Allowed-Rate": "*", "Allow": http.MethodPost}, nil
}
