// Package setecsecret reads keys from a setec server, for the managed device. setec has no metadata per version, so
// the companion secret `<path>.metadata` holds it: a JSON object {"public_key.<version>": "<unpadded base64>"}, which
// is no secret and is written before the version.
package setecsecret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/types/api"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the server.
type Config struct {
	URL string `yaml:"url"`
}

// Client implements secret.Reader.
type Client struct{ setec setec.Client }

// New checks the configuration.
func New(config Config) (*Client, error) {
	if config.URL == "" {
		return nil, errors.New("setec: url is missing")
	}
	httpClient := &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("setec does not redirect") },
	}
	return &Client{setec.Client{Server: config.URL, DoHTTP: httpClient.Do}}, nil
}

// Current implements secret.Reader.
func (c *Client) Current(ctx context.Context, path string) (string, error) {
	info, err := c.setec.Info(ctx, path)
	if err != nil {
		return "", translate("asking for "+path, err)
	}
	return strconv.FormatUint(uint64(info.ActiveVersion), 10), nil
}

// Versions implements secret.Reader.
func (c *Client) Versions(ctx context.Context, path string) ([]string, error) {
	info, err := c.setec.Info(ctx, path)
	if err != nil {
		return nil, translate("asking for "+path, err)
	}
	slices.Sort(info.Versions)
	versions := make([]string, len(info.Versions))
	for i, v := range info.Versions {
		versions[i] = strconv.FormatUint(uint64(v), 10)
	}
	return versions, nil
}

// Fetch implements secret.Reader.
func (c *Client) Fetch(ctx context.Context, path, version string) (secret.Value, error) {
	number, err := strconv.ParseUint(version, 10, 32)
	if err != nil {
		return secret.Value{}, fmt.Errorf("setec versions are numbers, not %q: %w", version, kms.ErrNotFound)
	}
	got, err := c.setec.GetVersion(ctx, path, api.SecretVersion(number))
	if err != nil {
		return secret.Value{}, translate("fetching "+path, err)
	}
	value := secret.Value{Version: version}
	if value.Key, err = backupkey.Parse(string(got.Value)); err != nil {
		return secret.Value{}, fmt.Errorf("fetching %s, version %s: %w", path, version, err)
	}
	metadata, err := c.setec.Get(ctx, path+".metadata")
	if errors.Is(err, api.ErrNotFound) {
		return value, nil
	} else if err != nil {
		return secret.Value{}, translate("reading the metadata of "+path, err)
	}
	var fields map[string]string
	if err := json.Unmarshal(metadata.Value, &fields); err != nil {
		return secret.Value{}, fmt.Errorf("reading the metadata of %s: %w", path, kms.ErrMalformed)
	}
	value.PublicKey = fields["public_key."+version]
	return value, nil
}

func translate(doing string, err error) error {
	switch {
	case errors.Is(err, api.ErrNotFound):
		return fmt.Errorf("%s: %w", doing, kms.ErrNotFound)
	case errors.Is(err, api.ErrAccessDenied):
		return fmt.Errorf("%s: %w", doing, kms.ErrForbidden)
	default:
		return fmt.Errorf("%s: %w: %w", doing, kms.ErrUnavailable, err)
	}
}
