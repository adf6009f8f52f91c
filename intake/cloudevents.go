package intake

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// cloudEvents reads one CloudEvent 1.0, structured or, where something else than a signature over the body proves its
// headers, binary. A mapping may name the attributes subject, source and type, and fields of the data, as data.NAME.
type cloudEvents struct{ binary bool }

// ReadType is the type of a CloudEvent that tells that somebody read a secret: its subject, in its data version, which may
// be missing, by its data's reader. Every other type is a new version.
const ReadType = "io.keyherald.secret.read"

func (c cloudEvents) read(ctx context.Context, r *request) (said, *denial) {
	e, denied := c.parse(ctx, r)
	if denied != nil {
		return said{}, denied
	}
	data, err := strictjson.Parse(e.Data())
	// What the data_base64 of a structured event holds was not looked at with the rest.
	if err != nil && json.Valid(e.Data()) {
		return said{}, malformed(err.Error())
	}
	return said{events: []event{{id: e.ID(), sum: attributedSum(r), read: e.Type() == ReadType, field: func(name string) string {
		switch name {
		case "subject":
			return e.Subject()
		case "source":
			return e.Source()
		case "type":
			return e.Type()
		}
		return strictjson.TextAt(data, strings.TrimPrefix(name, "data."))
	}}}}, nil
}

// attributedSum covers the attributes as well where they travel in headers, since they are part of what was said.
func attributedSum(r *request) [32]byte {
	hash := sha256.New()
	for _, name := range []string{"Ce-Type", "Ce-Source", "Ce-Subject"} {
		if value := r.header.Get(name); value != "" && r.mediaType() != cloudevents.ApplicationCloudEventsJSON {
			_, _ = fmt.Fprintf(hash, "%s:%q\n", name, value)
		}
	}
	hash.Write(r.body)
	return [32]byte(hash.Sum(nil))
}

// parse reads the event. The SDK takes duplicate JSON keys (the last wins) and does not validate by itself,
// so both are done here.
func (c cloudEvents) parse(ctx context.Context, r *request) (*cloudevents.Event, *denial) {
	mediaType := r.mediaType()
	structured := mediaType == cloudevents.ApplicationCloudEventsJSON
	if !structured && (mediaType != "application/json" || r.header.Get("Ce-Specversion") == "") {
		return nil, unsupported("send one CloudEvent 1.0: structured as application/cloudevents+json, or binary with ce- headers and application/json")
	}
	if !structured && !c.binary {
		return nil, unsupported("send the CloudEvent structured, as application/cloudevents+json: nothing that this source proves itself by covers the ce- headers of a binary one")
	}
	if _, denied := r.json(); denied != nil {
		return nil, denied
	}
	clone := r.http.Clone(ctx)
	clone.Body = io.NopCloser(bytes.NewReader(r.body))
	e, err := binding.ToEvent(ctx, cehttp.NewMessageFromHttpRequest(clone))
	if err != nil || e.Validate() != nil || e.SpecVersion() != "1.0" {
		return nil, malformed("not a valid CloudEvent 1.0")
	}
	// What the database cannot keep would be answered 503 for ever, and it is not our fault.
	if len(e.ID()) > maxID || !keepable(e.ID()) || !keepable(e.Subject()) || !keepable(e.Source()) {
		return nil, malformed("an attribute of the CloudEvent is no UTF-8 text, or its id has more than 1024 bytes")
	}
	return e, nil
}

func keepable(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }
