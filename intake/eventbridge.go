package intake

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"

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
	return parseBridgeEvent(body)
}

// parseBridgeEvent reads one event. Of those that Secrets Manager sends, one is a new current version: AWSCURRENT moved
// (https://docs.aws.amazon.com/secretsmanager/latest/userguide/event-detail-secret-label-updated-secretsmanager.html).
// Of the calls that CloudTrail tells, two read values.
func parseBridgeEvent(body any) (said, *denial) {
	text := func(name string) string { return strictjson.TextAt(body, name) }
	id := text("id")
	if id == "" || text("source") == "" || text("detail-type") == "" {
		return said{}, malformed("not an event of EventBridge")
	}
	if len(id) > maxID-len("/00") {
		return said{}, malformed("the event's id has more than 1024 bytes")
	}
	e := event{id: id, sum: sha256.Sum256(strictjson.Canonical(body)), irrelevant: true, field: text}
	if text("source") != "aws.secretsmanager" {
		return one(e, nil)
	}
	switch text("detail-type") {
	case "Secret Label Updated":
		e.irrelevant = text("detail.labelUpdated") != "AWSCURRENT"
	case "AWS API Call via CloudTrail":
		if reads := bridgeReads(e, body); len(reads) > 0 {
			return said{events: reads}, nil
		}
	}
	return one(e, nil)
}

// mostSecrets is how many secrets one call reads at most.
const mostSecrets = 20

// bridgeReads are the reads of a call that CloudTrail tells: GetSecretValue names a secret, and perhaps a version;
// BatchGetSecretValue may name several (https://docs.aws.amazon.com/secretsmanager/latest/userguide/cloudtrail_log_entries.html).
// A call that was refused read nothing, and AWSPREVIOUS is never the current version. A mapping may name the fields of a
// read as those of a change.
func bridgeReads(e event, body any) []event {
	const parameters = "detail.requestParameters."
	version := ""
	var secrets []any
	switch e.field("detail.eventName") {
	case "GetSecretValue":
		secret, _ := strictjson.Lookup(body, parameters+"secretId")
		secrets, version = []any{secret}, e.field(parameters+"versionId")
	case "BatchGetSecretValue":
		list, _ := strictjson.Lookup(body, parameters+"secretIdList")
		secrets, _ = list.([]any)
	}
	refused := e.field("detail.errorCode") != "" || version == "" && e.field(parameters+"versionStage") == "AWSPREVIOUS"
	if refused || e.field("detail.eventSource") != "secretsmanager.amazonaws.com" || len(secrets) > mostSecrets {
		return nil
	}
	reads := make([]event, len(secrets))
	for i, secret := range secrets {
		name, _ := secret.(string)
		reads[i] = event{id: e.id, sum: e.sum, read: true, field: func(field string) string {
			switch field {
			case "detail.name":
				return secretName(name)
			case "detail.versionId":
				return version
			}
			return e.field(field)
		}}
		if len(secrets) > 1 {
			reads[i].id = fmt.Sprintf("%s/%d", e.id, i)
		}
	}
	return reads
}

// The ARN of a secret ends with its name, a hyphen and six characters that AWS chose; a partial one goes without these.
// AWS advises against names that end like that, since they could be meant as well.
var (
	secretARN    = regexp.MustCompile(`^arn:[a-z-]+:secretsmanager:[a-z0-9-]*:[0-9]*:secret:(.+)$`)
	secretSuffix = regexp.MustCompile(`-[A-Za-z0-9]{6}$`)
)

// secretName is the name of the secret that a caller named, by its name or its ARN.
func secretName(secretID string) string {
	if arn := secretARN.FindStringSubmatch(secretID); arn != nil {
		return secretSuffix.ReplaceAllString(arn[1], "")
	}
	return secretID
}
