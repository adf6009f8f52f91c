package device

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// credentials are how the device is logged in; RefreshToken and what follows it are of a login by OAuth 2.0.
type credentials struct {
	AccessToken  string      `json:"access_token"`
	DeviceID     id.DeviceID `json:"device_id"`
	RefreshToken string      `json:"refresh_token,omitempty"`
	ClientID     string      `json:"client_id,omitempty"`
	// Expiry is zero where the access token has none.
	Expiry time.Time `json:"expiry,omitzero"`
}

// login sets the client, with the credentials that were kept, or new ones where there are none.
func (a *Account) login(ctx context.Context) error {
	kept, err := a.credentials(ctx)
	if err != nil {
		return err
	}
	if kept.AccessToken == "" {
		if kept, err = a.renew(ctx, kept); err != nil {
			return err
		}
	}
	client, err := mautrix.NewClient(a.config.Homeserver, a.config.UserID, kept.AccessToken)
	if err != nil {
		return fmt.Errorf("making the Matrix client: %w", err)
	}
	client.DeviceID, client.DefaultHTTPRetries = kept.DeviceID, 0
	if kept.RefreshToken != "" {
		client.Client = &http.Client{Timeout: client.Client.Timeout, Transport: &renewing{account: a, next: http.DefaultTransport, kept: kept}}
	}
	a.client = client
	return nil
}

// LogIn logs the account in anew as the config says, whether or not the present token is valid, and keeps the device.
func (a *Account) LogIn(ctx context.Context) error {
	kept, err := a.credentials(ctx)
	if err != nil {
		return err
	}
	_, err = a.authorize(ctx, kept)
	return err
}

// renew gets credentials that are valid again and keeps them. It leaves the client as it is, which others are using. A
// refusal for good ends the account.
func (a *Account) renew(ctx context.Context, kept credentials) (credentials, error) {
	if kept.RefreshToken != "" {
		return a.refresh(ctx, kept)
	}
	return a.authorize(ctx, kept)
}

func (a *Account) authorize(ctx context.Context, kept credentials) (credentials, error) {
	got, err := a.obtain(ctx, kept)
	if reason := finalLogin(err); reason != "" && kept.AccessToken != "" {
		return kept, a.endAccount(ctx, reason, err)
	} else if err != nil {
		return kept, err
	}
	if kept.DeviceID != "" && got.DeviceID != kept.DeviceID {
		return kept, fmt.Errorf("the login gave device %s, and the store belongs to device %s: make the login keep the device id", got.DeviceID, kept.DeviceID)
	}
	return got, a.keepCredentials(ctx, got)
}

// relogin is renew for a token that the homeserver refused.
func (a *Account) relogin(ctx context.Context) error {
	kept, err := a.credentials(ctx)
	if err != nil {
		return err
	}
	got, err := a.renew(ctx, kept)
	if err == nil && got.AccessToken == kept.AccessToken {
		err = a.endAccount(ctx, endRefused, errors.New("the access token is not valid any more, and the login gives the same again"))
	}
	return err
}

func (a *Account) credentials(ctx context.Context) (kept credentials, err error) {
	raw, err := a.store.sealedValue(ctx, "credentials")
	if err != nil || raw == nil {
		return kept, err
	}
	if json.Unmarshal(raw, &kept) != nil {
		return kept, errors.New("reading the kept credentials: they are malformed")
	}
	return kept, nil
}

func (a *Account) keepCredentials(ctx context.Context, got credentials) error {
	encoded, err := json.Marshal(got)
	if err != nil {
		return fmt.Errorf("keeping the credentials: %w", err)
	}
	if err := a.store.putSealed(ctx, "credentials", encoded); err != nil {
		return err
	}
	return a.store.set(ctx, "ended", "")
}

// obtain logs in as the config says; a new login keeps the device id, since the store's keys belong to it.
func (a *Account) obtain(ctx context.Context, kept credentials) (credentials, error) {
	login := a.config.Login
	switch {
	case login.AccessTokenFile != "":
		token, err := readSecret(login.AccessTokenFile)
		return credentials{AccessToken: token, DeviceID: login.DeviceID}, err
	case len(login.Command) > 0:
		return runLoginCommand(ctx, login.Command)
	case login.OAuth != nil:
		return a.askForAuthorization(ctx, kept)
	}
	request := &mautrix.ReqLogin{DeviceID: kept.DeviceID, InitialDeviceDisplayName: a.config.DeviceName}
	if request.InitialDeviceDisplayName == "" {
		request.InitialDeviceDisplayName = "Keyherald managed device"
	}
	var err error
	if login.PasswordFile != "" {
		request.Type = mautrix.AuthTypePassword
		request.Identifier = mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: a.config.UserID.String()}
		request.Password, err = readSecret(login.PasswordFile)
	} else {
		request.Type = mautrix.AuthTypeToken
		request.Token, err = readSecret(login.TokenFile)
	}
	if err != nil {
		return credentials{}, err
	}
	client, err := mautrix.NewClient(a.config.Homeserver, "", "")
	if err != nil {
		return credentials{}, fmt.Errorf("making the Matrix client: %w", err)
	}
	answer, err := client.Login(ctx, request)
	if err != nil {
		return credentials{}, fmt.Errorf("logging in as %s: %w", a.config.UserID, err)
	}
	if answer.UserID != a.config.UserID {
		return credentials{}, fmt.Errorf("the login is %s's and not %s's", answer.UserID, a.config.UserID)
	}
	return credentials{AccessToken: answer.AccessToken, DeviceID: answer.DeviceID}, nil
}

func runLoginCommand(ctx context.Context, command []string) (credentials, error) {
	var got struct {
		AccessToken string      `json:"access_token"`
		DeviceID    id.DeviceID `json:"device_id"`
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return credentials{}, fmt.Errorf("running login.command: %w", err)
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.AccessToken == "" {
		return credentials{}, errors.New(`login.command printed no {"access_token": …, "device_id": …}`)
	}
	if got.DeviceID == "" {
		return credentials{}, errors.New("login.command printed a token without a device_id: a token without a device cannot encrypt, so it must create one")
	}
	return credentials{AccessToken: got.AccessToken, DeviceID: got.DeviceID}, nil
}

func readSecret(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a secret's file: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
