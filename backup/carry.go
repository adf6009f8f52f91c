package backup

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"crypto/ecdh"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// CarryOver says what to carry: every room key of From, readable with FromKey, into To, whose public key is ToKey.
type CarryOver struct {
	From, To     id.KeyBackupVersion
	FromKey      backupkey.Key
	ToKey        string
	MaxBodyBytes int
}

// Carried counts a carry-over. Complete means that the set of (room, session) of the old version is contained in the
// new one, as read back from the homeserver.
type Carried struct {
	Total, Carried int
	Undecrypted    []id.SessionID
	Complete       bool
}

// defaultMaxBody stays far below every homeserver's limit on a request body.
const defaultMaxBody = 1 << 20

// CarryOver re-encrypts every room key of the old version that the new one lacks, or has only from a later message on.
// Everything of a key is kept as it is: its index, counters, and whatever its session data holds. Repeating it is
// safe, and is how it resumes.
func (c *Client) CarryOver(ctx context.Context, job CarryOver) (Carried, error) {
	var result Carried
	raw, err := base64.RawStdEncoding.DecodeString(job.ToKey)
	if err != nil {
		return result, fmt.Errorf("carrying over: the new public key is not unpadded base64: %w", err)
	}
	public, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return result, fmt.Errorf("carrying over: %w", err)
	}
	old, err := c.roomKeys(ctx, job.From)
	if err != nil {
		return result, err
	}
	have, err := c.roomKeys(ctx, job.To)
	if err != nil {
		return result, err
	}
	limit := job.MaxBodyBytes
	if limit <= 0 {
		limit = defaultMaxBody
	}
	batch, size := roomKeys{Rooms: map[id.RoomID]roomSessions{}}, 0
	flush := func() error {
		// Dendrite wipes auth_data on a PUT without rooms.
		if len(batch.Rooms) == 0 {
			return nil
		}
		err := c.put(ctx, job.To, batch)
		batch, size = roomKeys{Rooms: map[id.RoomID]roomSessions{}}, 0
		return err
	}
	for room, sessions := range old.Rooms {
		for sessionID, key := range sessions.Sessions {
			result.Total++
			if present, ok := have.Rooms[room].Sessions[sessionID]; ok && present.FirstMessageIndex <= key.FirstMessageIndex {
				result.Carried++
				continue
			}
			carried, err := reencrypt(key, job.FromKey, public)
			if err != nil {
				result.Undecrypted = append(result.Undecrypted, sessionID)
				continue
			}
			weight := len(carried.SessionData) + len(sessionID) + len(room) + 128
			if size > 0 && size+weight > limit {
				if err := flush(); err != nil {
					return result, err
				}
			}
			if _, ok := batch.Rooms[room]; !ok {
				batch.Rooms[room] = roomSessions{Sessions: map[id.SessionID]session{}}
			}
			batch.Rooms[room].Sessions[sessionID] = carried
			size += weight
			result.Carried++
		}
	}
	if err := flush(); err != nil {
		return result, err
	}
	slices.Sort(result.Undecrypted)
	if have, err = c.roomKeys(ctx, job.To); err != nil {
		return result, err
	}
	result.Complete = contained(old, have)
	return result, nil
}

func contained(old, in roomKeys) bool {
	for room, sessions := range old.Rooms {
		for sessionID := range sessions.Sessions {
			if _, ok := in.Rooms[room].Sessions[sessionID]; !ok {
				return false
			}
		}
	}
	return true
}

// reencrypt opens session data with the old key and seals it for the new one with a fresh ephemeral key. The plaintext
// stays raw JSON, so that shared_history and fields nobody knows yet survive.
func reencrypt(key session, from backupkey.Key, to *ecdh.PublicKey) (session, error) {
	var sealed backup.EncryptedSessionData[json.RawMessage]
	if err := json.Unmarshal(key.SessionData, &sealed); err != nil || sealed.Ephemeral.PublicKey == nil {
		return session{}, errors.New("malformed session data")
	}
	plaintext, err := sealed.Decrypt(&backup.MegolmBackupKey{PrivateKey: from.Private()})
	if err != nil {
		return session{}, err
	}
	fresh, err := backup.EncryptSessionDataWithPubkey(to, *plaintext)
	if err != nil {
		return session{}, err
	}
	// EphemeralKey marshals through its pointer.
	if key.SessionData, err = json.Marshal(map[string]any{"ciphertext": fresh.Ciphertext, "ephemeral": &fresh.Ephemeral, "mac": fresh.MAC}); err != nil {
		return session{}, err
	}
	return key, nil
}

func (c *Client) put(ctx context.Context, version id.KeyBackupVersion, keys roomKeys) error {
	url := c.matrix.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys"}, map[string]string{"version": version.String()})
	_, err := c.matrix.MakeRequest(ctx, http.MethodPut, url, keys, nil)
	var httpErr mautrix.HTTPError
	if errors.As(err, &httpErr) && httpErr.RespError != nil && strings.Contains(httpErr.RespError.ErrCode, "WRONG_ROOM_KEYS_VERSION") {
		return ErrChanged
	} else if err != nil {
		return fmt.Errorf("writing room keys into key-backup version %s: %w", version, err)
	}
	return nil
}
