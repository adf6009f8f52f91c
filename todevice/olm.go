package todevice

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// Why an envelope cannot be decrypted. They are final: the same bytes will never decrypt.
var (
	errMalformed = errors.New("malformed")
	errNotForUs  = errors.New("not encrypted for this device")
	errNoSession = errors.New("no Olm session decrypts it")
	errPayload   = errors.New("the payload does not fit its envelope")
	errDuplicate = errors.New("the same ciphertext was decrypted before")
)

func undecryptable(err error) bool {
	return errors.Is(err, errMalformed) || errors.Is(err, errNotForUs) || errors.Is(err, errNoSession) || errors.Is(err, errPayload)
}

// encryptedContent is m.room.encrypted with m.olm.v1.curve25519-aes-sha2 (client-server API, "m.olm.v1…").
type encryptedContent struct {
	Algorithm  id.Algorithm                    `json:"algorithm"`
	SenderKey  id.Curve25519                   `json:"sender_key"`
	Ciphertext map[id.Curve25519]olmCiphertext `json:"ciphertext"`
}

type olmCiphertext struct {
	Type id.OlmMsgType `json:"type"`
	Body string        `json:"body"`
}

// payload is the plaintext of an Olm message (client-server API, "m.olm.v1…"; sender_device_keys is MSC4147).
type payload struct {
	Type             string              `json:"type"`
	Content          json.RawMessage     `json:"content"`
	Sender           id.UserID           `json:"sender"`
	Recipient        id.UserID           `json:"recipient"`
	Keys             crypto.OlmEventKeys `json:"keys"`
	RecipientKeys    crypto.OlmEventKeys `json:"recipient_keys"`
	SenderDeviceKeys json.RawMessage     `json:"sender_device_keys,omitempty"`
}

// decrypt turns an envelope into a message and advances the ratchet in the transaction. Errors that undecryptable()
// knows are about the envelope; all others are about the database, and roll back.
func (e *Endpoint) decrypt(ctx context.Context, envelope Envelope) (*Message, error) {
	state, err := e.state(ctx)
	if err != nil {
		return nil, err
	}
	var content encryptedContent
	if err := json.Unmarshal(envelope.Content, &content); err != nil || content.Algorithm != id.AlgorithmOlmV1 || content.SenderKey == "" {
		return nil, fmt.Errorf("%w: not an Olm message", errMalformed)
	}
	signingKey, identityKey := state.account.Keys()
	ours, ok := content.Ciphertext[identityKey]
	if !ok {
		return nil, errNotForUs
	}
	bytes, err := base64.RawStdEncoding.DecodeString(ours.Body)
	if err != nil || len(bytes) == 0 {
		return nil, fmt.Errorf("%w: the ciphertext is not base64", errMalformed)
	}
	hash := sha256.Sum256(bytes)
	// HandleEncryptedEvent of mautrix cannot tell a duplicate from a failure; here the hash is looked up first, and
	// kept for good: the homeserver may deliver the same bytes twice, weeks apart.
	seen, err := state.store.GetOlmHash(ctx, hash)
	if err != nil {
		return nil, fmt.Errorf("looking up the ciphertext's hash: %w", err)
	} else if !seen.IsZero() {
		return nil, errDuplicate
	}
	plaintext, began, err := e.open(ctx, state, content.SenderKey, ours)
	if err != nil {
		return nil, err
	}
	if err := state.store.PutOlmHash(ctx, hash, e.now()); err != nil {
		return nil, fmt.Errorf("keeping the ciphertext's hash: %w", err)
	}
	var inner payload
	if err := json.Unmarshal(plaintext, &inner); err != nil {
		return nil, fmt.Errorf("%w: not JSON", errPayload)
	}
	switch {
	case inner.Sender != envelope.Sender:
		return nil, fmt.Errorf("%w: another sender", errPayload)
	case inner.Recipient != e.client.UserID || inner.RecipientKeys.Ed25519 != signingKey:
		return nil, fmt.Errorf("%w: another recipient", errPayload)
	case inner.Keys.Ed25519 == "" || inner.Type == "":
		return nil, fmt.Errorf("%w: keys or type are missing", errPayload)
	}
	return &Message{
		Envelope:         envelope,
		Type:             inner.Type,
		Content:          inner.Content,
		SenderKey:        content.SenderKey,
		SenderSigningKey: inner.Keys.Ed25519,
		CiphertextHash:   hash,
		Began:            began,
	}, nil
}

