package secretstorage

import (
	"bytes"
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/crypto/ssss"
)

// Whatever the homeserver presents as an entry is opened only if its ciphertext was made with the key, under its name. The
// MAC does not cover the IV (client-server API, "m.secret_storage.v1.aes-hmac-sha2"), so with another one it opens to
// something else of the same length.
func FuzzEntry(f *testing.F) {
	key := &ssss.Key{ID: "k", Key: bytes.Repeat([]byte{7}, 32)}
	sealed, err := json.Marshal(map[string]any{"encrypted": map[string]any{"k": seal("m.megolm_backup.v1", []byte("secret"), key)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("m.megolm_backup.v1", sealed)
	f.Add("m.cross_signing.master", sealed)
	f.Add("x", []byte(`{"encrypted":{"k":{"ciphertext":"AAAA","iv":"AAAA","mac":"AAAA"}}}`))
	f.Add("x", []byte(`{"encrypted":{"k":null},"passthrough":true}`))
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		payload, err := readEntry(name, content).Open(key)
		if err == nil && (name != "m.megolm_backup.v1" || len(payload) != len("secret")) {
			t.Errorf("%q opens %q", name, payload)
		}
	})
}
