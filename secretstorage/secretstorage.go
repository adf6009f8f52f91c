// Package secretstorage is a user's secret storage on the homeserver (4S; client-server API, "Secret storage"): which
// secrets are in it, and giving them another key. It does not know what the secrets are: each is re-encrypted byte for
// byte. Every write is read back, and may be repeated, also when its answer was lost.
package secretstorage

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/crypto/utils"
	"maunium.net/go/mautrix/event"
)

// ErrChanged means that somebody else gave the storage another default key meanwhile.
var ErrChanged = errors.New("the secret storage got another key meanwhile")

// ErrNotOpened means that a key does not open an entry.
var ErrNotOpened = errors.New("the key does not open it")

// Client works on the secret storage of the user the Matrix client is logged in as. It keeps nothing in memory.
type Client struct{ matrix *mautrix.Client }

// New makes a Client.
func New(matrix *mautrix.Client) *Client { return &Client{matrix} }

// DefaultKey is the id of the key that the user's clients use; empty where he has no secret storage.
func (c *Client) DefaultKey(ctx context.Context) (string, error) {
	keyID, err := ssss.NewSSSSMachine(c.matrix).GetDefaultKeyID(ctx)
	if errors.Is(err, ssss.ErrNoDefaultKeyID) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("looking for secret storage: %w", err)
	}
	return keyID, nil
}

// Entry is one secret, under the account data type that names it.
type Entry struct {
	Name string
	// content is what else the account data has, and encrypted the secret for each key by its id.
	content   map[string]json.RawMessage
	encrypted map[string]json.RawMessage
}

// For reports whether the secret is there for a key.
func (e Entry) For(keyID string) bool { return len(e.encrypted[keyID]) > 0 }

// Open gives the secret as it was encrypted: for most, base64 of it. The MAC does not cover the IV, so a homeserver can
// have it open to something else: whoever can tell what the secret must be has to look.
func (e Entry) Open(key *ssss.Key) ([]byte, error) {
	var data ssss.EncryptedKeyData
	if json.Unmarshal(e.encrypted[key.ID], &data) != nil {
		return nil, fmt.Errorf("opening %s: %w", e.Name, ErrNotOpened)
	}
	payload, errPayload := decode(data.Ciphertext)
	iv, errIV := decode(data.IV)
	if errPayload != nil || errIV != nil || len(iv) != utils.AESCTRIVLength {
		return nil, fmt.Errorf("opening %s: %w", e.Name, ErrNotOpened)
	}
	aesKey, macKey := utils.DeriveKeysSHA256(key.Key, e.Name)
	if !hmac.Equal([]byte(strings.TrimRight(utils.HMACSHA256B64(payload, macKey), "=")), []byte(strings.TrimRight(data.MAC, "="))) {
		return nil, fmt.Errorf("opening %s: %w", e.Name, ErrNotOpened)
	}
	return utils.XorA256CTR(payload, aesKey, [utils.AESCTRIVLength]byte(iv)), nil
}

func decode(text string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
}

// seal is m.secret_storage.v1.aes-hmac-sha2.
func seal(name string, payload []byte, key *ssss.Key) ssss.EncryptedKeyData {
	aesKey, macKey := utils.DeriveKeysSHA256(key.Key, name)
	iv := utils.GenA256CTRIV()
	ciphertext := utils.XorA256CTR(slices.Clone(payload), aesKey, iv)
	return ssss.EncryptedKeyData{Ciphertext: base64.RawStdEncoding.EncodeToString(ciphertext), IV: base64.RawStdEncoding.EncodeToString(iv[:]),
		MAC: utils.HMACSHA256B64(ciphertext, macKey)}
}

// Payload is a secret of bytes as it goes into the storage: in base64 (client-server API, "Key backup", "Cross-signing").
func Payload(secret []byte) []byte { return []byte(base64.RawStdEncoding.EncodeToString(secret)) }

// accountDataFilter has a sync answer nothing but the account data, but for a type that is not there: Synapse answers a
// repeated /sync from a cache for two minutes, in which a secret that came since would be missing.
func accountDataFilter() string {
	return fmt.Sprintf(`{"room":{"rooms":[]},"presence":{"not_types":["*"]},"account_data":{"not_types":["%s"]}}`, uuid.NewString())
}