// open decrypts, and says whether the message began a session.
func (e *Endpoint) open(ctx context.Context, state *txn, sender id.Curve25519, message olmCiphertext) (plaintext []byte, began bool, err error) {
	if message.Type != id.OlmMsgTypePreKey && message.Type != id.OlmMsgTypeMsg {
		return nil, false, fmt.Errorf("%w: unknown Olm message type", errMalformed)
	}
	sessions, err := state.store.GetSessions(ctx, sender)
	if err != nil {
		return nil, false, fmt.Errorf("loading Olm sessions: %w", err)
	}
	for _, session := range sessions {
		if message.Type == id.OlmMsgTypePreKey {
			if matches, err := session.Internal.MatchesInboundSession(message.Body); err != nil || !matches {
				continue
			}
		}
		plaintext, err := session.Decrypt(message.Body, message.Type)
		if err != nil {
			continue
		}
		session.LastDecryptedTime = e.clock()
		if err := state.store.UpdateSession(ctx, sender, session); err != nil {
			return nil, false, fmt.Errorf("saving an Olm session: %w", err)
		}
		return plaintext, false, nil
	}
	if message.Type != id.OlmMsgTypePreKey {
		return nil, false, errNoSession
	}
	session, err := state.account.NewInboundSessionFrom(sender, message.Body)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", errNoSession, err)
	}
	plaintext, err = session.Decrypt(message.Body, message.Type)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", errNoSession, err)
	}
	// By the clock that our own sessions have (newSession): the latest is the one that is written with.
	now := e.clock()
	session.CreationTime, session.LastEncryptedTime, session.LastDecryptedTime = now, now, now
	if err := state.store.AddSession(ctx, sender, session); err != nil {
		return nil, false, fmt.Errorf("saving a new Olm session: %w", err)
	}
	// A fallback key stays, and is then not among the one-time keys: that is no error.
	_ = state.account.Internal.RemoveOneTimeKeys(session.Internal)
	if err := state.store.PutAccount(ctx, state.account); err != nil {
		return nil, false, fmt.Errorf("saving the Olm account: %w", err)
	}
	return plaintext, true, nil
}

// encrypt makes the ciphertext for one device and advances the ratchet in the transaction. Without a session and
// without a claimed key it is ErrNoOneTimeKey.
func (e *Endpoint) encrypt(ctx context.Context, to crosssigning.Device, eventType string, content json.RawMessage, claims Claims) (json.RawMessage, error) {
	state, err := e.state(ctx)
	if err != nil {
		return nil, err
	}
	session, err := e.outbound(ctx, state, to, claims)
	if err != nil {
		return nil, err
	}
	ciphertext, err := e.seal(state, session, to, eventType, content)
	if err != nil {
		return nil, err
	}
	if err := state.store.UpdateSession(ctx, to.IdentityKey, session); err != nil {
		return nil, fmt.Errorf("saving an Olm session: %w", err)
	}
	return ciphertext, nil
}

// seal encrypts with a session and moves its ratchet in memory; the caller saves it in the same transaction.
func (e *Endpoint) seal(state *txn, session *crypto.OlmSession, to crosssigning.Device, eventType string, content json.RawMessage) (json.RawMessage, error) {
	signingKey, identityKey := state.account.Keys()
	plaintext, err := json.Marshal(payload{
		Type:             eventType,
		Content:          content,
		Sender:           e.client.UserID,
		Recipient:        to.UserID,
		Keys:             crypto.OlmEventKeys{Ed25519: signingKey},
		RecipientKeys:    crypto.OlmEventKeys{Ed25519: to.SigningKey},
		SenderDeviceKeys: state.deviceKeys,
	})
	if err != nil {
		return nil, fmt.Errorf("building the payload: %w", err)
	}
	messageType, body, err := session.Encrypt(plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypting to %s: %w", to.DeviceID, err)
	}
	return json.Marshal(encryptedContent{
		Algorithm:  id.AlgorithmOlmV1,
		SenderKey:  identityKey,
		Ciphertext: map[id.Curve25519]olmCiphertext{to.IdentityKey: {Type: messageType, Body: string(body)}},
	})
}

func (e *Endpoint) outbound(ctx context.Context, state *txn, to crosssigning.Device, claims Claims) (*crypto.OlmSession, error) {
	if key, ok := claims[to.IdentityKey]; ok {
		session, err := e.newSession(state, to, key)
		if err != nil {
			return nil, err
		}
		if err := state.store.AddSession(ctx, to.IdentityKey, session); err != nil {
			return nil, fmt.Errorf("saving a new Olm session: %w", err)
		}
		delete(claims, to.IdentityKey)
		return session, nil
	}
	session, err := state.store.GetLatestSession(ctx, to.IdentityKey)
	if err != nil {
		return nil, fmt.Errorf("loading the latest Olm session: %w", err)
	} else if session == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoOneTimeKey, to.DeviceID)
	}
	return session, nil
}

