package protocol

import (
	"errors"
	"regexp"

	"maunium.net/go/mautrix/id"
)

// MaxActs is how many acts go in one status.
const MaxActs = 100

// Act is something a device did with its user's secrets beside the rotations, or refused to do. The server writes each
// into the audit log. It travels in a status, whose report id makes a repetition harmless; a server that does not know
// acts ignores them.
type Act struct {
	Kind ActKind `json:"kind"`
	// Secret is one of the Secret words, or SecretOther.
	Secret string `json:"secret,omitempty"`
	// DeviceID is the user's other device that was dealt with.
	DeviceID id.DeviceID `json:"device_id,omitempty"`
	// Reason is one word; for a replaced recovery key, KeyID is the new key's id in secret storage.
	Reason string `json:"reason,omitempty"`
	KeyID  string `json:"key_id,omitempty"`
	At     Millis `json:"at"`
}

// ActKind is what was done.
type ActKind string

// The acts: another device's m.secret.request was answered or refused; a secret that this device asked for, or that a
// person accepted, was kept; a person accepted or rejected a secret that waited for him; the user's recovery key was
// given to the device, or replaced by it; another device verified this one by emoji; the account's login was refused for
// good, with the reason.
const (
	ActSecretRequestAnswered ActKind = "secret_request_answered"
	ActSecretRequestRefused  ActKind = "secret_request_refused"
	ActSecretKept            ActKind = "secret_kept"
	ActSecretAccepted        ActKind = "secret_accepted"
	ActSecretRejected        ActKind = "secret_rejected"
	ActRecoveryKeyProvided   ActKind = "recovery_key_provided"
	ActRecoveryKeyReplaced   ActKind = "recovery_key_replaced"
	ActDeviceVerified        ActKind = "device_verified"
	ActAccountEnded          ActKind = "account_ended"
)

// The names of secrets (client-server API, "Secrets"). SecretOther stands for any other, since a name that somebody asks
// for is free text.
const (
	SecretMaster      = "m.cross_signing.master"
	SecretSelfSigning = "m.cross_signing.self_signing"
	SecretUserSigning = "m.cross_signing.user_signing"
	SecretOther       = "other"
)

// KnownSecret returns the name if it is one of those that have a word, and SecretOther for all others.
func KnownSecret(name string) string {
	switch name {
	case SecretMegolmBackup, SecretMaster, SecretSelfSigning, SecretUserSigning:
		return name
	}
	return SecretOther
}

var (
	reasonWord = regexp.MustCompile(`^[a-z_]{0,64}$`)
	keyIDForm  = regexp.MustCompile(`^[A-Za-z0-9._~-]{0,128}$`)
)

func (a Act) validate() error {
	switch {
	case a.Kind == "" || len(a.Kind) > 64:
		return errors.New("an act has no kind")
	case a.Secret != "" && a.Secret != SecretOther && KnownSecret(a.Secret) != a.Secret:
		return errors.New("an act names a secret that has no word")
	case !reasonWord.MatchString(a.Reason):
		return errors.New("an act's reason is no word")
	case !keyIDForm.MatchString(a.KeyID):
		return errors.New("an act's key_id is no id")
	case len(a.DeviceID) > 255:
		return errors.New("an act's device_id is too long")
	}
	return nil
}
