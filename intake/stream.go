package intake

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/keyherald/keyherald/audit"
)

// Heard is a new version of a secret that the server heard of over a connection of its own.
type Heard struct {
	// ID is the sender's id of the event.
	ID, Path, Version string
}

// StreamSource is the name of a KMS's event stream among the sources, in the log and in what is known of earlier events.
func StreamSource(kms string) string { return kms + "-events" }

// streamKey stands where a notification has the id of its credential: the connection was opened to the KMS, and not by it.
const streamKey = "stream"

// Hear takes an event of a KMS's stream the way of every notification. An error means that it was not kept, and that it
// should be told again.
func (h *Handler) Hear(ctx context.Context, kms string, heard Heard) error {
	name := StreamSource(kms)
	s, ok := h.streams[name]
	if !ok {
		return fmt.Errorf("intake: no event stream of %s is configured", kms)
	}
	if heard.ID == "" || len(heard.ID) > maxID || !keepable(heard.ID) {
		return h.flood(ctx, flood{source: audit.SourceName(name), refused: audit.RefusedMalformed})
	}
	e := event{id: heard.ID, sum: sha256.Sum256(fmt.Appendf(nil, "%q %q", heard.Path, heard.Version)), field: func(field string) string {
		return map[string]string{"path": heard.Path, "version": heard.Version}[field]
	}}
	o, err := h.record(ctx, name, streamKey, s, e)
	if err != nil {
		h.deps.Log.Error().Err(err).Str("source", name).Msg("A notification could not be kept; it is tried again")
		return err
	}
	h.count(name, o.status, o.word)
	return nil
}

// stream checks the mapping of a KMS's event stream.
func (m Mapping) stream(kms string) (*source, error) {
	at := "kms." + kms + ".events"
	known := map[string]bool{"attribute": m.Attribute != "", "where": len(m.Where) > 0, "version": m.Version != "", "id": m.ID != "", "kms": m.KMS != ""}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if known[key] {
			return nil, fmt.Errorf("%s.mapping.%s is known of an event stream: remove it", at, key)
		}
	}
	m.KMS = kms
	compiled, err := m.or("path", "version").compile(at)
	if err != nil {
		return nil, err
	}
	return &source{mapping: compiled}, nil
}
