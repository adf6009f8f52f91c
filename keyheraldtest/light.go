package keyheraldtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Light is a device that lives in memory: real keys, Olm sessions and a sync of its own, and no store, so that a hundred of
// them are no more work than a homeserver has with them.
type Light struct {
	*mautrix.Client
	account *crypto.OlmAccount
	// Peers are the other devices that it takes messages from, by their identity keys; they are set before it receives.
	Peers map[id.Curve25519]id.DeviceID
	// Received counts the to-device messages that came.
	Received atomic.Int64
	since    string

	mu       sync.Mutex // guards sessions and the account
	sessions map[id.Curve25519][]*crypto.OlmSession
}

// lightKeys are as many one-time keys as goolm keeps.
const lightKeys = 100

// LightMessage is a to-device message, decrypted where it was encrypted. Encrypted ones are of a peer.
type LightMessage struct {
	Type      string
	Content   json.RawMessage
	Sender    id.Curve25519
	Encrypted bool
}

// NewLight publishes the keys of a device that is logged in, with its user's signature.
func NewLight(ctx context.Context, client *mautrix.Client, self olm.PKSigning) (*Light, error) {
	// As a device of its own it has a connection of its own.
	client.Client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}}
	client.DefaultHTTPRetries = 0
	l := &Light{Client: client, account: crypto.NewOlmAccount(), sessions: map[id.Curve25519][]*crypto.OlmSession{}}
	return l, publish(ctx, client, l.account, self, lightKeys)
}

// IdentityKey is the device's.
func (l *Light) IdentityKey() id.Curve25519 { return l.account.IdentityKey() }

const lightFilter = `{"room":{"rooms":[]},"presence":{"not_types":["*"]},"account_data":{"not_types":["*"]}}`

// Receive hands on what comes, all of one answer at once, until ctx ends.
func (l *Light) Receive(ctx context.Context, take func(messages []LightMessage)) error {
	for {
		answer, err := l.FullSyncRequest(ctx, mautrix.ReqSync{Timeout: 25_000, Since: l.since, FilterID: lightFilter, SetPresence: event.PresenceOffline})
		if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s asks for messages: %w", l.DeviceID, err)
		}
		var messages []LightMessage
		for _, evt := range answer.ToDevice.Events {
			message := LightMessage{Type: evt.Type.Type, Content: evt.Content.VeryRaw}
			if evt.Type.Type == event.ToDeviceEncrypted.Type {
				if message, err = l.decrypt(evt.Content.VeryRaw); err != nil {
					return fmt.Errorf("%s reads a message: %w", l.DeviceID, err)
				}
			}
			messages = append(messages, message)
		}
		l.since = answer.NextBatch
		take(messages)
		l.Received.Add(int64(len(messages)))
	}
}

type lightCiphertext struct {
	Type id.OlmMsgType `json:"type"`
	Body string        `json:"body"`
}

type lightEncrypted struct {
	Algorithm  id.Algorithm                      `json:"algorithm"`
	SenderKey  id.Curve25519                     `json:"sender_key"`
	Ciphertext map[id.Curve25519]lightCiphertext `json:"ciphertext"`
}

type lightPayload struct {
	Type          string              `json:"type"`
	Content       json.RawMessage     `json:"content"`
	Sender        id.UserID           `json:"sender"`
	Recipient     id.UserID           `json:"recipient"`
	Keys          crypto.OlmEventKeys `json:"keys"`
	RecipientKeys crypto.OlmEventKeys `json:"recipient_keys"`
}

func (l *Light) decrypt(raw json.RawMessage) (LightMessage, error) {
	var outer lightEncrypted
	if err := json.Unmarshal(raw, &outer); err != nil {
		return LightMessage{}, err
	}
	if _, known := l.Peers[outer.SenderKey]; !known {
		return LightMessage{}, errors.New("it is of no peer")
	}
	plaintext, err := l.open(outer.SenderKey, outer.Ciphertext[l.IdentityKey()])
	if err != nil {
		return LightMessage{}, err
	}
	var inner lightPayload
	if err := json.Unmarshal(plaintext, &inner); err != nil {
		return LightMessage{}, err
	}
	if inner.Sender != l.UserID || inner.Recipient != l.UserID || inner.RecipientKeys.Ed25519 != l.account.SigningKey() {
		return LightMessage{}, errors.New("it is for somebody else")
	}
	return LightMessage{Type: inner.Type, Content: inner.Content, Sender: outer.SenderKey, Encrypted: true}, nil
}

