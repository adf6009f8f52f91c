package intake

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"regexp"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// pubSub reads what a push subscription of Google Pub/Sub delivers of Secret Manager
// (https://cloud.google.com/secret-manager/docs/event-notifications). A mapping may name secretId, which is
// projects/…/secrets/NAME, version, which is a number, and subscription.
type pubSub struct{}

func (pubSub) read(_ context.Context, r *request) (said, *denial) {
	if r.mediaType() != "application/json" {
		return said{}, unsupported("send a wrapped Pub/Sub message as application/json")
	}
	body, denied := r.json()
	if denied != nil {
		return said{}, denied
	}
	return one(parsePubSub(body))
}

func parsePubSub(body any) (event, *denial) {
	text := func(name string) string {
		value, _ := strictjson.Lookup(body, name)
		text, _ := value.(string)
		return text
	}
	id := text("message.messageId")
	if id == "" || len(id) > maxID || text("subscription") == "" {
		return event{}, malformed("not a wrapped message of a Pub/Sub push subscription")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text("message.data"))
	if err != nil {
		return event{}, malformed("the message's data is no base64")
	}
	var data any
	if len(raw) > 0 {
		if data, err = strictjson.Parse(raw); err != nil {
			return event{}, malformed("within the message's data: " + err.Error())
		}
	}
	attributes, _ := strictjson.Lookup(body, "message.attributes")
	// A message is delivered again with another deliveryAttempt; what it says is these two.
	sum := sha256.Sum256(strictjson.Canonical([]any{attributes, data}))
	secret, added := text("message.attributes.secretId"), text("message.attributes.eventType") == "SECRET_VERSION_ADD"
	number, ok := versionOf(secret, text("message.attributes.versionId"))
	name, there := strictjson.Lookup(data, "name")
	if there {
		text, _ := name.(string)
		again, same := versionOf(secret, text)
		ok = ok && same && again == number
	}
	if added && !ok {
		return event{}, malformed("the message's secretId, versionId and data are not about one version")
	}
	return event{id: id, sum: sum, irrelevant: !added, field: func(field string) string {
		switch field {
		case "secretId":
			return secret
		case "version":
			return number
		}
		return text(field)
	}}, nil
}

var (
	gcpSecret  = regexp.MustCompile(`^projects/[^/]+(?:/locations/[^/]+)?/secrets/([A-Za-z0-9_-]+)$`)
	gcpVersion = regexp.MustCompile(`^projects/[^/]+(?:/locations/[^/]+)?/secrets/([A-Za-z0-9_-]+)/versions/([0-9]{1,20})$`)
)

// versionOf returns the number of a version of this secret. A project has a name and a number, so its part may differ.
func versionOf(secret, version string) (number string, ok bool) {
	s, v := gcpSecret.FindStringSubmatch(secret), gcpVersion.FindStringSubmatch(version)
	if s == nil || v == nil || s[1] != v[1] {
		return "", false
	}
	return v[2], true
}
