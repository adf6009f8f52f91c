package intake

import (
	"context"
	"crypto/sha256"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// eventBridge reads an event of Amazon EventBridge as an API destination gets it. A mapping may name its fields:
// account, region, source, and those of the detail, as detail.name.
type eventBridge struct{}

func (eventBridge) read(_ context.Context, r *request) (said, *denial) {
	if r.mediaType() != "application/json" {
		return said{}, unsupported("send the event of EventBridge as application/json, as it is")
	}
	body, denied := r.json()
	if denied != nil {
		return said{}, denied
	}
	return one(parseBridgeEvent(body))
}

// parseBridgeEvent reads one event. Of those that Secrets Manager sends, one is a new current version: AWSCURRENT moved
// (https://docs.aws.amazon.com/secretsmanager/latest/userguide/event-detail-secret-label-updated-secretsmanager.html).
func parseBridgeEvent(body any) (event, *denial) {
	text := func(name string) string {
		value, _ := strictjson.Lookup(body, name)
		text, _ := strictjson.Text(value)
		return text
	}
	id := text("id")
	if id == "" || text("source") == "" || text("detail-type") == "" {
		return event{}, malformed("not an event of EventBridge")
	}
	if len(id) > maxID {
		return event{}, malformed("the event's id has more than 1024 bytes")
	}
	current := text("source") == "aws.secretsmanager" && text("detail-type") == "Secret Label Updated" && text("detail.labelUpdated") == "AWSCURRENT"
	return event{id: id, sum: sha256.Sum256(strictjson.Canonical(body)), irrelevant: !current, field: text}, nil
}
