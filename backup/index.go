package backup

import (
	"context"
	"crypto/sha256"
	"net/http"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// index is what a version has: by room and session, from which message on. The names are kept as the first half of
// their SHA-256, since there may be very many.
type index map[[16]byte]int

func nameOf(room id.RoomID, sessionID id.SessionID) [16]byte {
	// A room id has no NUL character, so no two names come to the same bytes.
	sum := sha256.Sum256([]byte(string(room) + "\x00" + string(sessionID)))
	return [16]byte(sum[:16])
}

// lacks is the plan: a key is written if the new version has none for that session, or one that starts at a later
// message. Homeservers replace a key by one that is verified, by one that starts earlier, and by one that was forwarded
// less often (client-server API, "Server-side key backups"; Synapse and Dendrite apply them one by one), so whatever
// else is there must not be sent: a verified key that starts later would replace a better one.
func (i index) lacks(room id.RoomID, sessionID id.SessionID, firstMessageIndex int) bool {
	present, ok := i[nameOf(room, sessionID)]
	return !ok || present > firstMessageIndex
}

// index reads what a version has as it arrives, and keeps nothing else of it.
func (c *Client) index(ctx context.Context, version id.KeyBackupVersion) (index, error) {
	var have index
	err := c.readKeys(ctx, version, func(res *http.Response, limit int64) error {
		have = index{}
		return decodeKeys(limited(res.Body, limit), func(room id.RoomID, sessionID id.SessionID, key indexed) error {
			have[nameOf(room, sessionID)] = key.FirstMessageIndex
			return nil
		})
	})
	return have, err
}

// readKeys asks for all of a version's keys: the API lists neither rooms nor sessions, so there is no way around one
// answer with everything in it. mautrix may call read once more after a failure, so it begins from the start.
func (c *Client) readKeys(ctx context.Context, version id.KeyBackupVersion, read func(res *http.Response, limit int64) error) error {
	_, err := c.matrix.MakeFullRequest(ctx, mautrix.FullRequest{Method: http.MethodGet, URL: c.keysURL(version),
		Handler: func(_ *http.Request, res *http.Response, _ any, limit int64) ([]byte, error) {
			return nil, read(res, limit)
		}})
	if err != nil {
		return wrapVersion("reading the room keys of", version, err)
	}
	return nil
}