func (l *Light) open(sender id.Curve25519, message lightCiphertext) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, session := range l.sessions[sender] {
		if message.Type == id.OlmMsgTypePreKey {
			if matches, err := session.Internal.MatchesInboundSession(message.Body); err != nil || !matches {
				continue
			}
		}
		if plaintext, err := session.Decrypt(message.Body, message.Type); err == nil {
			return plaintext, nil
		}
	}
	if message.Type != id.OlmMsgTypePreKey {
		return nil, errors.New("no session decrypts it")
	}
	session, err := l.account.NewInboundSessionFrom(sender, message.Body)
	if err != nil {
		return nil, err
	}
	plaintext, err := session.Decrypt(message.Body, message.Type)
	if err != nil {
		return nil, err
	}
	l.sessions[sender] = append(l.sessions[sender], session)
	return plaintext, l.account.Internal.RemoveOneTimeKeys(session.Internal)
}

// Encrypt makes the message for a peer; a first one claims a one-time key.
func (l *Light) Encrypt(ctx context.Context, to *Light, eventType string, content any) (any, error) {
	if err := l.contact(ctx, to); err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	plaintext, err := json.Marshal(lightPayload{Type: eventType, Content: encoded, Sender: l.UserID, Recipient: to.UserID,
		Keys: crypto.OlmEventKeys{Ed25519: l.account.SigningKey()}, RecipientKeys: crypto.OlmEventKeys{Ed25519: to.account.SigningKey()}})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	messageType, body, err := l.sessions[to.IdentityKey()][0].Encrypt(plaintext)
	if err != nil {
		return nil, err
	}
	return lightEncrypted{Algorithm: id.AlgorithmOlmV1, SenderKey: l.IdentityKey(),
		Ciphertext: map[id.Curve25519]lightCiphertext{to.IdentityKey(): {messageType, string(body)}}}, nil
}

// contact begins a session where there is none.
func (l *Light) contact(ctx context.Context, to *Light) error {
	l.mu.Lock()
	known := len(l.sessions[to.IdentityKey()]) > 0
	l.mu.Unlock()
	if known {
		return nil
	}
	answer, err := l.ClaimKeys(ctx, &mautrix.ReqClaimKeys{Timeout: 10_000,
		OneTimeKeys: mautrix.OneTimeKeysRequest{to.UserID: {to.DeviceID: id.KeyAlgorithmSignedCurve25519}}})
	if err != nil {
		return fmt.Errorf("claiming a one-time key of %s: %w", to.DeviceID, err)
	}
	for _, key := range answer.OneTimeKeys[to.UserID][to.DeviceID] {
		if valid, err := signatures.VerifySignatureJSON(key.RawData, to.UserID, to.DeviceID.String(), to.account.SigningKey()); err != nil || !valid {
			return fmt.Errorf("a one-time key of %s is not signed by it: %w", to.DeviceID, err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		session, err := l.account.Internal.NewOutboundSession(to.IdentityKey(), key.Key)
		if err != nil {
			return err
		}
		l.sessions[to.IdentityKey()] = append(l.sessions[to.IdentityKey()], &crypto.OlmSession{Internal: session})
		return nil
	}
	return fmt.Errorf("%s has no one-time key left", to.DeviceID)
}

// Send sends a message to a device of its own user, or to all of them with "*".
func (l *Light) Send(ctx context.Context, to id.DeviceID, eventType string, content any) error {
	url := l.BuildClientURL("v3", "sendToDevice", eventType, uuid.NewString())
	body := map[string]any{"messages": map[id.UserID]map[id.DeviceID]any{l.UserID: {to: content}}}
	if _, err := l.MakeRequest(ctx, http.MethodPut, url, body, nil); err != nil {
		return fmt.Errorf("%s sends %s: %w", l.DeviceID, eventType, err)
	}
	return nil
}
