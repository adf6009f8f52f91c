package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/keyherald/keyherald/postgres"
)

// answersKept is how long a write may be made again with its idempotency key.
const answersKept = 24 * time.Hour

const keyHeader = "Idempotency-Key"

// answered does what the route does. A write with an idempotency key (draft-ietf-httpapi-idempotency-key-header) commits
// its answer with its effect, so that the same request again gets the same answer and has no other effect, whatever was
// lost in between. Another request with the same key is refused. What was refused is not kept: it had no effect, and may be
// tried again with the same key. Of an answer with a secret it is kept alone that it was given.
func (c *call) answered() (answer, error) {
	key := c.echo.Request().Header.Get(keyHeader)
	if key == "" || !c.route.Write() {
		return c.route.do(c)
	}
	if len(key) > 255 || strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return answer{}, malformed(keyHeader + " must be 1 to 255 visible ASCII characters, such as a UUID")
	}
	request := c.fingerprint()
	outer := c.ctx
	defer func() { c.ctx = outer }()
	var a answer
	var refused error
	err := c.deps.DB.Txn(outer, func(ctx context.Context) error {
		now := c.deps.Now()
		before, first, err := c.deps.DB.ClaimAnswer(ctx, c.caller.key, key, request, now, now.Add(-answersKept))
		if err != nil {
			return err
		}
		if !first {
			a, refused = again(before, request)
			return nil
		}
		c.ctx = postgres.KeepRefusals(ctx)
		if a, err = c.route.do(c); err != nil {
			if !isRefusal(err) {
				return err
			}
			// The event of the refusal commits; the key is free again.
			refused = err
			return c.deps.DB.DropAnswer(ctx, c.caller.key, key)
		}
		kept := postgres.Answer{Status: a.status}
		if !c.route.Secret {
			if kept.Body, err = json.Marshal(a.body); err != nil {
				return fmt.Errorf("keeping an answer: %w", err)
			}
		}
		return c.deps.DB.KeepAnswer(ctx, c.caller.key, key, kept)
	})
	if err == nil {
		err = refused
	}
	return a, err
}

// fingerprint is of what makes a request the same one: its route, address and body.
func (c *call) fingerprint() [32]byte {
	sum := sha256.New()
	for _, part := range [][]byte{[]byte(c.route.Operation), []byte(c.echo.Request().URL.RequestURI()), c.body} {
		_, _ = fmt.Fprintf(sum, "%d:", len(part))
		_, _ = sum.Write(part)
	}
	return [32]byte(sum.Sum(nil))
}

// again is the answer to a request whose key was taken before.
func again(before postgres.Answer, request [32]byte) (answer, error) {
	switch {
	case before.Request != request:
		return answer{}, &Problem{Status: http.StatusUnprocessableEntity, Code: CodeKeyReused,
			Detail: "another request was made with this " + keyHeader + ": a new request needs a new key"}
	case before.Body == nil:
		return answer{}, &Problem{Status: http.StatusConflict, Code: CodeAnsweredBefore,
			Detail: "this was done with the first request of this " + keyHeader + "; its answer had a secret, which is shown once and not kept: make another, with a new key"}
	case before.Status == http.StatusNoContent:
		return answer{status: before.Status, header: replayed}, nil
	}
	return answer{status: before.Status, raw: before.Body, kind: "application/json", header: replayed}, nil
}

// replayed tells a client that the answer is the one of its first request.
var replayed = map[string]string{"Idempotency-Replayed": "true"}
