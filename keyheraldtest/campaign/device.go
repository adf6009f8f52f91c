package campaign

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/protocol"
)

// nature is how a device behaves.
type nature int

const (
	able    nature = iota
	needy          // reports that somebody must act, again and again
	failing        // fails for good
)

// device is a managed device at the protocol level: real keys, cross-signed by its user, and an Olm session with the bot. It
// answers a trigger with the reports that a device makes of its steps, and does none of them.
type device struct {
	user      id.UserID
	id        id.DeviceID
	nature    nature // set before the first message
	account   *crypto.OlmAccount
	masterKey id.Ed25519

	mu      sync.Mutex // guards the rest
	session *crypto.OlmSession
	botKeys crypto.OlmEventKeys
	// rotations are those that it was triggered for.
	rotations map[uuid.UUID]bool
}

const deviceID = id.DeviceID("MANAGED")

// newDevice makes a device and what its user publishes.
func newDevice(user id.UserID) (*device, *published, error) {
	d := &device{user: user, id: deviceID, account: crypto.NewOlmAccount(), rotations: map[uuid.UUID]bool{}}
	keys, err := crosssigning.Generate()
	if err != nil {
		return nil, nil, err
	}
	public, err := keys.Public(user)
	if err != nil {
		return nil, nil, err
	}
	d.masterKey = keys.Master.PublicKey()
	signing, identity := d.account.Keys()
	p := &published{deviceID: d.id, oneTime: map[string]json.RawMessage{}}
	p.device = mautrix.DeviceKeys{UserID: user, DeviceID: d.id, Algorithms: []id.Algorithm{id.AlgorithmOlmV1, id.AlgorithmMegolmV1}, Keys: mautrix.KeyMap{
		id.NewDeviceKeyID(id.KeyAlgorithmEd25519, d.id): signing.String(), id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, d.id): identity.String()}}
	own, err := d.account.SignJSON(p.device)
	if err != nil {
		return nil, nil, err
	}
	users, err := keys.SelfSigning.SignJSON(p.device)
	if err != nil {
		return nil, nil, err
	}
	p.device.Signatures = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, d.id.String(), own)
	p.device.Signatures[user][id.NewKeyID(id.KeyAlgorithmEd25519, keys.SelfSigning.PublicKey().String())] = users
	if p.master, err = json.Marshal(public.Master); err != nil {
		return nil, nil, err
	}
	if p.self, err = json.Marshal(public.SelfSigning); err != nil {
		return nil, nil, err
	}
	if err := d.account.Internal.GenOneTimeKeys(1); err != nil {
		return nil, nil, err
	}
	fresh, err := d.account.Internal.OneTimeKeys()
	if err != nil {
		return nil, nil, err
	}
	for name, key := range fresh {
		oneTime := mautrix.OneTimeKey{Key: key}
		signature, err := d.account.SignJSON(oneTime)
		if err != nil {
			return nil, nil, err
		}
		oneTime.Signatures, oneTime.IsSigned = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, d.id.String(), signature), true
		if p.oneTime[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, name).String()], err = json.Marshal(oneTime); err != nil {
			return nil, nil, err
		}
	}
	d.account.Internal.MarkKeysAsPublished()
	return d, p, nil
}

type ciphertext struct {
	Type id.OlmMsgType `json:"type"`
	Body string        `json:"body"`
}

type encrypted struct {
	Algorithm  id.Algorithm                 `json:"algorithm"`
	SenderKey  id.Curve25519                `json:"sender_key"`
	Ciphertext map[id.Curve25519]ciphertext `json:"ciphertext"`
}

type payload struct {
	Type          string              `json:"type"`
	Content       json.RawMessage     `json:"content"`
	Sender        id.UserID           `json:"sender"`
	SenderDevice  id.DeviceID         `json:"sender_device,omitempty"`
	Recipient     id.UserID           `json:"recipient"`
	Keys          crypto.OlmEventKeys `json:"keys"`
	RecipientKeys crypto.OlmEventKeys `json:"recipient_keys"`
}

