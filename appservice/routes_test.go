package appservice

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
)

func TestTheHomeserversRoutesAskForItsToken(t *testing.T) {
	web := echo.New()
	routes := NewRoutes("the-right-token")
	routes.Register(web)
	for _, test := range []struct {
		name, method, path, token string
		status                    int
	}{
		{"a transaction", http.MethodPut, "/_matrix/app/v1/transactions/1", "the-right-token", http.StatusOK},
		{"a ping", http.MethodPost, "/_matrix/app/v1/ping", "the-right-token", http.StatusOK},
		{"a user, of whom there is none", http.MethodGet, "/_matrix/app/v1/users/@x:y", "the-right-token", http.StatusNotFound},
		{"a room, of which there is none", http.MethodGet, "/_matrix/app/v1/rooms/x", "the-right-token", http.StatusNotFound},
		{"a wrong token", http.MethodPut, "/_matrix/app/v1/transactions/1", "the-wrong-token", http.StatusForbidden},
		{"no token", http.MethodPut, "/_matrix/app/v1/transactions/1", "", http.StatusUnauthorized},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, legacy := range []bool{false, true} {
				req := httptest.NewRequest(test.method, test.path, strings.NewReader(`{"events":[]}`))
				if legacy {
					req.URL.RawQuery = "access_token=" + test.token
				} else if test.token != "" {
					req.Header.Set("Authorization", "Bearer "+test.token)
				}
				answer := httptest.NewRecorder()
				web.ServeHTTP(answer, req)
				if answer.Code != test.status {
					t.Errorf("got %d, want %d (legacy %v)", answer.Code, test.status, legacy)
				}
			}
		})
	}
	if routes.LastSeen().IsZero() {
		t.Error("the homeserver was not seen")
	}
	silent := NewRoutes("x")
	if !silent.LastSeen().IsZero() {
		t.Error("the homeserver was seen before it called")
	}
}

func TestARegistrationKeepsItsTokensAndCoversTheBotAlone(t *testing.T) {
	const bot = "@keyherald:example.org"
	first, err := NewRegistration(nil, bot, "http://localhost:8009", false)
	if err != nil || first.CheckTokens() != nil {
		t.Fatalf("%v, %v", err, first.CheckTokens())
	}
	kept, err := NewRegistration(&first, bot, "http://elsewhere:8009", false)
	if err != nil || kept.ASToken != first.ASToken || kept.HSToken != first.HSToken || kept.URL != "http://elsewhere:8009" {
		t.Errorf("the tokens were not kept: %v", err)
	}
	rotated, err := NewRegistration(&first, bot, "http://localhost:8009", true)
	if err != nil || rotated.ASToken == first.ASToken || rotated.HSToken == first.HSToken {
		t.Errorf("the tokens were not rotated: %v", err)
	}
	covers := regexp.MustCompile(first.Namespaces.Users[0].Regex)
	for user, want := range map[string]bool{bot: true, "@alice:example.org": false, "@keyherald:exampleXorg": false, "@keyherald2:example.org": false, "@akeyherald:example.org": false} {
		if covers.MatchString(user) != want {
			t.Errorf("the namespace covers %s: %v", user, !want)
		}
	}
	if first.SenderLocalpart == "keyherald" {
		t.Error("the bot is the application service's own user, whom Synapse lets have no /sync")
	}
	for name, change := range map[string]func(*Registration){
		"as it is made":            func(*Registration) {},
		"the bot as sender":        func(r *Registration) { r.SenderLocalpart = "keyherald" },
		"a namespace of everybody": func(r *Registration) { r.Namespaces.Users = []Namespace{{Regex: ".*"}} },
		"a second namespace":       func(r *Registration) { r.Namespaces.Users = append(r.Namespaces.Users, Namespace{Regex: "@a:b"}) },
		"a namespace of rooms":     func(r *Registration) { r.Namespaces.Rooms = []Namespace{{Regex: ".*"}} },
		"the namespace of another": func(r *Registration) { r.Namespaces.Users[0].Regex = "^@other:example\\.org$" },
	} {
		changed := first
		changed.Namespaces.Users = append([]Namespace(nil), first.Namespaces.Users...)
		change(&changed)
		if err := changed.CheckBot(bot); (err == nil) != (name == "as it is made") {
			t.Errorf("%s: %v", name, err)
		}
	}
	same := first
	same.HSToken = same.ASToken
	placeholder := first
	placeholder.HSToken = Placeholder
	for name, r := range map[string]Registration{"the same token twice": same, "a placeholder": placeholder, "no tokens": {}} {
		if r.CheckTokens() == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestABotsIdentityIsMadeOnceAndItsPartsBelongTogether(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	key, err := Keygen(dir, "@keyherald:example.org")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Keygen(other, "@keyherald:example.org"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{MasterFile, UserSigningFile, SelfSigningFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	// `serve` needs neither of the two that belong offline.
	for _, name := range []string{MasterFile, UserSigningFile} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(t.TempDir(), name)); err != nil {
			t.Fatal(err)
		}
	}
	identity, err := LoadIdentity(filepath.Join(dir, IdentityFile), filepath.Join(dir, SelfSigningFile))
	if err != nil || identity.MasterKey() != key {
		t.Fatalf("%v: master key %s, not %s", err, identity.MasterKey(), key)
	}
	if _, err := LoadIdentity(filepath.Join(dir, IdentityFile), filepath.Join(other, SelfSigningFile)); err == nil {
		t.Error("the seed of another identity was taken")
	}
	if _, err := Keygen(dir, "@keyherald:example.org"); err == nil || !strings.Contains(err.Error(), "made once") {
		t.Errorf("a second identity: %v", err)
	}
	if _, err := Keygen(t.TempDir(), "keyherald"); err == nil {
		t.Error("a name that is no user id was taken")
	}
}
