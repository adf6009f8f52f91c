package device

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/oauth2"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/oauth"
)

// OAuth is the login by OAuth 2.0 device authorization (RFC 8628; client-server API, "OAuth 2.0 API"): the device shows
// a code, and a person authorizes it in his browser. Without ClientID the program registers itself (RFC 7591).
type OAuth struct {
	ClientName string `yaml:"client_name"`
	ClientURI  string `yaml:"client_uri"`
	ClientID   string `yaml:"client_id"`
}

// Authorization is what a person needs to authorize the device. URIComplete has the code in it already; it is empty where
// the server gives none.
type Authorization struct {
	URI, URIComplete, UserCode string
	Expires                    time.Time
}

// errNobodyThere means that a person has to authorize the device.
var errNobodyThere = errors.New("a person has to authorize the device: run keyherald-device login on a terminal")

// askForAuthorization has a person authorize the device, and waits until he did.
func (a *Account) askForAuthorization(ctx context.Context, kept credentials) (credentials, error) {
	if a.options.Authorize == nil {
		return credentials{}, errNobodyThere
	}
	client, err := mautrix.NewClient(a.config.Homeserver, "", "")
	if err != nil {
		return credentials{}, fmt.Errorf("making the Matrix client: %w", err)
	}
	metadata, err := a.authorizationServer(ctx, client)
	if err != nil {
		return credentials{}, err
	}
	clientID := kept.ClientID
	if a.config.Login.OAuth.ClientID != "" {
		clientID = a.config.Login.OAuth.ClientID
	} else if clientID == "" {
		if clientID, err = a.register(ctx, client, metadata.RegistrationEndpoint); err != nil {
			return credentials{}, err
		}
	}
	device := kept.DeviceID
	if device == "" {
		device = id.DeviceID(rand.Text())
	}
	config := oauth2.Config{ClientID: clientID, Scopes: []string{string(oauth.ScopeClientAPI), string(oauth.ScopeDevice(device))},
		Endpoint: oauth2.Endpoint{DeviceAuthURL: metadata.DeviceAuthorizationEndpoint, TokenURL: metadata.TokenEndpoint, AuthStyle: oauth2.AuthStyleInParams}}
	code, err := config.DeviceAuth(ctx)
	if err != nil {
		return credentials{}, oauthError("asking for a device authorization", err)
	}
	a.options.Authorize(Authorization{URI: code.VerificationURI, URIComplete: code.VerificationURIComplete, UserCode: code.UserCode, Expires: code.Expiry})
	token, err := config.DeviceAccessToken(ctx, code)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return credentials{}, errors.New("nobody authorized the device in time: run it again")
	} else if err != nil {
		return credentials{}, oauthError("waiting for the authorization", err)
	}
	got := credentials{AccessToken: token.AccessToken, DeviceID: device, RefreshToken: token.RefreshToken, ClientID: clientID, Expiry: token.Expiry}
	return got, a.checkWhose(ctx, got)
}

// authorizationServer reads where the user's authorization server is. It must be reached as safely as the homeserver.
func (a *Account) authorizationServer(ctx context.Context, client *mautrix.Client) (*oauth.ServerMetadata, error) {
	metadata, err := client.OAuthGetServerMetadata(ctx)
	if errors.Is(err, mautrix.MUnrecognized) || errors.Is(err, mautrix.MNotFound) {
		return nil, errors.New("login.oauth: the homeserver has no OAuth 2.0 login: use another way")
	} else if err != nil {
		return nil, fmt.Errorf("reading the homeserver's authorization metadata: %w", err)
	}
	if metadata.DeviceAuthorizationEndpoint == "" {
		return nil, errors.New("login.oauth: the authorization server has no device authorization (RFC 8628): use another way")
	}
	endpoints := []string{metadata.TokenEndpoint, metadata.DeviceAuthorizationEndpoint}
	if metadata.RegistrationEndpoint != "" {
		endpoints = append(endpoints, metadata.RegistrationEndpoint)
	}
	for _, endpoint := range endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "https" && client.HomeserverURL.Scheme == "https" {
			return nil, fmt.Errorf("the homeserver names %q as an endpoint of the authorization server: it must be an https address", endpoint)
		}
	}
	return metadata, nil
}

// registration is the client metadata of RFC 7591 for a client that has no other way than the device authorization: left
// out, response_types would mean that it has the authorization code's.
type registration struct {
	ApplicationType oauth.ApplicationType `json:"application_type"`
	ClientName      string                `json:"client_name"`
	ClientURI       string                `json:"client_uri"`
	AuthMethod      oauth.AuthMethod      `json:"token_endpoint_auth_method"`
	GrantTypes      []oauth.GrantType     `json:"grant_types"`
	ResponseTypes   []oauth.ResponseType  `json:"response_types"`
}

