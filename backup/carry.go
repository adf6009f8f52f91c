package backup

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/backup"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/internal/sabotage"
)

// CarryOver says what to carry: every room key of From, readable with FromKey, into To, whose public key is ToKey.
type CarryOver struct {
	From, To id.KeyBackupVersion
	FromKey  backupkey.Key
	ToKey    string
	// MaxBodyBytes limits a request's body, 1 MiB if zero.
	MaxBodyBytes int
	// Workers is how many room keys are opened and sealed at once; as many as there are processors if zero.
	Workers int
	// SpoolDir is where the old version's answer, which is encrypted, stays while it is worked on; the system's
	// directory for temporary files if empty.
	SpoolDir string
	// Progress, if set, is called after each request.
	Progress func(Carried)
	// Pace, if set, is called before each request that writes, and what it returns with how long the request took: it
	// holds back where the homeserver is busy.
	Pace func(ctx context.Context) (done func(took time.Duration), err error)
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

// catchUps is how often what arrived in the old version meanwhile is caught up before the carry-over says that it is
// not complete: clients that have not heard of the new version go on uploading.
const catchUps = 5

// CarryOver re-encrypts every room key of the old version that the new one lacks, or has only from a later message on.
// Everything of a key is kept as it is: its index, counters, and whatever its session data holds. Repeating it is
// safe, and is how it resumes. ErrChanged: To is not the current version; ErrGone: From was deleted.
//
// The API names the rooms only by sending all keys, so the answer with the old version goes to a file and is read from
// there key by key: in memory are the keys that are being worked on, and sixteen bytes for each that the new version has.
func (c *Client) CarryOver(ctx context.Context, job CarryOver) (Carried, error) {
	to, err := publicKey(job.ToKey)
	if err != nil {
		return Carried{}, fmt.Errorf("carrying over: the new public key: %w", err)
	}
	if job.FromKey.IsZero() {
		return Carried{}, errors.New("carrying over: there is no old key")
	}
	if job.MaxBodyBytes <= 0 {
		job.MaxBodyBytes = defaultMaxBody
	}
	if job.Workers <= 0 {
		job.Workers = runtime.GOMAXPROCS(0)
	}
	var result Carried
	for range catchUps {
		before, err := c.state(ctx, job.From)
		if err != nil {
			return result, err
		}
		if result, err = c.carryOnce(ctx, job, to); err != nil {
			return result, err
		}
		after, err := c.state(ctx, job.From)
		if err != nil {
			return result, err
		}
		if after == before || sabotage.CatchUpLeftOut {
			return result, nil
		}
	}
	result.Complete = false
	return result, nil
}

// versionState changes when a room key is added to a version or replaced (client-server API, "etag").
type versionState struct {
	etag  string
	count int
}

func (c *Client) state(ctx context.Context, version id.KeyBackupVersion) (versionState, error) {
	got, err := c.Get(ctx, version)
	if err != nil {
		return versionState{}, err
	}
	if got == nil {
		return versionState{}, fmt.Errorf("carrying over from key-backup version %s: %w", version, ErrGone)
	}
	return versionState{got.ETag, got.Count}, nil
}

func (c *Client) carryOnce(ctx context.Context, job CarryOver, to *ecdh.PublicKey) (Carried, error) {
	old, err := c.spool(ctx, job.From, job.SpoolDir)
	if errors.Is(err, mautrix.MNotFound) {
		return Carried{}, fmt.Errorf("carrying over from key-backup version %s: %w", job.From, ErrGone)
	} else if err != nil {
		return Carried{}, err
	}
	defer old.close()
	have, err := c.names(ctx, job.To)
	if err != nil {
		return Carried{}, err
	}
	if sabotage.CarryBelieved && len(have) > 0 {
		return Carried{Total: len(have), Carried: len(have), Complete: true}, nil
	}
	transfer := newTransfer(c, job, to)
	if err := transfer.run(ctx, old, have); err != nil {
		return transfer.result(), err
	}
	// What counts is what the homeserver has now, read back.
	if have, err = c.names(ctx, job.To); err != nil {
		return transfer.result(), err
	}
	result := Carried{Undecrypted: transfer.result().Undecrypted}
	err = each(old, func(room id.RoomID, sessionID id.SessionID, key indexed) error {
		result.Total++
		if !have.lacks(room, sessionID, key.FirstMessageIndex) {
			result.Carried++
		}
		return nil
	})
	result.Complete = err == nil && result.Carried == result.Total
	return result, err
}

// names reads what the new version has.
func (c *Client) names(ctx context.Context, version id.KeyBackupVersion) (index, error) {
	have, err := c.index(ctx, version)
	if errors.Is(err, mautrix.MNotFound) {
		return nil, fmt.Errorf("carrying over into key-backup version %s: %w", version, ErrChanged)
	}
	return have, err
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
