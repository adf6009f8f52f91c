// Package backup puts a user's key backup on the homeserver in order: create and verify a version, carry room keys
// over from an older one, rewrite the recovery copy (client-server API, "Server-side key backups" and "Secret
// storage"). The homeserver's word is no proof: a version is ours only if the private key in hand derives its public key.
package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// ErrChanged means that somebody else changed the key backup meanwhile: stop, never fight.
var ErrChanged = errors.New("the key backup was changed by somebody else meanwhile")

// Version is a key-backup version as the homeserver answers it. PublicKey is unpadded; AuthData is as it came.
type Version struct {
	ID        id.KeyBackupVersion
	Algorithm id.KeyBackupAlgorithm
	PublicKey string
	AuthData  json.RawMessage
	Count     int
	ETag      string
}

// HeldBy reports whether the key is this version's private key.
func (v *Version) HeldBy(key backupkey.Key) bool {
	return v.Algorithm == id.KeyBackupAlgorithmMegolmBackupV1 && key.Fits(v.PublicKey)
}

// Signer signs auth_data as a device or as the master key; keyID is "ed25519:<device id or master key>".
type Signer func(ctx context.Context, obj any) (keyID id.KeyID, signature string, err error)

// Client works on the backup of the user the Matrix client is logged in as. It keeps nothing in memory, and every call
// may be repeated, also when its answer was lost.
type Client struct{ matrix *mautrix.Client }

// New makes a Client.
func New(matrix *mautrix.Client) *Client { return &Client{matrix} }

// Current reads the current version; nil if the user has no key backup.
func (c *Client) Current(ctx context.Context) (*Version, error) {
	version, err := c.read(ctx, c.matrix.BuildClientURL("v3", "room_keys", "version"))
	if err != nil {
		return nil, fmt.Errorf("reading the current key-backup version: %w", err)
	}
	return version, nil
}

// Get reads one version; nil if it does not exist.
func (c *Client) Get(ctx context.Context, version id.KeyBackupVersion) (*Version, error) {
	got, err := c.read(ctx, c.matrix.BuildClientURL("v3", "room_keys", "version", version.String()))
	if err != nil {
		return nil, fmt.Errorf("reading key-backup version %s: %w", version, err)
	}
	return got, nil
}

type versionBody struct {
	Version   id.KeyBackupVersion   `json:"version,omitempty"`
	Algorithm id.KeyBackupAlgorithm `json:"algorithm"`
	AuthData  json.RawMessage       `json:"auth_data"`
	Count     int                   `json:"count,omitempty"`
	ETag      string                `json:"etag,omitempty"`
}

