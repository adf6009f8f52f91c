package device

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix"

	"github.com/keyherald/keyherald/protocol"
)

// Why an account ends: nobody but a person can change it, so nothing is tried again by itself.
const (
	endDeactivated = "user_deactivated"
	endRefused     = "login_refused"
)

// ended is the error that ends an account.
type ended struct {
	reason string
	cause  error
}

func (e *ended) Error() string {
	return fmt.Sprintf("the account ends (%s): %v", e.reason, e.cause)
}
func (e *ended) Unwrap() error { return e.cause }

// finalLogin is why a refused login will be refused again; empty where it may come right by itself.
func finalLogin(err error) string {
	switch {
	case errors.Is(err, mautrix.MUserDeactivated):
		return endDeactivated
	case errors.Is(err, mautrix.MForbidden), errors.Is(err, mautrix.MUnknownToken), errors.Is(err, mautrix.ErrOAuthInvalidGrant),
		errors.Is(err, mautrix.ErrOAuthInvalidClient), errors.Is(err, errNobodyThere):
		return endRefused
	}
	return ""
}

// loggedOut reports whether the homeserver takes the device's token no more.
func loggedOut(err error) bool {
	return errors.Is(err, mautrix.MUnknownToken) || errors.Is(err, mautrix.MUserDeactivated) ||
		errors.Is(err, mautrix.ErrFailedToRefreshToken) && finalLogin(err) != ""
}

// endAccount journals the end of the account, once, and returns it. Without a token nobody can be told: the server hears
// of it from the device if the account comes back, and finds by itself that a user's device is gone when it triggers it.
func (a *Account) endAccount(ctx context.Context, reason string, cause error) error {
	err := a.store.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		before, err := a.store.get(ctx, "ended")
		if err != nil || before == reason {
			return err
		}
		if err := a.store.set(ctx, "ended", reason); err != nil {
			return err
		}
		return a.did(ctx, protocol.Act{Kind: protocol.ActAccountEnded, Reason: reason})
	})
	return errors.Join(&ended{reason, cause}, err)
}

// explainEnd says what to do about the end of an account.
func explainEnd(reason string) string {
	if reason == endDeactivated {
		return "the user is deactivated: remove the account file; if he comes back, save the file again, or restart the fleet"
	}
	return "the homeserver refuses the login: mend it in the account file, or log in again with keyherald-device login; " +
		"the account is looked at again when its file is saved, or the fleet restarts"
}
