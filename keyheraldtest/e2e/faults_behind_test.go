package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	mautrixbackup "maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// behind is the homeserver as the managed device sees it: one into which uploads came that no client can be made to send
// in time, since it takes them for the current key-backup version alone. They are in its answers with an old version.
type behind struct {
	*httptest.Server
	mu   sync.Mutex // guards the rest
	late map[string]map[id.SessionID]json.RawMessage
	// deleting, if set, is called before a key-backup version is deleted. reads counts the answers with a version's keys.
	deleting func(version string)
	reads    map[string]int
}

// lateRoom is the room of what came late.
const lateRoom = id.RoomID("!late:" + keyheraldtest.ServerName)

func newBehind(t *testing.T, homeserver string) *behind {
	t.Helper()
	b := &behind{late: map[string]map[id.SessionID]json.RawMessage{}, reads: map[string]int{}}
	onward := forward(t, homeserver)
	onward.ModifyResponse = b.answer
	b.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		// Read whole before it goes on: where a server answers while the body is on its way, its answer may be cut.
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		if before, version, ok := strings.Cut(req.URL.Path, "/room_keys/version/"); ok && req.Method == http.MethodDelete && before != "" {
			b.mu.Lock()
			deleting := b.deleting
			b.mu.Unlock()
			if deleting != nil {
				deleting(version)
			}
		}
		onward.ServeHTTP(rw, req)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *behind) onDelete(deleting func(version string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deleting = deleting
}

func (b *behind) readsOf(version string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reads[version]
}

// cameLate puts a room key into a version, sealed to a key.
func (b *behind) cameLate(t *testing.T, version string, session id.SessionID, key backupkey.Key) {
	t.Helper()
	sealed, err := mautrixbackup.EncryptSessionDataWithPubkey(key.Private().PublicKey(), json.RawMessage(`{"session_key":"late"}`))
	check(t, err)
	encoded, err := json.Marshal(map[string]any{"first_message_index": 0, "forwarded_count": 0, "is_verified": false, "session_data": sealed})
	check(t, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.late[version] == nil {
		b.late[version] = map[id.SessionID]json.RawMessage{}
	}
	b.late[version][session] = encoded
}

func (b *behind) answer(res *http.Response) error {
	version := res.Request.URL.Query().Get("version")
	if res.Request.Method != http.MethodGet || !strings.HasSuffix(res.Request.URL.Path, "/room_keys/keys") || res.StatusCode != http.StatusOK {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads[version]++
	if len(b.late[version]) == 0 {
		return nil
	}
	var body struct {
		Rooms map[id.RoomID]json.RawMessage `json:"rooms"`
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		return err
	}
	_ = res.Body.Close()
	late, err := json.Marshal(map[string]any{"sessions": b.late[version]})
	if err != nil {
		return err
	}
	body.Rooms[lateRoom] = late
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(encoded)), int64(len(encoded))
	res.Header.Del("Content-Length")
	return nil
}
