package crosssigning

import (
	"fmt"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// PrivateKeys are the three cross-signing keys of a user in the moment they are made or used.
type PrivateKeys struct {
	Master, SelfSigning, UserSigning olm.PKSigning
}

// Generate makes a new cross-signing identity.
func Generate() (PrivateKeys, error) {
	var keys PrivateKeys
	for _, key := range []*olm.PKSigning{&keys.Master, &keys.SelfSigning, &keys.UserSigning} {
		var err error
		if *key, err = olm.NewPKSigning(); err != nil {
			return PrivateKeys{}, fmt.Errorf("making a cross-signing key: %w", err)
		}
	}
	return keys, nil
}

// PublicKeys is an identity as it is uploaded: the signed public halves. It holds no secret.
type PublicKeys struct {
	Master      mautrix.CrossSigningKeys `json:"master_key"`
	SelfSigning mautrix.CrossSigningKeys `json:"self_signing_key"`
	UserSigning mautrix.CrossSigningKeys `json:"user_signing_key"`
}

// Public signs the public halves with the master key, as POST /keys/device_signing/upload takes them.
func (k PrivateKeys) Public(user id.UserID) (PublicKeys, error) {
	object := func(key olm.PKSigning, usage id.CrossSigningUsage) mautrix.CrossSigningKeys {
		return mautrix.CrossSigningKeys{
			UserID: user,
			Usage:  []id.CrossSigningUsage{usage},
			Keys: map[id.KeyID]id.Ed25519{
				id.NewKeyID(id.KeyAlgorithmEd25519, key.PublicKey().String()): key.PublicKey(),
			},
		}
	}
	public := PublicKeys{
		Master:      object(k.Master, id.XSUsageMaster),
		SelfSigning: object(k.SelfSigning, id.XSUsageSelfSigning),
		UserSigning: object(k.UserSigning, id.XSUsageUserSigning),
	}
	for _, signed := range []*mautrix.CrossSigningKeys{&public.SelfSigning, &public.UserSigning} {
		signature, err := k.Master.SignJSON(signed)
		if err != nil {
			return PublicKeys{}, fmt.Errorf("signing a cross-signing key: %w", err)
		}
		signed.Signatures = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, k.Master.PublicKey().String(), signature)
	}
	return public, nil
}

// SignDevice signs a device's keys with the self-signing key, as POST /keys/signatures/upload takes them.
func SignDevice(self olm.PKSigning, keys mautrix.DeviceKeys) (mautrix.ReqUploadSignatures, error) {
	object := mautrix.ReqKeysSignatures{
		UserID:     keys.UserID,
		DeviceID:   keys.DeviceID,
		Algorithms: keys.Algorithms,
		Keys:       map[id.KeyID]string{},
	}
	for keyID, key := range keys.Keys {
		object.Keys[id.KeyID(keyID)] = key
	}
	signature, err := self.SignJSON(object)
	if err != nil {
		return nil, fmt.Errorf("signing device %s: %w", keys.DeviceID, err)
	}
	object.Signatures = signatures.NewSingleSignature(keys.UserID, id.KeyAlgorithmEd25519, self.PublicKey().String(), signature)
	return mautrix.ReqUploadSignatures{keys.UserID: {keys.DeviceID.String(): object}}, nil
}

// DeviceSigner signs with a device's own Ed25519 key (crypto.OlmAccount does).
type DeviceSigner interface {
	SignJSON(obj any) (string, error)
}

// SignMaster signs the user's own master key with a device's key, which tells other clients that this device trusts
// it, as POST /keys/signatures/upload takes it.
func SignMaster(device DeviceSigner, user id.UserID, deviceID id.DeviceID, master id.Ed25519) (mautrix.ReqUploadSignatures, error) {
	object := mautrix.ReqKeysSignatures{
		UserID: user,
		Usage:  []id.CrossSigningUsage{id.XSUsageMaster},
		Keys:   map[id.KeyID]string{id.NewKeyID(id.KeyAlgorithmEd25519, master.String()): master.String()},
	}
	signature, err := device.SignJSON(object)
	if err != nil {
		return nil, fmt.Errorf("signing the master key of %s: %w", user, err)
	}
	object.Signatures = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, deviceID.String(), signature)
	return mautrix.ReqUploadSignatures{user: {master.String(): object}}, nil
}
