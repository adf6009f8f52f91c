// Package setecmeta reads metadata from a setec server. It stands on setec's wire types alone, not on its client,
// which can also get values.
package setecmeta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tailscale/setec/types/api"

	"github.com/keyherald/keyherald/kms"
)

// Config names the server.
type Config struct {
	URL string `yaml:"url"`
}

// Client implements kms.Metadata.
type Client struct {
	base string
	http *http.Client
}

// New checks the configuration.
func New(config Config) (*Client, error) {
	u, err := url.Parse(config.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("setec: url must be the server's address, such as https://setec.example.ts.net")
	}
	return &Client{base: strings.TrimRight(config.URL, "/"), http: &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("setec does not redirect") },
	}}, nil
}

// Current asks /api/info for the active version.
func (c *Client) Current(ctx context.Context, path string) (kms.Description, error) {
	resp, err := c.post(ctx, "/api/info", api.InfoRequest{Name: path})
	if err != nil {
		return kms.Description{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := statusError(resp.StatusCode, path); err != nil {
		return kms.Description{}, err
	}
	var info api.SecretInfo
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&info); err != nil || info.ActiveVersion == 0 {
		return kms.Description{}, fmt.Errorf("reading the metadata of %s: %w", path, kms.ErrMalformed)
	}
	return kms.Description{Path: path, Version: strconv.FormatUint(uint64(info.ActiveVersion), 10)}, nil
}

// CanReadSecret asks for the value and looks at the status alone: the body is closed unread.
func (c *Client) CanReadSecret(ctx context.Context, path string) (bool, error) {
	resp, err := c.post(ctx, "/api/get", api.GetRequest{Name: path})
	if err != nil {
		return false, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusForbidden {
		return false, nil
	}
	if err := statusError(resp.StatusCode, path); err != nil {
		return false, err
	}
	return true, nil
}

func (c *Client) post(ctx context.Context, endpoint string, body any) (*http.Response, error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding a setec request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+endpoint, bytes.NewReader(encoded))
	if err != nil {
		return nil, fmt.Errorf("making a setec request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	// setec refuses requests without it, against cross-site requests of browsers.
	req.Header.Set("Sec-X-Tailscale-No-Browsers", "setec")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking setec: %w: %w", kms.ErrUnavailable, err)
	}
	return resp, nil
}

func statusError(status int, path string) error {
	switch {
	case status == http.StatusOK:
		return nil
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		return fmt.Errorf("setec secret %s: %w", path, kms.ErrForbidden)
	case status == http.StatusNotFound:
		return fmt.Errorf("setec secret %s: %w", path, kms.ErrNotFound)
	case status >= 500:
		return fmt.Errorf("setec answered %d: %w", status, kms.ErrUnavailable)
	default:
		return fmt.Errorf("setec answered %d: %w", status, kms.ErrMalformed)
	}
}
