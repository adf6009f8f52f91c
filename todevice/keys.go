package todevice

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/crosssigning"
)

// otkTarget one-time keys are kept on the homeserver, topped up when fewer than otkLow are left.
const (
	otkTarget = 50
	otkLow    = 25
)

// fallbackAccount is what goolm's account can do beyond mautrix's interface (MSC2732, client-server API "fallback keys").
type fallbackAccount interface {
	GenFallbackKey() error
	FallbackKeyUnpublished() map[string]id.Curve25519
}

// PublishKeys uploads the device's keys if the homeserver has none, and fills the one-time keys up; with the first
// ones goes a fallback key. The keys are committed before they are uploaded and marked published after the answer: a
// crash in between uploads the same keys again, which the homeserver takes as a repetition.
func (e *Endpoint) PublishKeys(ctx context.Context) error {
	count, err := e.client.UploadKeys(ctx, &mautrix.ReqUploadKeys{})
	if err != nil {
		return fmt.Errorf("asking for the count of one-time keys: %w", err)
	}
	var request uploadRequest
	err = e.InTxn(ctx, func(ctx context.Context) error {
		request, err = e.prepareUpload(ctx, count.OneTimeKeyCounts.SignedCurve25519)
		return err
	})
	if err != nil {
		return err
	}
	if request.DeviceKeys == nil && len(request.OneTimeKeys) == 0 {
		return nil
	}
	if _, err := e.client.MakeRequest(ctx, http.MethodPost, e.client.BuildClientURL("v3", "keys", "upload"), request, nil); err != nil {
		return fmt.Errorf("uploading device keys: %w", err)
	}
	return e.InTxn(ctx, func(ctx context.Context) error {
		state, err := e.state(ctx)
		if err != nil {
			return err
		}
		state.account.Internal.MarkKeysAsPublished()
		state.account.Shared = true
		if err := state.store.PutAccount(ctx, state.account); err != nil {
			return fmt.Errorf("saving the Olm account: %w", err)
		}
		_, err = e.db.Exec(ctx, `UPDATE todevice_account SET published = true WHERE account_id = $1`, e.accountID)
		return err
	})
}

type uploadRequest struct {
	DeviceKeys   *mautrix.DeviceKeys             `json:"device_keys,omitempty"`
	OneTimeKeys  map[id.KeyID]mautrix.OneTimeKey `json:"one_time_keys,omitempty"`
	FallbackKeys map[id.KeyID]mautrix.OneTimeKey `json:"fallback_keys,omitempty"`
}

func (e *Endpoint) prepareUpload(ctx context.Context, onServer int) (uploadRequest, error) {
	state, err := e.state(ctx)
	if err != nil {
		return uploadRequest{}, err
	}
	var request uploadRequest
	account := state.account
	unpublished, err := account.Internal.OneTimeKeys()
	if err != nil {
		return request, fmt.Errorf("reading the one-time keys: %w", err)
	}
	if missing := otkTarget - onServer - len(unpublished); missing > 0 && onServer < otkLow {
		if err := account.Internal.GenOneTimeKeys(uint(missing)); err != nil {
			return request, fmt.Errorf("making one-time keys: %w", err)
		}
		if unpublished, err = account.Internal.OneTimeKeys(); err != nil {
			return request, fmt.Errorf("reading the one-time keys: %w", err)
		}
	}
	fallback, hasFallback := account.Internal.(fallbackAccount)
	if !account.Shared {
		keys, err := e.ownKeys(account)
		if err != nil {
			return request, err
		}
		request.DeviceKeys = keys
		if hasFallback && len(fallback.FallbackKeyUnpublished()) == 0 {
			if err := fallback.GenFallbackKey(); err != nil {
				return request, fmt.Errorf("making a fallback key: %w", err)
			}
		}
	}
	if request.OneTimeKeys, err = e.signKeys(account, unpublished, false); err != nil {
		return request, err
	}
	if hasFallback {
		if request.FallbackKeys, err = e.signKeys(account, fallback.FallbackKeyUnpublished(), true); err != nil {
			return request, err
		}
	}
	if err := state.store.PutAccount(ctx, account); err != nil {
		return request, fmt.Errorf("saving the Olm account: %w", err)
	}
	return request, nil
}

