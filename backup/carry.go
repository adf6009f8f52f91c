package backup

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// CarryOver says what to carry: every room key of From, readable with FromKey, into To, whose public key is ToKey.
// MaxBodyBytes limits a request's body, 1 MiB if zero. Progress, if set, is called after each request.
type CarryOver struct {
	From, To     id.KeyBackupVersion
	FromKey      backupkey.Key
	ToKey        string
	MaxBodyBytes int
	Progress     func(Carried)
}

// Carried counts a carry-over: the old version's room keys, those of them that the new version has, and those that the
// old key does not open, by session. Complete means that the set of (room, session) of the old version is contained in
// the new one, each from no later a message on, as read back from the homeserver.
type Carried struct {
	Total, Carried int
	Undecrypted    []id.SessionID
	Complete       bool
}

// defaultMaxBody stays far below every homeserver's limit on a request body (Synapse's is 12.5 MiB).
const defaultMaxBody = 1 << 20

// CarryOver re-encrypts every room key of the old version that the new one lacks, or has only from a later message on.
// Everything of a key is kept as it is: its index, counters, and whatever its session data holds. Repeating it is
// safe, and is how it resumes. ErrChanged: To is not the current version; ErrGone: From was deleted.
//
// In memory are the old version's keys once, each dropped when it is carried, and of the new version the names. Asking
// for room after room would need less, but the API names the rooms only by sending all keys, so it would transfer
// everything twice.
func (c *Client) CarryOver(ctx context.Context, job CarryOver) (Carried, error) {
	to, err := publicKey(job.ToKey)
	if err != nil {
		return Carried{}, fmt.Errorf("carrying over: the new public key: %w", err)
	}
	if job.FromKey.IsZero() {
		return Carried{}, errors.New("carrying over: there is no old key")
	}
	old, err := readRooms[session](ctx, c, job.From)
	if errors.Is(err, mautrix.MNotFound) {
		return Carried{}, fmt.Errorf("carrying over from key-backup version %s: %w", job.From, ErrGone)
	} else if err != nil {
		return Carried{}, err
	}
	have, err := c.names(ctx, job.To)
	if err != nil {
		return Carried{}, err
	}
	var result Carried
	names := rooms[indexed]{}
	limit := job.MaxBodyBytes
	if limit <= 0 {
		limit = defaultMaxBody
	}
	b := newBatch(limit)
	flush := func() error {
		// A PUT without rooms makes Dendrite wipe auth_data.
		if b.keys == 0 {
			return nil
		}
		if err := c.writeRooms(ctx, job.To, b); err != nil {
			return err
		}
		result.Carried += b.keys
		b = newBatch(limit)
		if job.Progress != nil {
			job.Progress(result)
		}
		return nil
	}
	for _, sessions := range old {
		result.Total += len(sessions)
	}
	for _, room := range slices.Sorted(maps.Keys(old)) {
		names[room] = make(map[id.SessionID]indexed, len(old[room]))
		for _, sessionID := range slices.Sorted(maps.Keys(old[room])) {
			key := old[room][sessionID]
			names[room][sessionID] = indexed{key.FirstMessageIndex}
			if !lacks(have, room, sessionID, key.FirstMessageIndex) {
				result.Carried++
				continue
			}
			plaintext, err := open(key.SessionData, job.FromKey)
			if err != nil {
				result.Undecrypted = append(result.Undecrypted, sessionID)
				continue
			}
			if key.SessionData, err = seal(plaintext, to); err != nil {
				return result, fmt.Errorf("encrypting a room key to key-backup version %s: %w", job.To, err)
			}
			encoded, err := json.Marshal(key)
			if err != nil {
				return result, fmt.Errorf("encoding a room key: %w", err)
			}
			if !b.add(room, sessionID, encoded) {
				if err := flush(); err != nil {
					return result, err
				}
				b.add(room, sessionID, encoded)
			}
		}
		delete(old, room)
	}
	if err := flush(); err != nil {
		return result, err
	}
	if have, err = c.names(ctx, job.To); err != nil {
		return result, err
	}
	result.Carried = result.Total
	for room, sessions := range names {
		for sessionID, key := range sessions {
			if lacks(have, room, sessionID, key.FirstMessageIndex) {
				result.Carried--
			}
		}
	}
	result.Complete = result.Carried == result.Total
	return result, nil
}

// names reads what the new version has.
func (c *Client) names(ctx context.Context, version id.KeyBackupVersion) (rooms[indexed], error) {
	have, err := readRooms[indexed](ctx, c, version)
	if errors.Is(err, mautrix.MNotFound) {
		return nil, fmt.Errorf("carrying over into key-backup version %s: %w", version, ErrChanged)
	}
	return have, err
}

// lacks is the plan: a key is written if the new version has none for that session, or one that starts at a later
// message. Homeservers replace a key by one that is verified, by one that starts earlier, and by one that was forwarded
// less often (client-server API, "Server-side key backups"; Synapse and Dendrite apply them one by one), so whatever
// else is there must not be sent: a verified key that starts later would replace a better one.
func lacks(have rooms[indexed], room id.RoomID, sessionID id.SessionID, firstMessageIndex int) bool {
	present, ok := have[room][sessionID]
	return !ok || present.FirstMessageIndex > firstMessageIndex
}

func publicKey(text string) (*ecdh.PublicKey, error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil, errors.New("it is not base64")
	}
	return ecdh.X25519().NewPublicKey(raw)
}

// sealed is session_data of m.megolm_backup.v1.curve25519-aes-sha2. mautrix's own type refuses padded base64, which
// homeservers store as it comes.
type sealed struct {
	Ciphertext string `json:"ciphertext"`
	Ephemeral  string `json:"ephemeral"`
	MAC        string `json:"mac"`
}

// open decrypts session data. The plaintext stays raw JSON, so that shared_history and fields nobody knows yet survive.
func open(sessionData json.RawMessage, key backupkey.Key) (json.RawMessage, error) {
	var s sealed
	if err := json.Unmarshal(sessionData, &s); err != nil {
		return nil, errors.New("malformed session data")
	}
	ephemeral, err := publicKey(s.Ephemeral)
	if err != nil {
		return nil, fmt.Errorf("the ephemeral key: %w", err)
	}
	decoded := backup.EncryptedSessionData[json.RawMessage]{Ephemeral: backup.EphemeralKey{PublicKey: ephemeral}}
	if decoded.Ciphertext, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(s.Ciphertext, "=")); err != nil {
		return nil, errors.New("the ciphertext is not base64")
	}
	if decoded.MAC, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(s.MAC, "=")); err != nil {
		return nil, errors.New("the MAC is not base64")
	}
	plaintext, err := decoded.Decrypt(&backup.MegolmBackupKey{PrivateKey: key.Private()})
	if err != nil {
		return nil, err
	}
	return *plaintext, nil
}

// seal encrypts with a fresh ephemeral key.
func seal(plaintext json.RawMessage, to *ecdh.PublicKey) (json.RawMessage, error) {
	fresh, err := backup.EncryptSessionDataWithPubkey(to, plaintext)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealed{
		Ciphertext: base64.RawStdEncoding.EncodeToString(fresh.Ciphertext),
		Ephemeral:  base64.RawStdEncoding.EncodeToString(fresh.Ephemeral.Bytes()),
		MAC:        base64.RawStdEncoding.EncodeToString(fresh.MAC),
	})
}
