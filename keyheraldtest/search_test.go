package keyheraldtest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/crypto/utils"
)

func TestASearchFindsAKeyInEveryEncodingAndNothingInNoise(t *testing.T) {
	for range 50 {
		key, noise := make([]byte, 32), make([]byte, 4096)
		_, _ = rand.Read(key)
		_, _ = rand.Read(noise)
		search := NewSearch(map[string][]byte{"key": key})
		text := base64.RawStdEncoding.EncodeToString(key)
		body, err := json.Marshal(map[string]any{"value": []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		for name, hidden := range map[string][]byte{
			"raw": key, "hex": []byte(hex.EncodeToString(key)), "unpadded base64": []byte(text), "padded base64": []byte(base64.StdEncoding.EncodeToString(key)),
			"base64url": []byte(base64.URLEncoding.EncodeToString(key)), "a recovery key": []byte(utils.EncodeBase58RecoveryKey(key)),
			"base64 of a longer value": []byte(base64.StdEncoding.EncodeToString(append([]byte("x"), key...))),
			"JSON bytes of base64":     body,
		} {
			if len(search.In(append(append(bytes.Clone(noise), hidden...), noise...))) == 0 {
				t.Errorf("%s was not found", name)
			}
		}
		if found := search.In(noise); len(found) > 0 {
			t.Errorf("noise was taken for %v", found)
		}
	}
}
