package secretstorage_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/secretstorage"
)

// data is a homeserver that has account data and nothing else.
type data map[string]json.RawMessage

func (d data) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/sync") {
		var events []map[string]any
		for name, content := range d {
			events = append(events, map[string]any{"type": name, "content": content})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"next_batch": "x", "account_data": map[string]any{"events": events}})
		return
	}
	_, name, _ := strings.Cut(r.URL.Path, "/account_data/")
	if r.Method == http.MethodPut {
		d[name], _ = io.ReadAll(r.Body)
		_, _ = w.Write([]byte(`{}`))
	} else if content, ok := d[name]; ok {
		_, _ = w.Write(content)
	} else {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errcode":"M_NOT_FOUND"}`))
	}
}

func newStorage(t interface {
	Fatal(...any)
	Cleanup(func())
}, d data) (*secretstorage.Client, *mautrix.Client) {
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	matrix, err := mautrix.NewClient(server.URL, "@alice:example.org", "token")
	if err != nil {
		t.Fatal(err)
	}
	return secretstorage.New(matrix), matrix
}

func newKey(t interface{ Fatal(...any) }) *ssss.Key {
	key, err := ssss.NewKey("")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestASecretIsGivenAnotherKeyByteForByte(t *testing.T) {
	d := data{}
	storage, matrix := newStorage(t, d)
	rapid.Check(t, func(t *rapid.T) {
		clear(d)
		old, other, next := newKey(t), newKey(t), newKey(t)
		secret := rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(t, "secret")
		machine := ssss.NewSSSSMachine(matrix)
		name := event.Type{Type: "com.example." + rapid.StringMatching(`[a-z_]{1,20}`).Draw(t, "name"), Class: event.AccountDataEventType}
		// What mautrix has put in, for two keys, is opened by us.
		if err := machine.SetEncryptedAccountDataWithMetadata(t.Context(), name, secret, map[string]any{"kept": true}, old, other); err != nil {
			t.Fatal(err)
		}
		entries, err := storage.Entries(t.Context())
		if err != nil || len(entries) != 1 || !entries[0].For(old.ID) || entries[0].For(next.ID) {
			t.Fatalf("there are %d entries: %v", len(entries), err)
		}
		payload, err := entries[0].Open(old)
		if err != nil || string(payload) != string(secretstorage.Payload(secret)) {
			t.Fatalf("the old key opens something else: %v", err)
		}
		if _, err := entries[0].Open(next); !errors.Is(err, secretstorage.ErrNotOpened) {
			t.Fatalf("the new key opens it already: %v", err)
		}
		if _, err := entries[0].Open(&ssss.Key{ID: old.ID, Key: next.Key}); !errors.Is(err, secretstorage.ErrNotOpened) {
			t.Fatalf("another key under the old id opens it: %v", err)
		}
		// What we put in is opened by mautrix, beside the others at first, and then alone.
		for _, only := range []bool{false, true} {
			if err := storage.Put(t.Context(), name.Type, payload, next, only); err != nil {
				t.Fatal(err)
			}
			before := string(d[name.Type])
			if err := storage.Put(t.Context(), name.Type, payload, next, only); err != nil || string(d[name.Type]) != before {
				t.Fatalf("putting it in again writes it anew: %v", err)
			}
			opened, err := machine.GetDecryptedAccountData(t.Context(), name, next)
			if err != nil || string(opened) != string(secret) {
				t.Fatalf("mautrix opens something else: %v", err)
			}
			for _, key := range []*ssss.Key{old, other} {
				if _, err := machine.GetDecryptedAccountData(t.Context(), name, key); (err == nil) == only {
					t.Fatalf("alone %t: the key of before opens it: %v", only, err)
				}
			}
			if !strings.Contains(string(d[name.Type]), `"kept":true`) {
				t.Fatal("what else is in the account data is gone")
			}
		}
	})
}

func TestOnlyWhatIsASecretIsAnEntry(t *testing.T) {
	const cipher = `{"ciphertext":"AAAA","iv":"AAAAAAAAAAAAAAAAAAAAAA","mac":"AAAA"}`
	d := data{"m.direct": json.RawMessage(`{"@bob:example.org":["!a:b"]}`), "m.secret_storage.default_key": json.RawMessage(`{"key":"k"}`),
		"blank": json.RawMessage(`{}`), "null": json.RawMessage(`{"encrypted":null}`), "empty": json.RawMessage(`{"encrypted":{}}`),
		"list": json.RawMessage(`{"encrypted":[1]}`), "one": json.RawMessage(`{"encrypted":{"k":` + cipher + `}}`), "broken": json.RawMessage(`{"encrypted":{"k":5}}`)}
	storage, _ := newStorage(t, d)
	entries, err := storage.Entries(t.Context())
	if err != nil || len(entries) != 2 || entries[0].Name != "broken" || entries[1].Name != "one" {
		t.Fatalf("the entries are %v: %v", entries, err)
	}
	for _, entry := range entries {
		if _, err := entry.Open(&ssss.Key{ID: "k", Key: make([]byte, 32)}); !errors.Is(err, secretstorage.ErrNotOpened) {
			t.Errorf("%s is opened: %v", entry.Name, err)
		}
	}
}

func TestTheDefaultKeyIsSwitchedFromTheOneThatIsKnown(t *testing.T) {
	tests := []struct {
		name, before, after string
		want                error
	}{
		{"from the known one", "old", "new", nil},
		{"again, when it is switched", "new", "new", nil},
		{"not from another one", "other", "other", secretstorage.ErrChanged},
		{"not where there is none", "", "", secretstorage.ErrChanged},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := data{}
			if test.before != "" {
				d["m.secret_storage.default_key"] = json.RawMessage(`{"key":"` + test.before + `"}`)
			}
			storage, _ := newStorage(t, d)
			if err := storage.Switch(t.Context(), "old", "new"); !errors.Is(err, test.want) {
				t.Errorf("got %v", err)
			}
			if now, err := storage.DefaultKey(t.Context()); err != nil || now != test.after {
				t.Errorf("the default is %q, %v", now, err)
			}
		})
	}
}