// take reads a message of the bot's and returns the answers to it, encrypted.
func (d *device) take(raw json.RawMessage) ([]toBot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	message, botKey, err := d.decrypt(raw)
	if err != nil {
		return nil, fmt.Errorf("%s reads a message: %w", d.user, err)
	}
	if message.Type != protocol.TypeTrigger.Type {
		return nil, nil
	}
	var trigger protocol.Trigger
	if err := json.Unmarshal(message.Content, &trigger); err != nil {
		return nil, err
	}
	if err := trigger.Validate(); err != nil {
		return nil, fmt.Errorf("%s got a trigger: %w", d.user, err)
	}
	if trigger.UserID != d.user || trigger.Action != protocol.ActionRotate {
		return nil, fmt.Errorf("%s got a trigger for %s to %s", d.user, trigger.UserID, trigger.Action)
	}
	d.rotations[trigger.RotationID] = true
	var answers []toBot
	for _, report := range d.reports(trigger) {
		answer, err := d.encrypt(botKey, report)
		if err != nil {
			return nil, fmt.Errorf("%s reports: %w", d.user, err)
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func (d *device) decrypt(raw json.RawMessage) (payload, id.Curve25519, error) {
	var outer encrypted
	var inner payload
	if err := json.Unmarshal(raw, &outer); err != nil {
		return inner, "", err
	}
	message, ok := outer.Ciphertext[d.account.IdentityKey()]
	if !ok {
		return inner, "", errors.New("it is for another device")
	}
	if d.session == nil {
		session, err := d.account.NewInboundSessionFrom(outer.SenderKey, message.Body)
		if err != nil {
			return inner, "", err
		}
		if err := d.account.Internal.RemoveOneTimeKeys(session.Internal); err != nil {
			return inner, "", err
		}
		d.session = session
	}
	plaintext, err := d.session.Decrypt(message.Body, message.Type)
	if err != nil {
		return inner, "", err
	}
	if err := json.Unmarshal(plaintext, &inner); err != nil {
		return inner, "", err
	}
	if inner.Sender != bot || inner.Recipient != d.user || inner.RecipientKeys.Ed25519 != d.account.SigningKey() {
		return inner, "", errors.New("it is not of the bot, or for somebody else")
	}
	d.botKeys = inner.Keys
	return inner, outer.SenderKey, nil
}

// reports are what the device has to say of its steps.
func (d *device) reports(trigger protocol.Trigger) []protocol.Progress {
	reports := []protocol.Progress{{Stage: protocol.StageTriggerAccepted}}
	switch d.nature {
	case needy:
		reports = append(reports, protocol.Progress{Stage: protocol.StageNeedsAttention, Error: &protocol.ErrorReport{Code: protocol.AttentionOldKeyMissing}})
	case failing:
		reports = append(reports, protocol.Progress{Stage: protocol.StageFailed, Error: &protocol.ErrorReport{Code: protocol.AttentionKeyNotUsable}})
	default:
		reports = append(reports, protocol.Progress{Stage: protocol.StageFetched, KMSVersion: "2"},
			protocol.Progress{Stage: protocol.StageBackupCreated, Backup: &protocol.BackupReport{Version: "2", OldVersion: "1", PublicKey: string(d.account.IdentityKey()), Created: true}},
			protocol.Progress{Stage: protocol.StageRecoveryCopyWritten, RecoveryCopy: protocol.RecoveryCopyWritten},
			protocol.Progress{Stage: protocol.StageCarriedOver, Carried: &protocol.CarriedReport{Total: 10, Carried: 10, Complete: true}},
			protocol.Progress{Stage: protocol.StagePushed, Deliveries: []protocol.Delivery{{DeviceID: "PHONE", Outcome: protocol.OutcomeSent, Forms: []string{"m.secret.send"}}}})
	}
	for i := range reports {
		reports[i].ReportID, reports[i].RotationID, reports[i].Attempt, reports[i].At = uuid.Must(uuid.NewV7()), trigger.RotationID, trigger.Attempt, protocol.At(time.Now())
	}
	return reports
}

func (d *device) encrypt(botKey id.Curve25519, report protocol.Progress) (toBot, error) {
	content, err := json.Marshal(report)
	if err != nil {
		return toBot{}, err
	}
	plaintext, err := json.Marshal(payload{Type: protocol.TypeProgress.Type, Content: content, Sender: d.user, SenderDevice: d.id, Recipient: bot,
		Keys: crypto.OlmEventKeys{Ed25519: d.account.SigningKey()}, RecipientKeys: d.botKeys})
	if err != nil {
		return toBot{}, err
	}
	kind, body, err := d.session.Encrypt(plaintext)
	if err != nil {
		return toBot{}, err
	}
	outer, err := json.Marshal(encrypted{Algorithm: id.AlgorithmOlmV1, SenderKey: d.account.IdentityKey(), Ciphertext: map[id.Curve25519]ciphertext{botKey: {kind, string(body)}}})
	return toBot{Sender: d.user, Type: event.ToDeviceEncrypted.Type, Content: outer}, err
}
