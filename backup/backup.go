// Package backup puts a user's key backup on the homeserver in order: create and verify a version, carry room keys
// over from an older one, rewrite the recovery copy (client-server API, "Server-side key backups" and "Secret
// storage"). The homeserver's word is no proof: a version is ours only if the private key in hand derives its public key.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// ErrChanged means that somebody else changed the key backup meanwhile: stop, never fight.
var ErrChanged = errors.New("the key backup was changed by somebody else meanwhile")

// Version is a key-backup version as the homeserver answers it. PublicKey is unpadded.
type Version struct {
	ID        id.KeyBackupVersion
	Algorithm id.KeyBackupAlgorithm
	PublicKey string
	Count     int
	ETag      string
}

// HeldBy reports whether the key is this version's private key.
func (v *Version) HeldBy(key backupkey.Key) bool {
	return v.Algorithm == id.KeyBackupAlgorithmMegolmBackupV1 && key.Fits(v.PublicKey)
}

// Signer signs auth_data as a device or as the master key; keyID is "ed25519:<device id or master key>".
type Signer func(ctx context.Context, obj any) (keyID id.KeyID, signature string, err error)

// Client works on the backup of the user the Matrix client is logged in as.
type Client struct{ matrix *mautrix.Client }

// New makes a Client.
func New(matrix *mautrix.Client) *Client { return &Client{matrix} }

type versionBody struct {
	Version   id.KeyBackupVersion   `json:"version,omitempty"`
	Algorithm id.KeyBackupAlgorithm `json:"algorithm"`
	AuthData  authData              `json:"auth_data"`
	Count     int                   `json:"count,omitempty"`
	ETag      string                `json:"etag,omitempty"`
}

type authData struct {
	PublicKey  string                `json:"public_key"`
	Signatures signatures.Signatures `json:"signatures,omitempty"`
}

// Current reads the current version; nil if the user has no key backup.
func (c *Client) Current(ctx context.Context) (*Version, error) {
	var body versionBody
	_, err := c.matrix.MakeRequest(ctx, http.MethodGet, c.matrix.BuildClientURL("v3", "room_keys", "version"), nil, &body)
	if errors.Is(err, mautrix.MNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the current key-backup version: %w", err)
	}
	return &Version{ID: body.Version, Algorithm: body.Algorithm, PublicKey: strings.TrimRight(body.AuthData.PublicKey, "="), Count: body.Count, ETag: body.ETag}, nil
}

// Ensure uses the current version if it is the key's already, and creates one otherwise. expected is the version the
// caller last saw as current, empty for none: another one is ErrChanged. A creation whose answer was lost is found by
// a repeat as "current and ours". The version is read back and compared before it counts.
func (c *Client) Ensure(ctx context.Context, key backupkey.Key, expected id.KeyBackupVersion, signers ...Signer) (version *Version, created bool, err error) {
	current, err := c.Current(ctx)
	if err != nil {
		return nil, false, err
	}
	if current != nil && current.HeldBy(key) {
		return current, false, nil
	}
	if (current == nil && expected != "") || (current != nil && current.ID != expected) {
		return nil, false, ErrChanged
	}
	auth := authData{PublicKey: key.PublicKey()}
	made := signatures.Signatures{c.matrix.UserID: {}}
	for _, sign := range signers {
		keyID, signature, err := sign(ctx, auth)
		if err != nil {
			return nil, false, fmt.Errorf("signing the key-backup version: %w", err)
		}
		made[c.matrix.UserID][keyID] = signature
	}
	auth.Signatures = made
	_, err = c.matrix.MakeRequest(ctx, http.MethodPost, c.matrix.BuildClientURL("v3", "room_keys", "version"),
		versionBody{Algorithm: id.KeyBackupAlgorithmMegolmBackupV1, AuthData: auth}, nil)
	if err != nil {
		return nil, false, fmt.Errorf("creating a key-backup version: %w", err)
	}
	if version, err = c.Current(ctx); err != nil {
		return nil, true, err
	}
	if version == nil || !version.HeldBy(key) {
		return nil, true, ErrChanged
	}
	return version, true, nil
}

// roomKeys is the body of GET and PUT /room_keys/keys. A session stays raw but for what carry-over must know.
type roomKeys struct {
	Rooms map[id.RoomID]roomSessions `json:"rooms"`
}

type roomSessions struct {
	Sessions map[id.SessionID]session `json:"sessions"`
}

type session struct {
	FirstMessageIndex int             `json:"first_message_index"`
	ForwardedCount    int             `json:"forwarded_count"`
	IsVerified        bool            `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

func (c *Client) roomKeys(ctx context.Context, version id.KeyBackupVersion) (roomKeys, error) {
	url := c.matrix.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "room_keys", "keys"}, map[string]string{"version": version.String()})
	var keys roomKeys
	if _, err := c.matrix.MakeRequest(ctx, http.MethodGet, url, nil, &keys); err != nil {
		return keys, fmt.Errorf("reading the room keys of key-backup version %s: %w", version, err)
	}
	return keys, nil
}

// Get reads one version; nil if it does not exist.
func (c *Client) Get(ctx context.Context, version id.KeyBackupVersion) (*Version, error) {
	var body versionBody
	_, err := c.matrix.MakeRequest(ctx, http.MethodGet, c.matrix.BuildClientURL("v3", "room_keys", "version", version.String()), nil, &body)
	if errors.Is(err, mautrix.MNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading key-backup version %s: %w", version, err)
	}
	return &Version{ID: body.Version, Algorithm: body.Algorithm, PublicKey: strings.TrimRight(body.AuthData.PublicKey, "="), Count: body.Count, ETag: body.ETag}, nil
}
