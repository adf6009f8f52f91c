package device

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"maunium.net/go/mautrix"
)

// renewBefore is how long before its end an access token is renewed.
const renewBefore = 10 * time.Second

// renewing puts a valid access token into an account's requests, and renews it when it is about to end. The account's
// client, which many use at once, knows no refresh token: what mautrix v0.31.0 reads of it before a request it does not
// guard from a renewal.
type renewing struct {
	account *Account
	next    http.RoundTripper

	mu   sync.Mutex // guards kept, and lets one renew at a time
	kept credentials
}

// RoundTrip is http.RoundTripper. A token may end, or be replaced, while a request with it is under way: then the request
// is made once more, with its body, which therefore is kept until the answer is there.
func (r *renewing) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Authorization") == "" {
		return r.next.RoundTrip(req)
	}
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		if err := errors.Join(err, req.Body.Close()); err != nil {
			return nil, err
		}
	}
	token, err := r.token(req.Context(), "")
	if err != nil {
		return nil, err
	}
	resp, err := r.next.RoundTrip(with(req, token, body))
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !unknownToken(resp) {
		return resp, err
	}
	fresh, err := r.token(req.Context(), token)
	if err != nil {
		// The answer stands: what the homeserver says of the token is for the caller, who finds out whether it is for good.
		return resp, nil
	}
	_ = resp.Body.Close()
	return r.next.RoundTrip(with(req, fresh, body))
}

// maxRefusal bounds what is read of a refusal.
const maxRefusal = 64 << 10

// unknownToken tells a token that is refused from a request that wants more than a token (user-interactive
// authentication), and leaves the answer to be read again.
func unknownToken(resp *http.Response) bool {
	read, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(read), resp.Body), resp.Body}
	var refusal mautrix.RespError
	return err == nil && json.Unmarshal(read, &refusal) == nil && errors.Is(refusal, mautrix.MUnknownToken)
}

// with is a request with a token; a RoundTripper must leave the one that it was given as it is.
func with(req *http.Request, token string, body []byte) *http.Request {
	own := req.Clone(req.Context())
	own.Header.Set("Authorization", "Bearer "+token)
	if req.Body != nil {
		own.Body, own.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	return own
}

// token is one that is valid for a while. refused is one that the homeserver did not take, or empty: it is renewed whatever
// its end was said to be, unless somebody else did.
func (r *renewing) token(ctx context.Context, refused string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	valid := r.kept.Expiry.IsZero() || time.Until(r.kept.Expiry) >= renewBefore
	if valid && refused != r.kept.AccessToken {
		return r.kept.AccessToken, nil
	}
	fresh, err := r.account.renewed(ctx, r.kept)
	if err != nil {
		return "", fmt.Errorf("%w: %w", mautrix.ErrFailedToRefreshToken, err)
	}
	r.kept = fresh
	return fresh.AccessToken, nil
}
