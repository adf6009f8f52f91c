package intake

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// pubSub reads what a push subscription of Google Pub/Sub delivers of Secret Manager
// (https://cloud.google.com/secret-manager/docs/event-notifications). A mapping may name secretId, which is
// projects/…/secrets/NAME, version, which is a number, and subscription; and of what a log sink sends, that is read
// (https://cloud.google.com/secret-manager/docs/audit-logging), the entry's own fields too.
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
	if read, ok := auditedRead(data); ok {
		return read.event(id, sum, data, text)
	}
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

// logged is an entry of Google's audit log that tells of a read.
type logged struct {
	secret, version string
	named, failed   bool
}

// auditedRead knows the entries of Secret Manager's audit log that tell of a read of a version.
func auditedRead(entry any) (read logged, ok bool) {
	text := func(name string) string { return strictjson.TextAt(entry, "protoPayload."+name) }
	// The method's package was another before version 1.
	if text("serviceName") != "secretmanager.googleapis.com" || !strings.HasSuffix(text("methodName"), ".SecretManagerService.AccessSecretVersion") {
		return logged{}, false
	}
	code := text("status.code")
	read.failed = code != "" && code != "0"
	name := gcpRead.FindStringSubmatch(text("resourceName"))
	if name == nil {
		return read, true
	}
	read.secret, read.named = name[1], true
	if gcpNumber.MatchString(name[2]) {
		read.version = name[2] // and else latest, or an alias that only Google knows
	}
	return read, true
}

func (l logged) event(id string, sum [32]byte, entry any, message func(name string) string) (event, *denial) {
	if !l.named {
		return event{}, malformed("the log entry's resourceName is no version of a secret")
	}
	return event{id: id, sum: sum, irrelevant: l.failed, read: true, field: func(field string) string {
		switch field {
		case "secretId":
			return l.secret
		case "version":
			return l.version
		}
		if value, ok := strictjson.Lookup(entry, field); ok {
			text, _ := strictjson.Text(value)
			return text
		}
		return message(field)
	}}, nil
}

var (
	gcpRead   = regexp.MustCompile(`^(projects/[^/]+(?:/locations/[^/]+)?/secrets/[A-Za-z0-9_-]+)/versions/([^/]+)$`)
	gcpNumber = regexp.MustCompile(`^[0-9]{1,20}$`)
)
