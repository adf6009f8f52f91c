package chaos

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
)

const (
	// longHistory is how many room keys the first user of each fleet begins with: a carry-over of so many takes long
	// enough to be hit. The others have a short one.
	longHistory, shortHistory = 3000, 20
	// historyRooms is how many rooms they are of, and uploadKeys how many are put in a request.
	historyRooms, uploadKeys = 7, 1000
)

type keyName struct {
	room    id.RoomID
	session id.SessionID
}

// roomKey is KeyBackupData opened: all that must stay as it is, whichever version it is in.
type roomKey struct {
	firstMessageIndex, forwardedCount int
	verified                          bool
	plaintext                         string
}

// history is the room keys of a user that the homeserver has taken, into whichever key-backup version.
type history struct {
	mu    sync.Mutex // guards the rest
	made  int
	taken map[keyName]roomKey
	// missing is how many of them were not in the version that a rotation ended with, each counted once.
	missing  int
	findings []string
	// checks is how often that was looked at, late how many came into an old version while it was carried over.
	checks, late int
}

// make makes room keys that nobody has yet, as long as real ones.
func (h *history) make(n int) map[keyName]roomKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	made := map[keyName]roomKey{}
	for range n {
		h.made++
		i := h.made
		name := keyName{id.RoomID(fmt.Sprintf("!room%d:example.org", i%historyRooms)), id.SessionID(fmt.Sprintf("session/+%033d", i))}
		made[name] = roomKey{firstMessageIndex: i % 4, forwardedCount: i % 3, verified: i%2 == 1, plaintext: fmt.Sprintf(
			`{"algorithm":"m.megolm.v1.aes-sha2","sender_key":"senderkeysenderkeysenderkeysenderkeysenderk","session_key":"%0305d","shared_history":%t,"org.example.new":%d}`, i, i%2 == 0, i)}
	}
	return made
}

// took remembers what the homeserver said that it has.
func (h *history) took(keys map[keyName]roomKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.Copy(h.taken, keys)
}

func (h *history) all() map[keyName]roomKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.taken)
}

// lost counts what was to be there and is not, or not as it was, once for each room key.
func (h *history) lost(lost []keyName, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks++
	if len(lost) == 0 {
		return
	}
	for _, name := range lost {
		delete(h.taken, name)
	}
	h.missing += len(lost)
	h.findings = append(h.findings, fmt.Sprintf("lost: %d room keys, such as %s in %s, ", len(lost), lost[0].session, lost[0].room)+fmt.Sprintf(format, args...))
}

func (h *history) cameLate(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.late += n
}

// keyBackupData is a room key as it is in a key backup (client-server API, KeyBackupData).
type keyBackupData struct {
	FirstMessageIndex int             `json:"first_message_index"`
	ForwardedCount    int             `json:"forwarded_count"`
	IsVerified        bool            `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

type roomSessions struct {
	Sessions map[id.SessionID]keyBackupData `json:"sessions"`
}

// seal encrypts room keys for a version, as clients do, without its private key.
func seal(keys map[keyName]roomKey, to *ecdh.PublicKey) (map[id.RoomID]roomSessions, error) {
	rooms := map[id.RoomID]roomSessions{}
	for name, key := range keys {
		sealed, err := backup.EncryptSessionDataWithPubkey(to, json.RawMessage(key.plaintext))
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(map[string]any{"ciphertext": sealed.Ciphertext, "ephemeral": &sealed.Ephemeral, "mac": sealed.MAC})
		if err != nil {
			return nil, err
		}
		if rooms[name.room].Sessions == nil {
			rooms[name.room] = roomSessions{map[id.SessionID]keyBackupData{}}
		}
		rooms[name.room].Sessions[name.session] = keyBackupData{key.firstMessageIndex, key.forwardedCount, key.verified, data}
	}
	return rooms, nil
}

func versionKey(authPublicKey string) (*ecdh.PublicKey, error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(authPublicKey, "="))
	if err != nil {
		return nil, fmt.Errorf("reading a version's public key: %w", err)
	}
	return ecdh.X25519().NewPublicKey(raw)
}

// upload puts room keys into the current version, and says which it was.
func (u *user) upload(ctx context.Context, keys map[keyName]roomKey) error {
	current, err := u.laptop.GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return err
	}
	to, err := versionKey(string(current.AuthData.PublicKey))
	if err != nil {
		return err
	}
	rooms, err := seal(keys, to)
	if err != nil {
		return err
	}
	_, err = u.laptop.MakeFullRequest(ctx, mautrix.FullRequest{Method: http.MethodPut, URL: u.keysURL(current.Version), RequestJSON: map[string]any{"rooms": rooms}})
	if err == nil {
		u.history.took(keys)
	}
	return err
}

func (u *user) keysURL(version id.KeyBackupVersion) string {
	return u.laptop.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys"}, map[string]string{"version": version.String()})
}

// fill gives a user his history.
func (u *user) fill(ctx context.Context, keys int) error {
	for done := 0; done < keys; done += uploadKeys {
		if err := u.upload(ctx, u.history.make(min(uploadKeys, keys-done))); err != nil {
			return fmt.Errorf("putting the history into the key backup: %w", err)
		}
	}
	return nil
}

// checkHistory counts which of the user's room keys are not in his current version, readable with its key and as they were.
// Whether it is the newest key's is counted apart.
func (w *world) checkHistory(ctx context.Context, u *user) error {
	want := u.history.all()
	current, err := u.laptop.GetKeyBackupLatestVersion(ctx)
	if err != nil {
		return err
	}
	var key backupkey.Key
	for _, k := range u.keys {
		if k.Fits(string(current.AuthData.PublicKey)) {
			key = k
		}
	}
	var body struct {
		Rooms map[id.RoomID]roomSessions `json:"rooms"`
	}
	if _, err := u.laptop.MakeFullRequest(ctx, mautrix.FullRequest{Method: http.MethodGet, URL: u.keysURL(current.Version), ResponseJSON: &body}); err != nil {
		return err
	}
	var lost []keyName
	for name, was := range want {
		if got, err := opened(body.Rooms[name.room].Sessions[name.session], key); err != nil || got != was {
			lost = append(lost, name)
		}
	}
	u.history.lost(lost, "of %s's %d are not as they were in key-backup version %s when its rotation had ended", u.name, len(want), current.Version)
	return nil
}

func opened(data keyBackupData, key backupkey.Key) (roomKey, error) {
	if key.IsZero() {
		return roomKey{}, errors.New("nobody has this version's key")
	}
	var sealed backup.EncryptedSessionData[json.RawMessage]
	if err := json.Unmarshal(data.SessionData, &sealed); err != nil {
		return roomKey{}, err
	}
	plaintext, err := sealed.Decrypt(&backup.MegolmBackupKey{PrivateKey: key.Private()})
	if err != nil {
		return roomKey{}, err
	}
	return roomKey{data.FirstMessageIndex, data.ForwardedCount, data.IsVerified, string(*plaintext)}, nil
}
