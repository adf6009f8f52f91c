package sink

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// Webhook posts each checkpoint, the signed note as text/plain. Any 2xx is a yes; redirects are not followed.
type Webhook struct {
	name, url, authorization string
	client                   *http.Client
}

// NewWebhook makes the sink; authorization is the value of the header of that name, or empty.
func NewWebhook(name, url, authorization string) *Webhook {
	return &Webhook{name, url, authorization, &http.Client{Timeout: 10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// Name implements signer.Sink.
func (w *Webhook) Name() string { return w.name }

// Publish implements signer.Sink.
func (w *Webhook) Publish(ctx context.Context, c checkpoint.Signed) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(c.Note))
	if err != nil {
		return fmt.Errorf("making a request for a checkpoint: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	if w.authorization != "" {
		req.Header.Set("Authorization", w.authorization)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("posting a checkpoint: %w", err)
	}
	if err := resp.Body.Close(); err != nil {
		return fmt.Errorf("posting a checkpoint: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("posting a checkpoint: it was answered %s", resp.Status)
	}
	return nil
}
