package backup_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/backup"
)

func TestAUserHasOptedOutWhereHisClientsSaySo(t *testing.T) {
	const newer, older = "m.key_backup", "m.org.matrix.custom.backup_disabled"
	tests := []struct {
		name string
		data map[string]string
		want bool
	}{
		{"no word", nil, false},
		{"the newer word says off", map[string]string{newer: `{"enabled":false}`}, true},
		{"the newer word says on", map[string]string{newer: `{"enabled":true}`}, false},
		{"the older word says off", map[string]string{older: `{"disabled":true}`}, true},
		{"the older word says on", map[string]string{older: `{"disabled":false}`}, false},
		{"the newer word beats the older", map[string]string{newer: `{"enabled":true}`, older: `{"disabled":true}`}, false},
		{"a newer word that says nothing leaves it to the older", map[string]string{newer: `{}`, older: `{"disabled":true}`}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for name, content := range test.data {
					if strings.HasSuffix(r.URL.Path, "/account_data/"+name) {
						_, _ = w.Write([]byte(content))
						return
					}
				}
				w.WriteHeader(http.StatusNotFound)
				_, _ = w.Write([]byte(`{"errcode":"M_NOT_FOUND"}`))
			}))
			defer server.Close()
			client, err := mautrix.NewClient(server.URL, "@alice:example.org", "token")
			if err != nil {
				t.Fatal(err)
			}
			got, err := backup.New(client).OptedOut(t.Context())
			if err != nil || got != test.want {
				t.Errorf("got %t, %v", got, err)
			}
		})
	}
}

func TestAHomeserverThatFailsIsNoWordOfTheUser(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer server.Close()
	client, err := mautrix.NewClient(server.URL, "@alice:example.org", "token")
	if err != nil {
		t.Fatal(err)
	}
	client.DefaultHTTPRetries = 0
	if _, err := backup.New(client).OptedOut(t.Context()); err == nil {
		t.Error("it passed for an answer")
	}
}
