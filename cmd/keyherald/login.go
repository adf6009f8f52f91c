package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/spf13/cobra"
	"golang.org/x/oauth2"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/internal/atomicfile"
)

// login is what `keyherald login` keeps, for its owner alone. Token is what is shown to the server.
type login struct {
	Server   string   `json:"server"`
	Issuer   string   `json:"issuer"`
	ClientID string   `json:"client_id"`
	Audience string   `json:"audience"`
	Scopes   []string `json:"scopes"`
	Token    string   `json:"token"`
	Refresh  string   `json:"refresh_token,omitempty"`
}

// loginPath is where the login is kept.
func loginPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding where a login is kept: %w", err)
	}
	return filepath.Join(dir, "keyherald", "login.json"), nil
}

// readLogin is nil where nobody logged in.
func readLogin() (*login, error) {
	path, err := loginPath()
	if err != nil {
		return nil, nil // without a home there is no login
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the login: %w", err)
	}
	l := new(login)
	if err := json.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("%s cannot be read: `keyherald login` writes another", path)
	}
	return l, nil
}

func (l *login) keep() error {
	path, err := loginPath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keeping the login: %w", err)
	}
	encoded, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("keeping the login: %w", err)
	}
	file, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return fmt.Errorf("keeping the login: %w", err)
	}
	if _, err := file.Write(encoded); err != nil {
		return errors.Join(fmt.Errorf("keeping the login: %w", err), file.Abort())
	}
	if err := file.Commit(true); err != nil {
		return fmt.Errorf("keeping the login: %w", err)
	}
	return nil
}

// early is how long before its end a token is renewed.
const early = 30 * time.Second

// token is the one that is kept, renewed where it ends.
func (l *login) token(ctx context.Context) (string, error) {
	if claims, err := claimsOf(l.Token); err == nil && time.Now().Add(early).Before(time.Unix(claims.Expiry, 0)) {
		return l.Token, nil
	}
	again := fmt.Errorf("the login has ended: run `keyherald login --server %s`", l.Server)
	if l.Refresh == "" {
		return "", again
	}
	config, err := l.oauth(ctx)
	if err != nil {
		return "", err
	}
	fresh, err := config.TokenSource(ctx, &oauth2.Token{RefreshToken: l.Refresh}).Token()
	if err != nil {
		return "", again
	}
	if err := l.take(fresh); err != nil {
		return "", err
	}
	return l.Token, l.keep()
}

// claims are what the program looks at of a token that it is given; the server judges it.
type claims struct {
	Audience audience `json:"aud"`
	Expiry   int64    `json:"exp"`
}

// audience is a text or a list.
type audience []string

func (a *audience) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(a))
}

func claimsOf(token string) (c claims, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("no JSON Web Token")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(raw, &c)
}

// take keeps the token that is for the server: the access token where it is a JSON Web Token for its audience, else the ID
// token.
func (l *login) take(token *oauth2.Token) error {
	if token.RefreshToken != "" {
		l.Refresh = token.RefreshToken
	}
	idToken, _ := token.Extra("id_token").(string)
	for _, candidate := range []string{token.AccessToken, idToken} {
		if c, err := claimsOf(candidate); err == nil && slices.Contains(c.Audience, l.Audience) {
			l.Token = candidate
			return nil
		}
	}
	return fmt.Errorf("the identity provider gave no token for the audience %q: its client %s must have that as audience (api.oidc.audience)", l.Audience, l.ClientID)
}

// oauth is the provider, as its discovery document has it.
func (l *login) oauth(ctx context.Context) (*oauth2.Config, error) {
	provider, err := oidc.NewProvider(ctx, l.Issuer)
	if err != nil {
		return nil, fmt.Errorf("asking the identity provider: %w", err)
	}
	scopes := l.Scopes
	if len(scopes) == 0 {
		scopes = []string{oidc.ScopeOpenID}
	}
	return &oauth2.Config{ClientID: l.ClientID, Endpoint: provider.Endpoint(), Scopes: scopes}, nil
}

func loginCommand(r *remote) *cobra.Command {
	return &cobra.Command{Use: "login", Short: "Log in at your identity provider, for the commands that act by the API", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		server := r.server
		if server == "" {
			server = os.Getenv(serverVariable)
		}
		if server == "" {
			return errors.New("which server? Write --server https://keyherald.example.org")
		}
		address, err := serverAddress(server)
		if err != nil {
			return err
		}
		c := &client{server: address, http: http.DefaultClient, token: func(context.Context) (string, error) { return "none", nil }}
		var how api.Login
		if err := c.do(cmd.Context(), http.MethodGet, "/login", nil, &how); err != nil {
			return err
		}
		if how.Issuer == "" || how.ClientID == "" {
			return errors.New("this server names no identity provider to log in at (api.oidc with client_id): use an API token, with --token-file")
		}
		l := &login{Server: address, Issuer: how.Issuer, ClientID: how.ClientID, Audience: how.Audience, Scopes: how.Scopes}
		config, err := l.oauth(cmd.Context())
		if err != nil {
			return err
		}
		if config.Endpoint.DeviceAuthURL == "" {
			return errors.New("the identity provider has no device flow (RFC 8628): use an API token, with --token-file")
		}
		waiting, err := config.DeviceAuth(cmd.Context())
		if err != nil {
			return fmt.Errorf("asking the identity provider: %w", err)
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "Open %s and write %s there.\n", waiting.VerificationURI, waiting.UserCode)
		token, err := config.DeviceAccessToken(cmd.Context(), waiting)
		if err != nil {
			return fmt.Errorf("logging in: %w", err)
		}
		if err := l.take(token); err != nil {
			return err
		}
		if err := l.keep(); err != nil {
			return err
		}
		c.token = l.token
		var who api.Whoami
		if err := c.do(cmd.Context(), http.MethodGet, "/whoami", nil, &who); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "You are %s, with the roles %v.\n", who.Actor, who.Roles)
		return err
	}}
}

func logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "Forget the login", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		path, err := loginPath()
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forgetting the login: %w", err)
		}
		return nil
	}}
}
