package keyheraldtest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// AuthorizationServer is an OAuth 2.0 authorization server in front of a homeserver that knows nothing of it: it follows
// RFC 8628 (device authorization), 7591 (registration) and 6749 (refreshing), with refresh tokens that are good once, and
// hands on to the homeserver what comes with a token of its own. Matrix Authentication Service is the real one.
type AuthorizationServer struct {
	// URL is the homeserver's and the authorization server's.
	URL string
	// Life is how long an access token is good.
	Life time.Duration
	// CodeLife is how long a person has to authorize a device.
	CodeLife time.Duration

	server     *httptest.Server
	homeserver string

	mu       sync.Mutex // guards the rest
	clients  map[string]bool
	codes    map[string]*deviceCode // by device code
	sessions []*oauthSession
	reused   int
}

type deviceCode struct {
	userCode, clientID string
	device             id.DeviceID
	expires, polled    time.Time
	denied             bool
	session            *oauthSession
}

// oauthSession is one authorized device: a token of the homeserver's behind the tokens of this server.
type oauthSession struct {
	clientID, homeserverToken string
	access, refresh           string
	expires                   time.Time
	spent                     []string
	revoked                   bool
	refreshed                 int
}

// codeInterval is the least time between two questions of a device, in seconds.
const codeInterval = 1

// NewAuthorizationServer starts one in front of a homeserver; Close ends it.
func NewAuthorizationServer(homeserver string) (*AuthorizationServer, error) {
	target, err := url.Parse(homeserver)
	if err != nil {
		return nil, fmt.Errorf("starting an authorization server: %w", err)
	}
	s := &AuthorizationServer{Life: 5 * time.Minute, CodeLife: time.Minute, homeserver: homeserver, clients: map[string]bool{}, codes: map[string]*deviceCode{}}
	proxy := httputil.NewSingleHostReverseProxy(target)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_matrix/client/v1/auth_metadata", s.metadata)
	mux.HandleFunc("POST /oauth2/registration", s.registration)
	mux.HandleFunc("POST /oauth2/device", s.device)
	mux.HandleFunc("POST /oauth2/token", s.token)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); bearer != "" {
			token, ok := s.behind(bearer)
			if !ok {
				reply(w, http.StatusUnauthorized, map[string]any{"errcode": "M_UNKNOWN_TOKEN", "error": "the token is not active", "soft_logout": true})
				return
			}
			r.Header.Set("Authorization", "Bearer "+token)
		}
		proxy.ServeHTTP(w, r)
	})
	s.server = httptest.NewServer(mux)
	s.URL = s.server.URL
	return s, nil
}

