package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
	"github.com/openbao/openbao/api/v2"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
)

// maxEvent is how long one event may be. Vault's have less than a kilobyte.
const maxEvent = 64 << 10

// Subscribe opens the stream of one type of events (sys/events/subscribe/<type>, of Vault Enterprise). Who reads it closes
// it.
func (s *Session) Subscribe(ctx context.Context, eventType string) (*websocket.Conn, error) {
	stream, err := bounded.NewStream(bounded.Options{CAFile: s.config.CAFile, CertFile: s.config.Auth.CertFile, KeyFile: s.config.Auth.KeyFile})
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	address, err := url.Parse(s.base + "/v1/sys/events/subscribe/" + eventType)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	address.RawQuery = "json=true"
	var conn *websocket.Conn
	err = s.do(ctx, "subscribing to Vault's events", func(client *api.Client) error {
		header := http.Header{api.AuthHeaderName: {client.Token()}, api.RequestHeaderName: {"true"}}
		if s.config.Namespace != "" {
			header.Set(api.NamespaceHeaderName, s.config.Namespace)
		}
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		opened, answer, err := websocket.Dial(limited, address.String(), &websocket.DialOptions{HTTPClient: stream, HTTPHeader: header}) //nolint:bodyclose // the library says that it does
		if err == nil {
			conn = opened
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case answer == nil:
			return fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
		case answer.StatusCode < http.StatusBadRequest:
			// The library's text quotes what was answered.
			return fmt.Errorf("%w: it answered %d, and opens no WebSocket", kms.ErrMalformed, answer.StatusCode)
		}
		return &api.ResponseError{StatusCode: answer.StatusCode}
	})
	if errors.Is(err, kms.ErrNotFound) {
		return nil, fmt.Errorf("%w: only Vault Enterprise has events", err)
	} else if err != nil {
		return nil, err
	}
	conn.SetReadLimit(maxEvent)
	return conn, nil
}
