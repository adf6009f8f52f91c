// Package identity is an OpenID provider for tests: zitadel's library with its example's login pages, over TLS, whose people
// log in as with a browser.
package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/oauth2"
)

const (
	// ClientID is the client that logs people in with a code, and DeviceClientID the one that does so with a device's code;
	// both are public.
	ClientID       = "keyherald"
	DeviceClientID = "keyherald-cli"
	// GroupsClaim is the claim with a person's groups.
	GroupsClaim = "groups"

	password = "verysecure"
	callback = "http://localhost/callback"
)

// Provider runs until Close.
type Provider struct {
	// Issuer is its address, and Roots vouch for it.
	Issuer string
	Roots  *x509.CertPool

	server *httptest.Server
	people people
	now    atomic.Pointer[http.Handler]
	down   atomic.Bool
}

// Start makes a provider of people, each with his groups.
func Start(groups map[string][]string) (*Provider, error) {
	p := &Provider{people: people{groups}}
	p.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		(*p.now.Load()).ServeHTTP(w, r)
	}))
	p.Issuer, p.Roots = p.server.URL, x509.NewCertPool()
	p.Roots.AddCert(p.server.Certificate())
	return p, p.NewKey()
}

// Close ends it.
func (p *Provider) Close() { p.server.Close() }

// SetDown has it answer nothing but 503.
func (p *Provider) SetDown(down bool) { p.down.Store(down) }

// NewKey replaces the key that it signs with, and forgets who is logged in.
func (p *Provider) NewKey() error {
	kept := &store{storage.NewStorageWithClients(p.people, map[string]*storage.Client{ClientID: storage.NativeClient(ClientID, callback), DeviceClientID: storage.NativeClient(DeviceClientID, callback)}), p.people}
	var handler http.Handler = exampleop.SetupServer(p.Issuer, kept, slog.New(slog.DiscardHandler), false)
	p.now.Store(&handler)
	return nil
}

// CertificatePEM is what vouches for it.
func (p *Provider) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
}

// people are the provider's users: name and password are the id.
type people struct{ groups map[string][]string }

func (p people) GetUserByID(name string) *storage.User {
	if _, there := p.groups[name]; !there {
		return nil
	}
	return &storage.User{ID: name, Username: name, Password: password, Email: name + "@example.org", EmailVerified: true}
}

func (p people) GetUserByUsername(name string) *storage.User { return p.GetUserByID(name) }
func (people) ExampleClientID() string                       { return storage.ServiceUserID }

// store is the example's with the groups of whom a token is about.
type store struct {
	*storage.Storage
	people people
}

// deviceClient may use the device flow.
type deviceClient struct{ op.Client }

func (deviceClient) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeDeviceCode, oidc.GrantTypeRefreshToken}
}

func (s *store) GetClientByClientID(ctx context.Context, name string) (op.Client, error) {
	client, err := s.Storage.GetClientByClientID(ctx, name)
	if err == nil && name == DeviceClientID {
		client = deviceClient{client}
	}
	return client, err
}

func (s *store) SetUserinfoFromScopes(ctx context.Context, info *oidc.UserInfo, user, client string, scopes []string) error {
	if err := s.Storage.SetUserinfoFromScopes(ctx, info, user, client, scopes); err != nil {
		return err
	}
	info.Subject = user
	info.AppendClaims(GroupsClaim, s.people.groups[user])
	return nil
}

func (s *store) SetUserinfoFromRequest(ctx context.Context, info *oidc.UserInfo, request op.IDTokenRequest, scopes []string) error {
	return s.SetUserinfoFromScopes(ctx, info, request.GetSubject(), request.GetClientID(), scopes)
}

// browser keeps cookies and follows the provider's pages, until one leads elsewhere.
func (p *Provider) browser() *http.Client {
	jar, _ := cookiejar.New(nil) // it fails for no options
	client := *p.server.Client()
	client.Jar = jar
	client.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if !strings.HasPrefix(r.URL.String(), p.Issuer) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return &client
}

// LogIn has a person log in by the authorization code flow with PKCE, and returns his ID token.
func (p *Provider) LogIn(ctx context.Context, name string) (string, error) {
	browser := p.browser()
	config := oauth2.Config{ClientID: ClientID, RedirectURL: callback, Scopes: []string{"openid", "profile"},
		Endpoint: oauth2.Endpoint{AuthURL: p.Issuer + "/auth", TokenURL: p.Issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams}}
	verifier := oauth2.GenerateVerifier()
	page, err := visit(ctx, browser, config.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)), nil)
	if err != nil {
		return "", err
	}
	request := page.at.Query().Get("authRequestID")
	answered, err := visit(ctx, browser, p.Issuer+"/login/username", url.Values{"id": {request}, "username": {name}, "password": {password}})
	if err != nil {
		return "", err
	}
	back, err := url.Parse(answered.leadsTo)
	if err != nil || back.Query().Get("code") == "" {
		return "", fmt.Errorf("the provider leads to %q, without a code", answered.leadsTo)
	}
	token, err := config.Exchange(context.WithValue(ctx, oauth2.HTTPClient, p.server.Client()), back.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		return "", fmt.Errorf("exchanging the code: %w", err)
	}
	text, ok := token.Extra("id_token").(string)
	if !ok {
		return "", errors.New("the provider gave no ID token")
	}
	return text, nil
}

// Allow has a person allow what shows this user code, as `keyherald login` prints it.
func (p *Provider) Allow(ctx context.Context, userCode, name string) error {
	browser := p.browser()
	if _, err := visit(ctx, browser, p.Issuer+"/device/login", url.Values{"user_code": {userCode}, "username": {name}, "password": {password}}); err != nil {
		return err
	}
	page, err := visit(ctx, browser, p.Issuer+"/device/confirm", url.Values{"action": {"allowed"}})
	if err == nil && page.status != http.StatusOK {
		err = fmt.Errorf("the provider answers %d", page.status)
	}
	return err
}

// page is where a browser is, with what status, and where it was led that is not the provider's.
type page struct {
	at      *url.URL
	status  int
	leadsTo string
}

// visit gets a page, or posts a form.
func visit(ctx context.Context, browser *http.Client, address string, form url.Values) (page, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return page{}, err
	}
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	response, err := browser.Do(request)
	if err != nil {
		return page{}, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return page{response.Request.URL, response.StatusCode, response.Header.Get("Location")}, errors.Join(err, response.Body.Close())
}