func (e *Endpoint) newSession(state *txn, to crosssigning.Device, oneTimeKey id.Curve25519) (*crypto.OlmSession, error) {
	internal, err := state.account.Internal.NewOutboundSession(to.IdentityKey, oneTimeKey)
	if err != nil {
		return nil, fmt.Errorf("opening an Olm session with %s: %w", to.DeviceID, err)
	}
	now := e.clock()
	return &crypto.OlmSession{Internal: internal, ExpirationMixin: crypto.ExpirationMixin{
		TimeMixin: crypto.TimeMixin{CreationTime: now, LastEncryptedTime: now, LastDecryptedTime: now},
	}}, nil
}

// clock is the time as sessions keep it: the store compares it as text.
func (e *Endpoint) clock() time.Time { return e.now().UTC().Round(0) }

// ErrNoOneTimeKey means that a device has no Olm session with us and no one-time key left to begin one.
var ErrNoOneTimeKey = errors.New("the device has no one-time key")

// claimPatience is how long a homeserver may take to answer a claim.
const claimPatience = 30 * time.Second

// Claims are one-time keys that were claimed and whose signatures were checked, by the device's identity key. Each is
// used once.
type Claims map[id.Curve25519]id.Curve25519

// Claim claims one-time keys for the devices that have no session with us yet, or for all of them if fresh. A device
// that has none is simply missing in the answer. It is HTTP: call it before the transaction.
func (e *Endpoint) Claim(ctx context.Context, fresh bool, devices ...crosssigning.Device) (Claims, error) {
	request := mautrix.OneTimeKeysRequest{}
	wanted := map[id.UserID]map[id.DeviceID]crosssigning.Device{}
	known, err := e.withSession(ctx, devices)
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		if !fresh && known[device.IdentityKey] {
			continue
		}
		if request[device.UserID] == nil {
			request[device.UserID] = map[id.DeviceID]id.KeyAlgorithm{}
			wanted[device.UserID] = map[id.DeviceID]crosssigning.Device{}
		}
		request[device.UserID][device.DeviceID] = id.KeyAlgorithmSignedCurve25519
		wanted[device.UserID][device.DeviceID] = device
	}
	claims := Claims{}
	if len(request) == 0 {
		return claims, nil
	}
	select {
	case e.claiming <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting to claim one-time keys: %w", ctx.Err())
	}
	// Others wait for their turn, and maybe on another homeserver.
	limited, cancel := context.WithTimeout(ctx, claimPatience)
	resp, err := e.client.ClaimKeys(limited, &mautrix.ReqClaimKeys{OneTimeKeys: request, Timeout: 10_000})
	cancel()
	<-e.claiming
	if err != nil {
		return nil, fmt.Errorf("claiming one-time keys: %w", err)
	}
	for user, answered := range resp.OneTimeKeys {
		for deviceID, keys := range answered {
			device, ok := wanted[user][deviceID]
			if !ok {
				continue
			}
			for keyID, key := range keys {
				if algorithm, _ := keyID.Parse(); algorithm == id.KeyAlgorithmSignedCurve25519 && signedBy(key, device) {
					claims[device.IdentityKey] = key.Key
				}
			}
		}
	}
	return claims, nil
}

// withSession says with which of the devices there is an Olm session.
func (e *Endpoint) withSession(ctx context.Context, devices []crosssigning.Device) (map[id.Curve25519]bool, error) {
	known := map[id.Curve25519]bool{}
	for part := range slices.Chunk(devices, 500) {
		args, places := []any{e.accountID}, make([]string, len(part))
		for i, device := range part {
			args = append(args, device.IdentityKey)
			places[i] = "$" + strconv.Itoa(i+2)
		}
		rows, err := e.db.Query(ctx, `SELECT DISTINCT sender_key FROM crypto_olm_session WHERE account_id = $1 AND sender_key IN (`+strings.Join(places, ", ")+`)`, args...)
		if err != nil {
			return nil, fmt.Errorf("looking for Olm sessions: %w", err)
		}
		for rows.Next() {
			var key id.Curve25519
			if err := rows.Scan(&key); err != nil {
				return nil, errors.Join(fmt.Errorf("looking for Olm sessions: %w", err), rows.Close())
			}
			known[key] = true
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, fmt.Errorf("looking for Olm sessions: %w", err)
		}
	}
	return known, nil
}
