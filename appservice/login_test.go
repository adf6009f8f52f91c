package appservice

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"
)

// homeserver answers as one with or without a login for application services, and with or without MSC4190.
type homeserver struct {
	login      int    // the status of POST /login
	loginCode  string // its errcode
	masquerade bool   // device_id is known
	createCode int    // the status of PUT /devices
	register   string // the errcode of POST /register
	requests   []string
}

func (h *homeserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/_matrix/client/v3")
	h.requests = append(h.requests, r.Method+" "+path)
	answer := func(status int, body any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	refuse := func(status int, code string) {
		answer(status, map[string]string{"errcode": code, "error": "as the test says"})
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer as-token":
		refuse(http.StatusUnauthorized, "M_UNKNOWN_TOKEN")
	case path == "/login" && h.loginCode != "":
		refuse(h.login, h.loginCode)
	case path == "/login" && h.login != http.StatusOK && h.loginCode == "":
		w.WriteHeader(h.login)
	case path == "/login":
		answer(http.StatusOK, map[string]string{"user_id": bot.String(), "device_id": "DEVICE", "access_token": "of the device"})
	case path == "/register" && h.register != "":
		refuse(http.StatusBadRequest, h.register)
	case path == "/register":
		answer(http.StatusOK, map[string]string{"user_id": bot.String()})
	case path == "/devices/DEVICE" && r.Method == http.MethodPut && r.URL.Query().Get("user_id") == bot.String():
		if h.createCode != http.StatusCreated {
			refuse(h.createCode, "M_NOT_FOUND")
			return
		}
		answer(http.StatusCreated, struct{}{})
	case path == "/account/whoami":
		who := map[string]string{"user_id": bot.String()}
		if h.masquerade {
			who["device_id"] = r.URL.Query().Get("device_id")
		}
		answer(http.StatusOK, who)
	default:
		refuse(http.StatusNotFound, "M_UNRECOGNIZED")
	}
}

const bot = id.UserID("@keyherald:example.org")

func TestTheBotTakesTheWayToItsDeviceThatTheHomeserverHas(t *testing.T) {
	const loggedIn, acting = "of the device", "as-token"
	both := homeserver{login: http.StatusOK, masquerade: true, createCode: http.StatusCreated}
	with := func(login int, code string, change ...func(*homeserver)) homeserver {
		h := both
		h.login, h.loginCode = login, code
		for _, f := range change {
			f(&h)
		}
		return h
	}
	unaware := func(h *homeserver) { h.masquerade = false }
	without := func(h *homeserver) { h.createCode = http.StatusNotFound }
	for _, test := range []struct {
		name  string
		login Login
		hs    homeserver
		token string // of the client; empty means an error
		err   error
	}{
		{"it logs in where it can", LoginAuto, both, loggedIn, nil},
		{"an empty way is auto", "", both, loggedIn, nil},
		{"a bot that is there already is as good", LoginAuto, with(http.StatusOK, "", func(h *homeserver) { h.register = "M_USER_IN_USE" }), loggedIn, nil},
		{"a homeserver that registers nobody may know it all the same", LoginAuto, with(http.StatusOK, "", func(h *homeserver) { h.register = "M_FORBIDDEN" }), loggedIn, nil},
		{"the Matrix Authentication Service refuses it, so it makes its device", LoginAuto, with(http.StatusBadRequest, "M_UNRECOGNIZED"), acting, nil},
		{"so does a Synapse that delegates to it", LoginAuto, with(http.StatusNotFound, "M_UNRECOGNIZED"), acting, nil},
		{"and the specification's own answer", LoginAuto, with(http.StatusBadRequest, "M_APPSERVICE_LOGIN_UNSUPPORTED"), acting, nil},
		{"and Synapse's before it was stable", LoginAuto, with(http.StatusBadRequest, "IO.ELEMENT.MSC4190.M_APPSERVICE_LOGIN_UNSUPPORTED"), acting, nil},
		{"and a proxy without a /login", LoginAuto, with(http.StatusNotFound, ""), acting, nil},
		{"a wrong namespace is no reason for another way", LoginAuto, with(http.StatusBadRequest, "M_EXCLUSIVE"), "", nil},
		{"a limit is no reason either", LoginAuto, with(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED"), "", nil},
		{"a homeserver that is down is none either", LoginAuto, with(http.StatusBadGateway, ""), "", nil},
		{"appservice means no other way", LoginAppservice, with(http.StatusBadRequest, "M_UNRECOGNIZED"), "", errNoAppserviceLogin},
		{"msc4190 does not even try to log in", LoginMSC4190, with(http.StatusInternalServerError, "M_UNKNOWN"), acting, nil},
		{"a homeserver that ignores device_id is found out", LoginMSC4190, with(http.StatusOK, "", unaware), "", errNoMasquerading},
		{"a homeserver that creates no device says so", LoginMSC4190, with(http.StatusOK, "", without), "", errNoMasquerading},
		{"where there is neither way, both are told", LoginAuto, with(http.StatusBadRequest, "M_UNRECOGNIZED", without), "", errNoAppserviceLogin},
	} {
		t.Run(test.name, func(t *testing.T) {
			hs := test.hs
			server := httptest.NewServer(&hs)
			defer server.Close()
			b := &Bot{config: BotConfig{HomeserverURL: server.URL, ASToken: "as-token", Login: test.login, Identity: Identity{UserID: bot}, Log: zerolog.Nop()}}
			client, err := b.enter(t.Context(), "DEVICE")
			if test.token == "" {
				if err == nil || test.err != nil && !errors.Is(err, test.err) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if hs.requests[0] != "POST /register" {
				t.Errorf("Synapse needs the bot registered before it logs in: %v", hs.requests)
			}
			if client.AccessToken != test.token || client.DeviceID != "DEVICE" || client.UserID != bot {
				t.Errorf("the client is %s of %s, with another token than expected: %v", client.DeviceID, client.UserID, client.AccessToken != test.token)
			}
			if acts := client.SetAppServiceUserID && client.SetAppServiceDeviceID; acts != (test.token == acting) {
				t.Errorf("it acts as the device: %v", acts)
			}
			if test.login == LoginMSC4190 && slices.Contains(hs.requests, "POST /login") {
				t.Error("it tried to log in")
			}
		})
	}
}

func TestAnUnknownWayToLogInIsRefused(t *testing.T) {
	for login, right := range map[Login]bool{"": true, LoginAuto: true, LoginAppservice: true, LoginMSC4190: true, "password": false, "MSC4190": false} {
		if err := login.Validate(); (err == nil) != right {
			t.Errorf("%q: %v", login, err)
		}
	}
}
