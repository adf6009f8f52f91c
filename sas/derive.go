package sas

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.mau.fi/util/jsonbytes"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

func encode(raw []byte) string { return base64.RawStdEncoding.EncodeToString(raw) }

// canonical is the canonical JSON of a content as it was sent, unknown fields included.
func canonical(content json.RawMessage) []byte {
	clone := slices.Clone(content)
	if err := canonicaljson.Canonicalize(&clone); err != nil {
		// It was decoded before, so it is JSON; what cannot be canonical matches nothing.
		return nil
	}
	return clone
}

// commitment is the hash of a key, in base64, and the start that counts.
func commitment(key string, start []byte) []byte {
	sum := sha256.Sum256(append([]byte(key), start...))
	return sum[:]
}

func (v *Verification) ourKey() string { return encode(v.private.PublicKey().Bytes()) }

// hkdfKey derives n bytes of the shared secret.
func (v *Verification) hkdfKey(info string, n int) []byte {
	key, err := hkdf.Key(sha256.New, v.secret, nil, info, n)
	if err != nil {
		// The lengths are fixed, and far below what HKDF can give.
		panic(fmt.Sprintf("sas: deriving a key: %v", err))
	}
	return key
}

// derive gives what both sides show ("SAS HKDF calculation"): the side that started comes first.
func (v *Verification) derive() (symbols [6]byte) {
	ours := strings.Join([]string{v.side.UserID.String(), v.side.Device.ID.String(), v.ourKey()}, "|")
	theirs := strings.Join([]string{v.side.UserID.String(), v.peer.ID.String(), v.theirKey}, "|")
	first, second := theirs, ours
	if v.weStarted {
		first, second = ours, theirs
	}
	copy(symbols[:], v.hkdfKey(strings.Join([]string{"MATRIX_KEY_VERIFICATION_SAS", first, second, v.transaction.String()}, "|"), len(symbols)))
	return symbols
}

// Emoji are the seven to show; none where the other side cannot, or there is nothing to compare.
func (v *Verification) Emoji() []Emoji {
	if v.stage != Comparing || !slices.Contains(v.methods, event.SASMethodEmoji) {
		return nil
	}
	shown := make([]Emoji, 7)
	bits := uint64(0)
	for _, b := range v.symbols {
		bits = bits<<8 | uint64(b)
	}
	for i := range shown {
		shown[i] = emojis[bits>>(48-6*(i+1))&0x3f]
	}
	return shown
}

// Decimals are the three numbers to show; none where the other side cannot, or there is nothing to compare.
func (v *Verification) Decimals() []int {
	if v.stage != Comparing || !slices.Contains(v.methods, event.SASMethodDecimal) {
		return nil
	}
	bits := uint64(0)
	for _, b := range v.symbols[:5] {
		bits = bits<<8 | uint64(b)
	}
	return []int{int(bits>>27&0x1fff) + 1000, int(bits>>14&0x1fff) + 1000, int(bits>>1&0x1fff) + 1000}
}

// keyIDs takes the place of a key id for the list of all of them.
const keyIDs = "KEY_IDS"

// theirMAC is what the peer sends for a key, ourMAC what we do (hkdf-hmac-sha256.v2, "MAC calculation").
func (v *Verification) theirMAC(keyID, key string) []byte {
	return v.macOf(v.peer.ID, v.side.Device.ID, keyID, key)
}

func (v *Verification) ourMAC(keyID, key string) []byte {
	return v.macOf(v.side.Device.ID, v.peer.ID, keyID, key)
}

func (v *Verification) macOf(from, to id.DeviceID, keyID, key string) []byte {
	user := v.side.UserID.String()
	mac := hmac.New(sha256.New, v.hkdfKey("MATRIX_KEY_VERIFICATION_MAC"+user+from.String()+user+to.String()+v.transaction.String()+keyID, sha256.Size))
	mac.Write([]byte(key))
	return mac.Sum(nil)
}

type namedKey struct {
	id  id.KeyID
	key string
}

// keysOf are the keys that a side vouches for: its own, and the user's master key.
func (v *Verification) keysOf(device Device) []namedKey {
	return []namedKey{
		{id.NewKeyID(id.KeyAlgorithmEd25519, device.ID.String()), device.SigningKey.String()},
		{id.NewKeyID(id.KeyAlgorithmEd25519, v.side.MasterKey.String()), v.side.MasterKey.String()},
	}
}

func (v *Verification) mac() Message {
	content := event.VerificationMACEventContent{MAC: map[id.KeyID]jsonbytes.UnpaddedBytes{}}
	var ids []string
	for _, key := range v.keysOf(v.side.Device) {
		content.MAC[key.id] = v.ourMAC(key.id.String(), key.key)
		ids = append(ids, key.id.String())
	}
	slices.Sort(ids)
	content.Keys = v.ourMAC(keyIDs, strings.Join(ids, ","))
	return v.message(typeMAC, v.to(), &content)
}
