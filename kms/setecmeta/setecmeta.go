// Package setecmeta reads metadata from a setec server. It stands on setec's wire types alone, not on its client,
// which can also get values. setec has no metadata per version, and the companion secret that holds the public keys
// (see package setecsecret) is read by devices alone: Description.PublicKey is always empty here.
package setecmeta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/tailscale/setec/types/api"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
)

// Config names the server. CAFile is a PEM file with the only CAs to trust; empty means the system's.
type Config struct {
	URL    string `yaml:"url"`
	CAFile string `yaml:"ca_file,omitempty"`
}

// Client implements kms.Metadata and kms.Lister. It needs setec's action "info" on the paths, and must not have "get".
type Client struct {
	base string
	http *bounded.Client
}

var (
	_ kms.Metadata = (*Client)(nil)
	_ kms.Lister   = (*Client)(nil)
)

// New checks the configuration.
func New(config Config) (*Client, error) {
	base, err := bounded.BaseURL(config.URL)
	if err != nil {
		return nil, fmt.Errorf("setec: %w", err)
	}
	client, err := bounded.NewClient(bounded.Options{CAFile: config.CAFile})
	if err != nil {
		return nil, fmt.Errorf("setec: %w", err)
	}
	return &Client{base: base, http: client}, nil
}

// Current asks /api/info for the active version.
func (c *Client) Current(ctx context.Context, path string) (kms.Description, error) {
	info, err := c.info(ctx, path)
	if err != nil {
		return kms.Description{}, fmt.Errorf("reading the setec metadata of %s: %w", path, err)
	}
	return kms.Description{Path: path, Version: strconv.FormatUint(uint64(info.ActiveVersion), 10)}, nil
}

// Versions implements kms.Lister: /api/info lists them.
func (c *Client) Versions(ctx context.Context, path string) ([]string, error) {
	info, err := c.info(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("reading the setec metadata of %s: %w", path, err)
	}
	slices.Sort(info.Versions)
	versions := make([]string, len(info.Versions))
	for i, v := range info.Versions {
		versions[i] = strconv.FormatUint(uint64(v), 10)
	}
	return versions, nil
}

// CanReadSecret asks for the value only if it differs from the active version's, which it does not: a credential that
// may read is answered 304, one that may not 403, and the value stays where it is. Where the active version changes in
// between, the answer's body is closed unread.
func (c *Client) CanReadSecret(ctx context.Context, path string) (bool, error) {
	info, err := c.info(ctx, path)
	if errors.Is(err, kms.ErrNotFound) {
		// There is no value to be answered with, and setec decides about the right before it looks.
		info.ActiveVersion = 1
	} else if err != nil {
		return false, fmt.Errorf("reading the setec metadata of %s: %w", path, err)
	}
	resp, err := c.post(ctx, "/api/get", api.GetRequest{Name: path, Version: info.ActiveVersion, UpdateIfChanged: true})
	if err != nil {
		return false, fmt.Errorf("asking setec whether %s could be read: %w", path, err)
	}
	status := resp.StatusCode
	if err := resp.Body.Close(); err != nil {
		return false, fmt.Errorf("asking setec whether %s could be read: %w", path, err)
	}
	switch status {
	case http.StatusForbidden:
		return false, nil
	case http.StatusNotModified, http.StatusNotFound, http.StatusOK:
		return true, nil
	}
	return false, fmt.Errorf("asking setec whether %s could be read: it answered %d: %w", path, status, kms.ErrMalformed)
}

func (c *Client) info(ctx context.Context, path string) (api.SecretInfo, error) {
	if err := kms.CheckPath(path); err != nil {
		return api.SecretInfo{}, err
	}
	resp, err := c.post(ctx, "/api/info", api.InfoRequest{Name: path})
	if err != nil {
		return api.SecretInfo{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return api.SecretInfo{}, kms.ErrForbidden
	case http.StatusNotFound:
		return api.SecretInfo{}, kms.ErrNotFound
	default:
		return api.SecretInfo{}, fmt.Errorf("%w: it answered %d", kms.ErrMalformed, resp.StatusCode)
	}
	var info api.SecretInfo
	if err := json.NewDecoder(resp.Body).Decode(&info); errors.Is(err, kms.ErrUnavailable) {
		return api.SecretInfo{}, err
	} else if err != nil || info.ActiveVersion == 0 {
		return api.SecretInfo{}, fmt.Errorf("%w: it is no description of a secret", kms.ErrMalformed)
	}
	return info, nil
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
	return c.http.Do(req)
}