// Entries lists every secret there is, by name: the account data that has something encrypted. Only a sync lists account
// data; it is one without a token, so that it acknowledges nothing of this device's messages. A sync may lag behind what
// was written, so each entry is read by itself, and those that the caller knows by name are looked for anyway.
func (c *Client) Entries(ctx context.Context, known ...string) ([]Entry, error) {
	resp, err := c.matrix.FullSyncRequest(ctx, mautrix.ReqSync{FilterID: accountDataFilter(), SetPresence: event.PresenceOffline})
	if err != nil {
		return nil, fmt.Errorf("listing the account data: %w", err)
	}
	names := slices.Clone(known)
	for _, evt := range resp.AccountData.Events {
		if entry := readEntry(evt.Type.Type, evt.Content.VeryRaw); len(entry.encrypted) > 0 {
			names = append(names, entry.Name)
		}
	}
	slices.Sort(names)
	var entries []Entry
	for _, name := range slices.Compact(names) {
		entry, err := c.entry(ctx, name)
		if err != nil {
			return nil, err
		}
		if len(entry.encrypted) > 0 {
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

func readEntry(name string, content json.RawMessage) Entry {
	entry := Entry{Name: name, content: map[string]json.RawMessage{}, encrypted: map[string]json.RawMessage{}}
	if json.Unmarshal(content, &entry.content) != nil || entry.content == nil {
		entry.content = map[string]json.RawMessage{}
	}
	if json.Unmarshal(entry.content["encrypted"], &entry.encrypted) != nil || entry.encrypted == nil {
		entry.encrypted = map[string]json.RawMessage{}
	}
	return entry
}

func (c *Client) entry(ctx context.Context, name string) (Entry, error) {
	var content json.RawMessage
	err := c.matrix.GetAccountData(ctx, name, &content)
	if err != nil && !errors.Is(err, mautrix.MNotFound) {
		return Entry{}, fmt.Errorf("reading %s: %w", name, err)
	}
	return readEntry(name, content), nil
}

// Describe writes what is said of a key, under its id.
func (c *Client) Describe(ctx context.Context, key *ssss.Key) error {
	machine := ssss.NewSSSSMachine(c.matrix)
	if err := machine.SetKeyData(ctx, key.ID, key.Metadata); err != nil {
		return fmt.Errorf("describing the new key: %w", err)
	}
	back, err := machine.GetKeyData(ctx, key.ID)
	if err != nil {
		return fmt.Errorf("reading the new key's description back: %w", err)
	}
	if back.Algorithm != ssss.AlgorithmAESHMACSHA2 || !back.VerifyKey(key.Key) {
		return errors.New("the new key's description does not read back as it was written")
	}
	return nil
}

// Put puts a secret in for a key: beside those for other keys, or as the only one. It is read back and compared. Where it
// is there already as it should be, nothing is written.
func (c *Client) Put(ctx context.Context, name string, payload []byte, key *ssss.Key, only bool) error {
	entry, err := c.entry(ctx, name)
	if err != nil {
		return err
	}
	there, err := entry.Open(key)
	if err == nil && bytes.Equal(there, payload) && (!only || len(entry.encrypted) == 1) {
		return nil
	}
	encoded, err := json.Marshal(seal(name, payload, key))
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	if only {
		entry.encrypted = map[string]json.RawMessage{}
	}
	entry.encrypted[key.ID] = encoded
	if entry.content["encrypted"], err = json.Marshal(entry.encrypted); err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	if err := c.matrix.SetAccountData(ctx, name, entry.content); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if entry, err = c.entry(ctx, name); err != nil {
		return err
	}
	if there, err = entry.Open(key); err != nil || !bytes.Equal(there, payload) {
		return fmt.Errorf("%s does not read back as it was written", name)
	}
	return nil
}

// Switch makes another key the default one, if it is still the one that the caller knows, and reads it back. Where it is
// the other one already, nothing is written.
//
// The API has no compare-and-set: who sets it between the look and the write loses.
func (c *Client) Switch(ctx context.Context, from, to string) error {
	current, err := c.DefaultKey(ctx)
	if err != nil || current == to {
		return err
	}
	if current != from {
		return ErrChanged
	}
	writeErr := ssss.NewSSSSMachine(c.matrix).SetDefaultKeyID(ctx, to)
	// Whether or not there was an answer, what the homeserver has now is what counts.
	current, err = c.DefaultKey(ctx)
	switch {
	case err == nil && current == to:
		return nil
	case writeErr != nil:
		return fmt.Errorf("setting the default key of the secret storage: %w", writeErr)
	case err != nil:
		return err
	}
	return ErrChanged
}
