// Package setecsecret reads keys from a setec server, for the managed device. setec has no metadata per version, so
// the companion secret `<path>.metadata` holds it: a JSON object {"public_key.<version>": "<unpadded base64>"}, which
// is no secret and is written before the version.
package setecsecret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/types/api"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the server. CAFile is a PEM file with the only CAs to trust; empty means the system's.
type Config struct {
	URL    string `yaml:"url"`
	CAFile string `yaml:"ca_file,omitempty"`
}

// Client implements secret.Reader. It needs setec's actions "info" and "get" on the path and "get" on its companion.
type Client struct{ setec setec.Client }

// New checks the configuration.
func New(config Config) (*Client, error) {
	base, err := bounded.BaseURL(config.URL)
	if err != nil {
		return nil, fmt.Errorf("setec: %w", err)
	}
	client, err := bounded.New(config.CAFile)
	if err != nil {
		return nil, fmt.Errorf("setec: %w", err)
	}
	return &Client{setec.Client{Server: base, DoHTTP: client.Do}}, nil
}

// Current implements secret.Reader.
func (c *Client) Current(ctx context.Context, path string) (string, error) {
	info, err := c.info(ctx, path)
	if err != nil {
		return "", err
	}
	return info.ActiveVersion.String(), nil
}

// Versions implements secret.Reader.
func (c *Client) Versions(ctx context.Context, path string) ([]string, error) {
	info, err := c.info(ctx, path)
	if err != nil {
		return nil, err
	}
	slices.Sort(info.Versions)
	versions := make([]string, len(info.Versions))
	for i, v := range info.Versions {
		versions[i] = v.String()
	}
	return versions, nil
}

// Fetch implements secret.Reader.
func (c *Client) Fetch(ctx context.Context, path, version string) (secret.Value, error) {
	if err := kms.CheckPath(path); err != nil {
		return secret.Value{}, err
	}
	number := uint64(api.SecretVersionDefault)
	if version != "" {
		var err error
		if number, err = strconv.ParseUint(version, 10, 32); err != nil || number == 0 {
			return secret.Value{}, fmt.Errorf("setec versions are numbers from 1 on, not %q: %w", version, kms.ErrNotFound)
		}
	}
	got, err := c.setec.GetVersion(ctx, path, api.SecretVersion(number))
	if err != nil {
		return secret.Value{}, translate("fetching "+path, err)
	}
	value := secret.Value{Version: got.Version.String()}
	if value.Key, err = backupkey.Parse(string(got.Value)); err != nil {
		return secret.Value{}, fmt.Errorf("fetching %s, version %s: %w", path, value.Version, err)
	}
	metadata, err := c.setec.Get(ctx, path+".metadata")
	if errors.Is(err, api.ErrNotFound) {
		return value, nil
	} else if err != nil {
		return secret.Value{}, translate("reading the metadata "+path+".metadata", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(metadata.Value, &fields); err != nil {
		return secret.Value{}, fmt.Errorf("reading the metadata %s.metadata, which must be a JSON object: %w", path, kms.ErrMalformed)
	}
	value.PublicKey, _ = fields["public_key."+value.Version].(string)
	return value, nil
}

// Create implements secret.Creator; it needs setec's actions "info" and "create-version" on the path.
func (c *Client) Create(ctx context.Context, path, value string) error {
	if _, err := c.info(ctx, path); err == nil {
		return fmt.Errorf("creating %s: %w", path, kms.ErrExists)
	} else if !errors.Is(err, kms.ErrNotFound) {
		return err
	}
	// Version 1 and no other: somebody who was faster is not written over.
	if err := c.setec.CreateVersion(ctx, path, 1, []byte(value)); err != nil {
		return translate("creating "+path, err)
	}
	return nil
}

func (c *Client) info(ctx context.Context, path string) (*api.SecretInfo, error) {
	if err := kms.CheckPath(path); err != nil {
		return nil, err
	}
	info, err := c.setec.Info(ctx, path)
	if err != nil {
		return nil, translate("asking for "+path, err)
	}
	if info == nil || info.ActiveVersion == 0 {
		return nil, fmt.Errorf("asking for %s: %w", path, kms.ErrMalformed)
	}
	return info, nil
}

// translate gives setec's errors their words. The others keep theirs only where they come from package bounded: what
// setec's client makes of an answer it cannot use may quote it.
func translate(doing string, err error) error {
	switch {
	case errors.Is(err, api.ErrNotFound):
		return fmt.Errorf("%s: %w", doing, kms.ErrNotFound)
	case errors.Is(err, api.ErrAccessDenied):
		return fmt.Errorf("%s: %w", doing, kms.ErrForbidden)
	case errors.Is(err, kms.ErrUnavailable), errors.Is(err, kms.ErrForbidden), errors.Is(err, kms.ErrMalformed),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, kms.ErrMalformed)
}