func (e *Endpoint) ownKeys(account crosssigning.DeviceSigner) (*mautrix.DeviceKeys, error) {
	type keyed interface {
		Keys() (id.SigningKey, id.IdentityKey)
	}
	signing, identity := account.(keyed).Keys()
	deviceID := e.client.DeviceID
	keys := &mautrix.DeviceKeys{
		UserID:     e.client.UserID,
		DeviceID:   deviceID,
		Algorithms: []id.Algorithm{id.AlgorithmOlmV1, id.AlgorithmMegolmV1},
		Keys: mautrix.KeyMap{
			id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, deviceID): identity.String(),
			id.NewDeviceKeyID(id.KeyAlgorithmEd25519, deviceID):    signing.String(),
		},
	}
	signature, err := account.SignJSON(keys)
	if err != nil {
		return nil, fmt.Errorf("signing the device's keys: %w", err)
	}
	keys.Signatures = signatures.NewSingleSignature(e.client.UserID, id.KeyAlgorithmEd25519, deviceID.String(), signature)
	return keys, nil
}

func (e *Endpoint) signKeys(account crosssigning.DeviceSigner, keys map[string]id.Curve25519, fallback bool) (map[id.KeyID]mautrix.OneTimeKey, error) {
	signed := make(map[id.KeyID]mautrix.OneTimeKey, len(keys))
	for keyID, key := range keys {
		object := mautrix.OneTimeKey{Key: key, IsSigned: true, Fallback: fallback}
		signature, err := account.SignJSON(&object)
		if err != nil {
			return nil, fmt.Errorf("signing a one-time key: %w", err)
		}
		object.Signatures = signatures.NewSingleSignature(e.client.UserID, id.KeyAlgorithmEd25519, e.client.DeviceID.String(), signature)
		signed[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, keyID)] = object
	}
	return signed, nil
}

// RefreshOwnKeys reads the device's own keys back from the homeserver and keeps them, with the cross-signing
// signature, to be sent along in every later message (MSC4147). Call it after the device was cross-signed: receivers
// that have not seen the signature yet find it there. The identity is returned as the homeserver presents it.
func (e *Endpoint) RefreshOwnKeys(ctx context.Context) (crosssigning.Identity, error) {
	identities, err := e.Identities(ctx, e.client.UserID)
	if err != nil {
		return crosssigning.Identity{}, err
	}
	identity := identities[e.client.UserID]
	keys, ok := identity.Keys[e.client.DeviceID]
	if !ok {
		return identity, fmt.Errorf("the homeserver does not present valid keys of our own device %s", e.client.DeviceID)
	}
	signing, curve, err := e.Keys(ctx)
	if err != nil {
		return identity, err
	}
	if keys.Keys.GetEd25519(e.client.DeviceID) != signing || keys.Keys.GetCurve25519(e.client.DeviceID) != curve {
		return identity, fmt.Errorf("the homeserver has other keys for our device %s: its store was lost; log in as a new device", e.client.DeviceID)
	}
	keys.Unsigned = nil
	encoded, err := json.Marshal(&keys)
	if err != nil {
		return identity, fmt.Errorf("encoding our own keys: %w", err)
	}
	return identity, e.InTxn(ctx, func(ctx context.Context) error {
		_, err := e.db.Exec(ctx, `UPDATE todevice_account SET device_keys = $1 WHERE account_id = $2`, string(encoded), e.accountID)
		return err
	})
}

// signedBy checks a claimed one-time key's signature by its device, over the raw bytes so that unknown fields count.
func signedBy(key mautrix.OneTimeKey, device crosssigning.Device) bool {
	ok, err := signatures.VerifySignatureJSON(key.RawData, device.UserID, device.DeviceID.String(), device.SigningKey)
	return err == nil && ok
}
