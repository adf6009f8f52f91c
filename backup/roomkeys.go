package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// ErrGone means that the key-backup version to carry over from was deleted: there is nothing left to carry.
var ErrGone = errors.New("the key-backup version is not there any more")

// session is KeyBackupData. session_data stays raw: carry-over opens it, nobody else.
type session struct {
	FirstMessageIndex int             `json:"first_message_index"`
	ForwardedCount    int             `json:"forwarded_count"`
	IsVerified        bool            `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

// indexed is as much of KeyBackupData as is needed to know what a version has.
type indexed struct {
	FirstMessageIndex int `json:"first_message_index"`
}

// rooms is keys by room and session.
type rooms[S any] map[id.RoomID]map[id.SessionID]S

// decodeKeys reads {"rooms": {<room>: {"sessions": {<session>: S}}}} as a stream, and hands over one key after the other.
func decodeKeys[S any](r io.Reader, take func(room id.RoomID, sessionID id.SessionID, key S) error) error {
	decoder := json.NewDecoder(r)
	skip := func() error {
		var unknown json.RawMessage
		return decoder.Decode(&unknown)
	}
	err := object(decoder, func(key string) error {
		if key != "rooms" {
			return skip()
		}
		return object(decoder, func(room string) error {
			return object(decoder, func(key string) error {
				if key != "sessions" {
					return skip()
				}
				return object(decoder, func(sessionID string) error {
					var s S
					if err := decoder.Decode(&s); err != nil {
						return err
					}
					return take(id.RoomID(room), id.SessionID(sessionID), s)
				})
			})
		})
	})
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// limited is a reader of at most limit bytes.
func limited(r io.Reader, limit int64) io.Reader { return io.LimitReader(r, limit) }

func wrapVersion(doing string, version id.KeyBackupVersion, err error) error {
	return fmt.Errorf("%s key-backup version %s: %w", doing, version, err)
}

// object reads a JSON object, or null as an empty one, and calls field with each key when its value is next.
func object(decoder *json.Decoder, field func(key string) error) error {
	token, err := decoder.Token()
	if err != nil || token == nil {
		return err
	}
	if token != json.Delim('{') {
		return errors.New("an object is missing where room keys should be")
	}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return err
		}
		if err := field(key.(string)); err != nil { // A key is a string, or Token fails.
			return err
		}
	}
	_, err = decoder.Token()
	return err
}

// writeRooms puts keys into a version. A failure because the version is not the current one any more is ErrChanged,
// however the homeserver says it: Dendrite answers 500 where the current version was deleted.
func (c *Client) writeRooms(ctx context.Context, version id.KeyBackupVersion, b *batch) error {
	_, err := c.matrix.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodPut, URL: c.keysURL(version), RequestJSON: b.body(), SensitiveContent: true,
	})
	if err == nil {
		return nil
	}
	if current, readErr := c.Current(ctx); errors.Is(err, mautrix.MWrongRoomKeysVersion) || (readErr == nil && (current == nil || current.ID != version)) {
		err = ErrChanged
	}
	return wrapVersion("writing room keys into", version, err)
}

func (c *Client) keysURL(version id.KeyBackupVersion) string {
	return c.matrix.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys"}, map[string]string{"version": version.String()})
}

// batch is the body of one PUT, kept at or below a limit of bytes. A key that is too long by itself goes alone.
type batch struct {
	limit, size, keys int
	rooms             rooms[json.RawMessage]
}

func newBatch(limit int) *batch {
	return &batch{limit: limit, size: len(`{"rooms":{}}`), rooms: rooms[json.RawMessage]{}}
}

// add takes an encoded key, or reports that the batch is full and has to be written first.
func (b *batch) add(room id.RoomID, sessionID id.SessionID, encoded json.RawMessage) bool {
	size := len(quoted(sessionID.String())) + len(`:,`) + len(encoded)
	if b.rooms[room] == nil {
		size += len(quoted(room.String())) + len(`:{"sessions":{}},`)
	}
	if b.keys > 0 && b.size+size > b.limit {
		return false
	}
	if b.rooms[room] == nil {
		b.rooms[room] = map[id.SessionID]json.RawMessage{}
	}
	b.rooms[room][sessionID] = encoded
	b.size, b.keys = b.size+size, b.keys+1
	return true
}

func (b *batch) body() any {
	type sessions struct {
		Sessions map[id.SessionID]json.RawMessage `json:"sessions"`
	}
	body := struct {
		Rooms map[id.RoomID]sessions `json:"rooms"`
	}{map[id.RoomID]sessions{}}
	for room, keys := range b.rooms {
		body.Rooms[room] = sessions{keys}
	}
	return body
}