func (c *Client) read(ctx context.Context, url string) (*Version, error) {
	var body versionBody
	_, err := c.matrix.MakeRequest(ctx, http.MethodGet, url, nil, &body)
	if errors.Is(err, mautrix.MNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	// Algorithms differ in auth_data; one without a public key is nobody's to hold.
	var auth struct {
		PublicKey string `json:"public_key"`
	}
	_ = json.Unmarshal(body.AuthData, &auth)
	return &Version{ID: body.Version, Algorithm: body.Algorithm, PublicKey: strings.TrimRight(auth.PublicKey, "="),
		AuthData: body.AuthData, Count: body.Count, ETag: body.ETag}, nil
}

// Ensure uses the current version if it is the key's already, adding the signatures it lacks (clients do not use a
// version that no device they trust signed), and creates one otherwise. expected is the version the caller last saw as
// current, empty for none: another one is ErrChanged. A creation whose answer was lost is found as "current and ours",
// and one whose caller was lost as created still: it has our signatures and is not the expected version.
// The version is read back and compared, auth_data and signatures too, before it counts.
//
// The API has no compare-and-set: a version that somebody else creates between the look at the current one and the
// creation is superseded by ours, unseen.
func (c *Client) Ensure(ctx context.Context, key backupkey.Key, expected id.KeyBackupVersion, signers ...Signer) (version *Version, created bool, err error) {
	if key.IsZero() {
		return nil, false, errors.New("creating a key-backup version: there is no key")
	}
	current, err := c.Current(ctx)
	if err != nil {
		return nil, false, err
	}
	auth := authData{"public_key": quoted(key.PublicKey())}
	ours := current != nil && current.HeldBy(key)
	if ours {
		if err := json.Unmarshal(current.AuthData, &auth); err != nil {
			return nil, false, fmt.Errorf("reading the auth_data of key-backup version %s: %w", current.ID, err)
		}
	} else if (current == nil && expected != "") || (current != nil && current.ID != expected) {
		return nil, false, ErrChanged
	}
	added, err := auth.sign(ctx, c.matrix.UserID, signers)
	if err != nil {
		return nil, false, err
	}
	switch {
	case ours && !added:
		return current, current.ID != expected, nil
	case ours:
		err = c.write(ctx, http.MethodPut, current.ID, auth, "version", current.ID.String())
	default:
		err = c.write(ctx, http.MethodPost, "", auth, "version")
	}
	// Whether or not there was an answer, what the homeserver has now is what counts.
	version, readErr := c.Current(ctx)
	switch {
	case err != nil && (readErr != nil || version == nil || !version.HeldBy(key) || !auth.within(version.AuthData, c.matrix.UserID)):
		return nil, false, fmt.Errorf("writing a key-backup version: %w", err)
	case readErr != nil:
		return nil, false, readErr
	case version == nil || !version.HeldBy(key) || (ours && version.ID != current.ID):
		return nil, false, ErrChanged
	case !auth.within(version.AuthData, c.matrix.UserID):
		return nil, false, fmt.Errorf("key-backup version %s does not read back as it was written and signed", version.ID)
	}
	return version, !ours, nil
}

// Delete removes a version that is not the current one. It looks before that another one is: on Synapse the version
// before becomes current when the newest is deleted, so what is deleted must never be that. A version that is gone
// already is no error.
func (c *Client) Delete(ctx context.Context, version, current id.KeyBackupVersion) error {
	now, err := c.Current(ctx)
	if err != nil {
		return err
	}
	if version == current || now == nil || now.ID != current {
		return fmt.Errorf("deleting key-backup version %s: %w", version, ErrChanged)
	}
	_, err = c.matrix.MakeRequest(ctx, http.MethodDelete, c.matrix.BuildClientURL("v3", "room_keys", "version", version.String()), nil, nil)
	if err != nil && !errors.Is(err, mautrix.MNotFound) {
		return fmt.Errorf("deleting key-backup version %s: %w", version, err)
	}
	return nil
}

func (c *Client) write(ctx context.Context, method string, version id.KeyBackupVersion, auth authData, path ...any) error {
	encoded, err := json.Marshal(auth)
	if err != nil {
		return err
	}
	// A PUT has to repeat all of it: what is left out is wiped.
	_, err = c.matrix.MakeRequest(ctx, method, c.matrix.BuildClientURL(append([]any{"v3", "room_keys"}, path...)...),
		versionBody{Version: version, Algorithm: id.KeyBackupAlgorithmMegolmBackupV1, AuthData: encoded}, nil)
	return err
}

// authData is the object that is signed, by its fields, so that those we do not know stay as they are.
type authData map[string]json.RawMessage

// sign adds the signatures and reports whether one of them was not there yet. Ed25519 signatures are deterministic.
func (a authData) sign(ctx context.Context, user id.UserID, signers []Signer) (added bool, err error) {
	body, made := a.split()
	if made[user] == nil {
		made[user] = map[id.KeyID]string{}
	}
	for _, sign := range signers {
		keyID, signature, err := sign(ctx, body)
		if err != nil {
			return false, fmt.Errorf("signing the key-backup version: %w", err)
		}
		added = added || made[user][keyID] != signature
		made[user][keyID] = signature
	}
	encoded, err := json.Marshal(made)
	a["signatures"] = encoded
	return added, err
}

// within reports whether raw has the same signed content, and every signature of the user.
func (a authData) within(raw json.RawMessage, user id.UserID) bool {
	var other authData
	if json.Unmarshal(raw, &other) != nil {
		return false
	}
	body, made := a.split()
	otherBody, otherMade := other.split()
	for keyID, signature := range made[user] {
		if otherMade[user][keyID] != signature {
			return false
		}
	}
	x, errX := canonicaljson.Marshal(body)
	y, errY := canonicaljson.Marshal(otherBody)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// split takes apart what is signed and the signatures (appendices, "Signing JSON").
func (a authData) split() (body authData, made signatures.Signatures) {
	body = maps.Clone(a)
	delete(body, "signatures")
	delete(body, "unsigned")
	if json.Unmarshal(a["signatures"], &made) != nil || made == nil {
		made = signatures.Signatures{}
	}
	return body, made
}

func quoted(text string) json.RawMessage {
	encoded, _ := json.Marshal(text) // A string always marshals.
	return encoded
}