// Close ends the server and every connection to it.
func (s *AuthorizationServer) Close() {
	s.server.CloseClientConnections()
	s.server.Close()
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, code string) {
	reply(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": "see RFC 6749, section 5.2"})
}

func (s *AuthorizationServer) metadata(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]any{"issuer": s.URL + "/", "token_endpoint": s.URL + "/oauth2/token", "registration_endpoint": s.URL + "/oauth2/registration",
		"device_authorization_endpoint": s.URL + "/oauth2/device", "revocation_endpoint": s.URL + "/oauth2/revoke", "authorization_endpoint": s.URL + "/authorize",
		"response_types_supported": []string{"code"}, "response_modes_supported": []string{"query"}, "code_challenge_methods_supported": []string{"S256"},
		"grant_types_supported": []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"}})
}

func (s *AuthorizationServer) registration(w http.ResponseWriter, r *http.Request) {
	var client struct {
		Name          string    `json:"client_name"`
		URI           string    `json:"client_uri"`
		Type          string    `json:"application_type"`
		Method        string    `json:"token_endpoint_auth_method"`
		GrantTypes    []string  `json:"grant_types"`
		ResponseTypes *[]string `json:"response_types"`
	}
	err := json.NewDecoder(r.Body).Decode(&client)
	// RFC 7591, section 2.1: without response_types it is ["code"], which does not go without the authorization code grant.
	code := client.ResponseTypes == nil || slices.Contains(*client.ResponseTypes, "code")
	if err != nil || client.Name == "" || !strings.HasPrefix(client.URI, "https://") || client.Type != "native" || client.Method != "none" ||
		!slices.Contains(client.GrantTypes, "urn:ietf:params:oauth:grant-type:device_code") || !slices.Contains(client.GrantTypes, "refresh_token") ||
		code != slices.Contains(client.GrantTypes, "authorization_code") {
		refuse(w, "invalid_client_metadata")
		return
	}
	clientID := rand.Text()
	s.mu.Lock()
	s.clients[clientID] = true
	s.mu.Unlock()
	reply(w, http.StatusCreated, map[string]any{"client_id": clientID, "client_name": client.Name, "client_uri": client.URI})
}

func (s *AuthorizationServer) device(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.clients[r.PostFormValue("client_id")] {
		refuse(w, "invalid_client")
		return
	}
	code := &deviceCode{userCode: rand.Text()[:8], clientID: r.PostFormValue("client_id"), expires: time.Now().Add(s.CodeLife)}
	api := false
	for _, scope := range strings.Fields(r.PostFormValue("scope")) {
		if device, ok := strings.CutPrefix(scope, "urn:matrix:client:device:"); ok {
			code.device = id.DeviceID(device)
		}
		api = api || scope == "urn:matrix:client:api:*"
	}
	if !api || len(code.device) < 10 {
		refuse(w, "invalid_scope")
		return
	}
	secret := rand.Text()
	s.codes[secret] = code
	reply(w, http.StatusOK, map[string]any{"device_code": secret, "user_code": code.userCode, "verification_uri": s.URL + "/link",
		"verification_uri_complete": s.URL + "/link?code=" + code.userCode, "expires_in": int(s.CodeLife.Seconds()), "interval": codeInterval})
}

// Authorize is the person who opens the page, logs in, and agrees: his password gives the device a token of the homeserver.
func (s *AuthorizationServer) Authorize(ctx context.Context, userCode string, user id.UserID, password string) error {
	code := s.code(userCode)
	if code == nil {
		return fmt.Errorf("there is no user code %q", userCode)
	}
	client, err := mautrix.NewClient(s.homeserver, "", "")
	if err != nil {
		return err
	}
	answer, err := client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypePassword, Password: password, DeviceID: code.device,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	if err != nil {
		return fmt.Errorf("logging in at the homeserver: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	code.session = &oauthSession{clientID: code.clientID, homeserverToken: answer.AccessToken}
	s.sessions = append(s.sessions, code.session)
	return nil
}

// Deny is the person who does not agree.
func (s *AuthorizationServer) Deny(userCode string) {
	if code := s.code(userCode); code != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		code.denied = true
	}
}

func (s *AuthorizationServer) code(userCode string) *deviceCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, code := range s.codes {
		if code.userCode == userCode {
			return code
		}
	}
	return nil
}

func (s *AuthorizationServer) token(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.PostFormValue("grant_type") {
	case "urn:ietf:params:oauth:grant-type:device_code":
		s.byCode(w, r)
	case "refresh_token":
		s.byRefresh(w, r)
	default:
		refuse(w, "unsupported_grant_type")
	}
}

func (s *AuthorizationServer) byCode(w http.ResponseWriter, r *http.Request) {
	code := s.codes[r.PostFormValue("device_code")]
	now := time.Now()
	switch {
	case code == nil || code.clientID != r.PostFormValue("client_id"):
		refuse(w, "invalid_grant")
		return
	case now.After(code.expires):
		refuse(w, "expired_token")
		return
	case now.Sub(code.polled) < codeInterval*time.Second*9/10:
		code.polled = now
		refuse(w, "slow_down")
		return
	}
	code.polled = now
	switch {
	case code.denied:
		refuse(w, "access_denied")
	case code.session == nil:
		refuse(w, "authorization_pending")
	default:
		delete(s.codes, r.PostFormValue("device_code"))
		s.give(w, code.session)
	}
}

func (s *AuthorizationServer) byRefresh(w http.ResponseWriter, r *http.Request) {
	token := r.PostFormValue("refresh_token")
	for _, session := range s.sessions {
		if slices.Contains(session.spent, token) {
			// RFC 9700, section 4.14.2: a refresh token that comes again may be a thief's.
			s.reused++
			session.revoked = true
		}
		if session.refresh == token && token != "" && session.clientID == r.PostFormValue("client_id") && !session.revoked {
			session.refreshed++
			session.spent = append(session.spent, token)
			s.give(w, session)
			return
		}
	}
	refuse(w, "invalid_grant")
}

func (s *AuthorizationServer) give(w http.ResponseWriter, session *oauthSession) {
	session.access, session.refresh, session.expires = rand.Text(), rand.Text(), time.Now().Add(s.Life)
	reply(w, http.StatusOK, map[string]any{"access_token": session.access, "refresh_token": session.refresh, "token_type": "Bearer", "expires_in": int(s.Life.Seconds())})
}

// behind is the homeserver's token for one of ours.
func (s *AuthorizationServer) behind(access string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		if session.access == access && !session.revoked && time.Now().Before(session.expires) {
			return session.homeserverToken, true
		}
	}
	return "", false
}

// Revoke ends every session.
func (s *AuthorizationServer) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		session.revoked = true
	}
}

// Expire ends every access token now, and leaves the refresh tokens.
func (s *AuthorizationServer) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		session.expires = time.Now()
	}
}

// Refreshed counts refreshed access tokens, and refresh tokens that came a second time.
func (s *AuthorizationServer) Refreshed() (refreshed, reused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		refreshed += session.refreshed
	}
	return refreshed, s.reused
}

// Tokens are all tokens that were given, for a search that must find none.
func (s *AuthorizationServer) Tokens() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var tokens []string
	for _, session := range s.sessions {
		tokens = append(append(tokens, session.spent...), session.access, session.refresh)
	}
	return tokens
}