func (a *Account) register(ctx context.Context, client *mautrix.Client, endpoint string) (string, error) {
	if endpoint == "" {
		return "", errors.New("login.oauth: the authorization server registers no clients by itself: set client_id to one that its operator registered")
	}
	var registered struct {
		ClientID string `json:"client_id"`
	}
	_, err := client.MakeRequest(ctx, http.MethodPost, endpoint, registration{
		ApplicationType: oauth.ApplicationTypeNative, ClientName: a.config.Login.OAuth.ClientName, ClientURI: a.config.Login.OAuth.ClientURI,
		AuthMethod: oauth.AuthMethodNone, GrantTypes: []oauth.GrantType{oauth.GrantTypeDeviceCode, oauth.GrantTypeRefreshToken},
		ResponseTypes: []oauth.ResponseType{},
	}, &registered)
	if err != nil {
		return "", fmt.Errorf("registering with the authorization server (or set login.oauth.client_id): %w", err)
	}
	if registered.ClientID == "" {
		return "", errors.New("registering with the authorization server: it gives no client_id")
	}
	return registered.ClientID, nil
}

// checkWhose asks the homeserver whose the new token is: whoever is in the browser may be somebody else.
func (a *Account) checkWhose(ctx context.Context, got credentials) error {
	client, err := mautrix.NewClient(a.config.Homeserver, a.config.UserID, got.AccessToken)
	if err != nil {
		return fmt.Errorf("making the Matrix client: %w", err)
	}
	who, err := client.Whoami(ctx)
	if err != nil {
		return fmt.Errorf("asking whose the new token is: %w", err)
	}
	if who.UserID != a.config.UserID {
		return fmt.Errorf("the device was authorized by %s and not by %s: log in as him in the browser, and run it again", who.UserID, a.config.UserID)
	}
	if who.DeviceID != got.DeviceID {
		return fmt.Errorf("the homeserver calls the device %s, and %s was asked for", who.DeviceID, got.DeviceID)
	}
	return nil
}

// refresh renews a token that was refused. Where the refresh token is refused too, a person has to authorize anew.
func (a *Account) refresh(ctx context.Context, kept credentials) (credentials, error) {
	got, err := a.renewed(ctx, kept)
	if reason := finalLogin(err); reason != "" {
		return kept, a.endAccount(ctx, reason, err)
	} else if err != nil {
		return kept, fmt.Errorf("renewing the access token: %w", err)
	}
	return got, nil
}

// renewalTimeout bounds a renewal, which nobody who waits for it can cut short.
const renewalTimeout = 30 * time.Second

// renewed are the credentials after a renewal. The new refresh token is written down before the access token that came
// with it is used, by a client of its own. Once the authorization server was asked, the old tokens may be worth nothing, so
// whoever stops the device meanwhile waits for the answer.
func (a *Account) renewed(ctx context.Context, kept credentials) (credentials, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewalTimeout)
	defer cancel()
	client, err := mautrix.NewClient(a.config.Homeserver, a.config.UserID, kept.AccessToken)
	if err != nil {
		return kept, fmt.Errorf("making the Matrix client: %w", err)
	}
	fresh := kept
	client.SaveNewToken = func(ctx context.Context, refreshToken, accessToken string, expiry time.Time) error {
		if !expiry.After(time.Now()) {
			// No word on its end: it is good until the homeserver refuses it.
			expiry = time.Time{}
		}
		fresh.RefreshToken, fresh.AccessToken, fresh.Expiry = refreshToken, accessToken, expiry
		return a.keepCredentials(ctx, fresh)
	}
	client.OAuthSetTokens(kept.ClientID, kept.RefreshToken, kept.AccessToken, time.Now())
	const always = 200 * 365 * 24 * time.Hour
	if err := client.OAuthRefreshToken(ctx, always); err != nil {
		return kept, err
	}
	return fresh, nil
}

// oauthError keeps what a server wrote into an error's body out of the program's own.
func oauthError(doing string, err error) error {
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	switch refused.ErrorCode {
	case "access_denied":
		return fmt.Errorf("%s: it was denied in the browser", doing)
	case "expired_token":
		return fmt.Errorf("%s: nobody authorized the device in time: run it again", doing)
	}
	return fmt.Errorf("%s: the authorization server answered %s %q", doing, refused.Response.Status, refused.ErrorCode)
}
