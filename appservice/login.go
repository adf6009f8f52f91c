package appservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Login is how the bot gets its device.
type Login string

// The ways to a device. By LoginAppservice (m.login.application_service) it has an access token of its own. By
// LoginMSC4190 the bot creates its device and acts as it with the as_token (client-server API, "Application service
// extensions": MSC4190 and MSC4326), as it must where the Matrix Authentication Service has the logins. LoginAuto takes
// the second where the first is not there.
const (
	LoginAuto       Login = "auto"
	LoginAppservice Login = "appservice"
	LoginMSC4190    Login = "msc4190"
)

// Validate refuses an unknown way; empty is LoginAuto.
func (l Login) Validate() error {
	switch l {
	case "", LoginAuto, LoginAppservice, LoginMSC4190:
		return nil
	}
	return fmt.Errorf("%q is no way for the bot to log in: write auto, appservice or msc4190", string(l))
}

const deviceName = "Keyherald"

var (
	errNoAppserviceLogin = errors.New("the homeserver does not log application services in (bot.login: auto or msc4190 does without)")
	errNoMasquerading    = errors.New("the homeserver does not let an application service act as its own device (MSC4190, MSC4326); with bot.login: appservice the bot logs in")
)

// What a homeserver answers that logs no application service in, or not this one; Synapse still says the unstable code.
var (
	errLoginUnsupported         = mautrix.RespError{ErrCode: "M_APPSERVICE_LOGIN_UNSUPPORTED"}
	errLoginUnsupportedUnstable = mautrix.RespError{ErrCode: "IO.ELEMENT.MSC4190.M_APPSERVICE_LOGIN_UNSUPPORTED"}
)

// unsupported means that this homeserver has no login for application services, or none for this one. The Matrix
// Authentication Service answers M_UNRECOGNIZED, and so does a Synapse that delegates to it; a proxy may know no /login.
func unsupported(err error) bool {
	var httpErr mautrix.HTTPError
	missing := errors.As(err, &httpErr) && (httpErr.IsStatus(http.StatusNotFound) || httpErr.IsStatus(http.StatusMethodNotAllowed))
	return missing || errors.Is(err, errLoginUnsupported) || errors.Is(err, errLoginUnsupportedUnstable) || errors.Is(err, mautrix.MUnrecognized)
}

// enter registers the bot's user and makes the client of its device. Synapse logs a user in that nobody registered, and
// then refuses his token, so registering comes first; where it fails for another reason than that he exists, the way to
// the device shows whether it mattered.
func (b *Bot) enter(ctx context.Context, device id.DeviceID) (*mautrix.Client, error) {
	registerErr := b.register(ctx)
	client, err := b.session(ctx, device)
	if err != nil {
		return nil, errors.Join(err, registerErr)
	}
	if registerErr != nil {
		b.config.Log.Warn().Err(registerErr).Msg("The homeserver did not let the bot be registered")
	}
	return client, nil
}

func (b *Bot) register(ctx context.Context) error {
	client, err := b.unnamed()
	if err != nil {
		return err
	}
	body := map[string]any{"type": mautrix.AuthTypeAppservice, "username": b.config.Identity.UserID.Localpart(), "inhibit_login": true}
	_, err = client.MakeRequest(ctx, http.MethodPost, client.BuildClientURL("v3", "register"), body, nil)
	if err != nil && !errors.Is(err, mautrix.MUserInUse) {
		return fmt.Errorf("registering the bot: %w", err)
	}
	return nil
}

// session makes the client of a device of the bot, in the configured way.
func (b *Bot) session(ctx context.Context, device id.DeviceID) (*mautrix.Client, error) {
	if b.config.Login == LoginMSC4190 {
		return b.masquerade(ctx, device)
	}
	client, err := b.loginAs(ctx, device)
	if !errors.Is(err, errNoAppserviceLogin) || b.config.Login == LoginAppservice {
		return client, err
	}
	client, otherErr := b.masquerade(ctx, device)
	if otherErr != nil {
		return nil, errors.Join(err, otherErr)
	}
	return client, nil
}

// masquerade creates the device, unless it is there, and returns a client that acts as it. There is no token that could
// die with a takeover: what keeps a former holder from the device's ratchets is the lease alone, as everywhere.
func (b *Bot) masquerade(ctx context.Context, device id.DeviceID) (*mautrix.Client, error) {
	client, err := b.unnamed()
	if err != nil {
		return nil, err
	}
	client.UserID, client.SetAppServiceUserID = b.config.Identity.UserID, true
	if err := client.CreateDeviceMSC4190(ctx, device, deviceName); err != nil {
		return nil, fmt.Errorf("creating the bot's device: %w: %w", errNoMasquerading, err)
	}
	// A homeserver that does not know the device_id parameter ignores it, and every message would have no device.
	who, err := client.Whoami(ctx)
	if err != nil {
		return nil, fmt.Errorf("acting as the bot's device: %w", err)
	}
	if who.UserID != client.UserID || who.DeviceID != device {
		return nil, fmt.Errorf("acting as the bot's device: %w: it takes us for device %q of %s", errNoMasquerading, who.DeviceID, who.UserID)
	}
	return client, nil
}

// logOut ends a former device of the bot: logging in as it gives the token that logs it out, and without a login it is
// deleted, which the as_token may do without user-interactive authentication (MSC4190).
func (b *Bot) logOut(ctx context.Context, current *mautrix.Client, device id.DeviceID) error {
	if current.SetAppServiceDeviceID {
		_, err := current.MakeRequest(ctx, http.MethodDelete, current.BuildClientURL("v3", "devices", device), struct{}{}, nil)
		if errors.Is(err, mautrix.MNotFound) {
			return nil
		}
		return err
	}
	client, err := b.loginAs(ctx, device)
	if err != nil {
		return err
	}
	_, err = client.Logout(ctx)
	return err
}
