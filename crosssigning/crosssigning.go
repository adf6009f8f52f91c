// Package crosssigning decides which devices of a user are cross-signed, from what the homeserver answered and a
// master key that was pinned elsewhere. It is pure. The homeserver is not trusted: every claim stands on a signature
// chain device ← self-signing key ← master key, and the caller compares the master key with its pin.
package crosssigning

import (
	"errors"
	"fmt"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// ErrNoIdentity means that the user has no cross-signing identity, or one whose self-signing key its master key did
// not sign.
var ErrNoIdentity = errors.New("the user has no valid cross-signing identity")

// Device is one device of a user whose own signature over its keys is valid.
type Device struct {
	UserID      id.UserID
	DeviceID    id.DeviceID
	IdentityKey id.Curve25519
	SigningKey  id.Ed25519
	Name        string
	CrossSigned bool
	Dehydrated  bool
}

// Identity is a user as the homeserver presents him, with the signatures checked. MasterKey is empty where there is
// no valid cross-signing identity; then no device is CrossSigned.
type Identity struct {
	UserID         id.UserID
	MasterKey      id.Ed25519
	SelfSigningKey id.Ed25519
	// UserSigningKey is presented to the user himself alone; empty where it is missing, or not signed by the master key.
	UserSigningKey id.Ed25519
	Devices        map[id.DeviceID]Device
	// Keys are the device keys as the homeserver answered them, for signing one's own.
	Keys map[id.DeviceID]mautrix.DeviceKeys
}

// Read takes one user out of a /keys/query answer. Devices whose keys do not fit their id or whose own signature is
// not valid are left out.
func Read(resp *mautrix.RespQueryKeys, user id.UserID) Identity {
	identity := Identity{UserID: user, Devices: map[id.DeviceID]Device{}, Keys: map[id.DeviceID]mautrix.DeviceKeys{}}
	master, self, err := chain(resp, user)
	if err == nil {
		identity.MasterKey, identity.SelfSigningKey = master, self
		identity.UserSigningKey = userSigning(resp, user, master)
	}
	for deviceID, keys := range resp.DeviceKeys[user] {
		device, ok := readDevice(keys, user, deviceID)
		if !ok {
			continue
		}
		if self != "" && err == nil {
			signed, sigErr := signatures.VerifySignatureJSON(&keys, user, self.String(), self)
			device.CrossSigned = sigErr == nil && signed
		}
		identity.Devices[deviceID] = device
		identity.Keys[deviceID] = keys
	}
	return identity
}

func chain(resp *mautrix.RespQueryKeys, user id.UserID) (master, self id.Ed25519, err error) {
	masterKeys, ok := resp.MasterKeys[user]
	if !ok {
		return "", "", ErrNoIdentity
	}
	selfKeys, ok := resp.SelfSigningKeys[user]
	if !ok {
		return "", "", ErrNoIdentity
	}
	if master, err = onlyKey(masterKeys, user, id.XSUsageMaster); err != nil {
		return "", "", err
	}
	if self, err = onlyKey(selfKeys, user, id.XSUsageSelfSigning); err != nil {
		return "", "", err
	}
	ok, err = signatures.VerifySignatureJSON(selfKeys, user, master.String(), master)
	if err != nil || !ok {
		return "", "", fmt.Errorf("%w: the self-signing key is not signed by the master key", ErrNoIdentity)
	}
	return master, self, nil
}

func userSigning(resp *mautrix.RespQueryKeys, user id.UserID, master id.Ed25519) id.Ed25519 {
	keys, ok := resp.UserSigningKeys[user]
	if !ok {
		return ""
	}
	key, err := onlyKey(keys, user, id.XSUsageUserSigning)
	if err != nil {
		return ""
	}
	if ok, err := signatures.VerifySignatureJSON(keys, user, master.String(), master); err != nil || !ok {
		return ""
	}
	return key
}

// onlyKey insists on exactly one key, of the right user and usage: with two, "the" key would depend on map order.
func onlyKey(keys mautrix.CrossSigningKeys, user id.UserID, usage id.CrossSigningUsage) (id.Ed25519, error) {
	if keys.UserID != user || len(keys.Keys) != 1 || len(keys.Usage) != 1 || keys.Usage[0] != usage {
		return "", fmt.Errorf("%w: the %s key object is malformed", ErrNoIdentity, usage)
	}
	for keyID, key := range keys.Keys {
		if algorithm, name := keyID.Parse(); algorithm != id.KeyAlgorithmEd25519 || name != key.String() {
			return "", fmt.Errorf("%w: the %s key has an id that does not name it", ErrNoIdentity, usage)
		}
		return key, nil
	}
	return "", ErrNoIdentity
}

func readDevice(keys mautrix.DeviceKeys, user id.UserID, deviceID id.DeviceID) (Device, bool) {
	device := Device{
		UserID:      user,
		DeviceID:    deviceID,
		IdentityKey: keys.Keys.GetCurve25519(deviceID),
		SigningKey:  keys.Keys.GetEd25519(deviceID),
		Dehydrated:  keys.Dehydrated,
	}
	if keys.UserID != user || keys.DeviceID != deviceID || device.IdentityKey == "" || device.SigningKey == "" {
		return Device{}, false
	}
	ok, err := signatures.VerifySignatureJSON(&keys, user, deviceID.String(), device.SigningKey)
	if err != nil || !ok {
		return Device{}, false
	}
	device.Name, _ = keys.Unsigned["device_display_name"].(string)
	return device, true
}

// ByIdentityKey finds the device with this Curve25519 key, the one an Olm message names as its sender.
func (i Identity) ByIdentityKey(key id.Curve25519) (Device, bool) {
	for _, device := range i.Devices {
		if device.IdentityKey == key {
			return device, true
		}
	}
	return Device{}, false
}

// PinnedTo reports whether the identity is valid and its master key is the pinned one.
func (i Identity) PinnedTo(master id.Ed25519) bool { return i.MasterKey != "" && i.MasterKey == master }
