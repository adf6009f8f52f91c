package intake

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// generic reads one JSON object of any shape; the mapping names its fields, with dots between nested ones. What names
// an event for good is a field, a header that is signed, the body itself, or, for senders whose notifications of two
// changes may be the same bytes, its arrival: then nothing that comes twice is known to have come before.
type generic struct{ id string }

const (
	idBody    = "body"
	idArrival = "arrival"
	fieldOf   = "field:"
	headerOf  = "header:"
)

func (g generic) read(_ context.Context, r *request) (said, *denial) {
	if r.mediaType() != "application/json" {
		return said{}, unsupported("send a JSON object as application/json")
	}
	body, denied := r.json()
	if denied != nil {
		return said{}, denied
	}
	if _, ok := body.(map[string]any); !ok {
		return said{}, malformed("the body is not a JSON object")
	}
	e := event{sum: sha256.Sum256(r.body), field: func(name string) string { return strictjson.TextAt(body, name) }}
	switch name, isHeader := strings.CutPrefix(g.id, headerOf); {
	case g.id == idBody:
		e.id = "sha256:" + hex.EncodeToString(e.sum[:])
	case g.id == idArrival:
		e.id = "arrival:" + rand.Text()
	case isHeader:
		e.id = r.header.Get(name)
	default:
		e.id = e.field(strings.TrimPrefix(g.id, fieldOf))
	}
	if e.id == "" || len(e.id) > maxID || !keepable(e.id) {
		return said{}, malformed("the notification has no id, or one that is no text or has more than 1024 bytes")
	}
	return said{events: []event{e}}, nil
}
