package device

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"maunium.net/go/mautrix"
)

func TestALoginIsRefusedForGoodOnlyByAWordThatMeansIt(t *testing.T) {
	answer := func(code string, status int) error {
		return fmt.Errorf("logging in: %w", mautrix.HTTPError{RespError: &mautrix.RespError{ErrCode: code}, Response: &http.Response{StatusCode: status}})
	}
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"no error", nil, ""},
		{"the user is deactivated", answer("M_USER_DEACTIVATED", 403), endDeactivated},
		{"a wrong password", answer("M_FORBIDDEN", 403), endRefused},
		{"a login token that is used up", answer("M_UNKNOWN_TOKEN", 401), endRefused},
		{"a locked user, who may be unlocked", answer("M_USER_LOCKED", 401), ""},
		{"too many logins", answer("M_LIMIT_EXCEEDED", 429), ""},
		{"a homeserver in trouble", answer("M_UNKNOWN", 500), ""},
		{"nobody answers", mautrix.HTTPError{WrappedError: errors.New("connection refused")}, ""},
		{"a refresh token that is no good", fmt.Errorf("%w: %w", mautrix.ErrFailedToRefreshToken, mautrix.HTTPError{RespError: &mautrix.RespError{ErrCode: "invalid_grant", OAuth: true}}), endRefused},
		{"nobody there to authorize", errNobodyThere, endRefused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := finalLogin(test.err); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestATokenIsTakenAsRefusedOnlyByAWordThatMeansIt(t *testing.T) {
	token := mautrix.HTTPError{RespError: &mautrix.RespError{ErrCode: "M_UNKNOWN_TOKEN"}}
	refresh := fmt.Errorf("%w: %w", mautrix.ErrFailedToRefreshToken, mautrix.HTTPError{RespError: &mautrix.RespError{ErrCode: "invalid_grant", OAuth: true}})
	busy := fmt.Errorf("%w: %w", mautrix.ErrFailedToRefreshToken, errors.New("connection refused"))
	for err, want := range map[error]bool{token: true, refresh: true, busy: false, errors.New("connection refused"): false} {
		if got := loggedOut(err); got != want {
			t.Errorf("%v: got %t", err, got)
		}
	}
}
