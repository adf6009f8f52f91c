// Package setecsecret reads and writes keys in a setec server, for the managed device. setec has no metadata per version, so
// the companion secret `<path>.metadata` holds it: a JSON object {"public_key.<version>": "<unpadded base64>"}, which
// is no secret and is written before the version.
package setecsecret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/types/api"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
	"github.com/keyherald/keyherald/kms/internal/numbered"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the server. CAFile is a PEM file with the only CAs to trust; empty means the system's.
type Config struct {
	URL    string `yaml:"url"`
	CAFile string `yaml:"ca_file,omitempty"`
}

// Client implements secret.Store. To read it needs setec's actions "info" and "get" on the path and "get" on its
// companion; to write also "create-version" on both, and "info" on the companion.
type Client struct{ setec setec.Client }

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
	} else if got == nil || got.Version == 0 {
		return secret.Value{}, fmt.Errorf("fetching %s: %w", path, kms.ErrMalformed)
	}
	value := secret.Value{Version: got.Version.String()}
	if value.Key, err = backupkey.Parse(string(got.Value)); err != nil {
		return secret.Value{}, fmt.Errorf("fetching %s, version %s: %w", path, value.Version, err)
	}
	fields, err := c.metadata(ctx, path)
	if err != nil {
		return secret.Value{}, err
	}
	value.PublicKey, _ = fields["public_key."+value.Version].(string)
	return value, nil
}

// metadata reads the companion secret; nil where there is none.
func (c *Client) metadata(ctx context.Context, path string) (map[string]any, error) {
	companion, err := c.setec.Get(ctx, path+".metadata")
	if errors.Is(err, api.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, translate("reading the metadata "+path+".metadata", err)
	}
	var fields map[string]any
	if companion == nil || json.Unmarshal(companion.Value, &fields) != nil {
		return nil, fmt.Errorf("reading the metadata %s.metadata, which must be a JSON object: %w", path, kms.ErrMalformed)
	}
	return fields, nil
}

// Create implements secret.Creator; it needs setec's actions "info" and "create-version" on the path.
func (c *Client) Create(ctx context.Context, path, value string) error {
	if _, err := c.info(ctx, path); err == nil {
		return fmt.Errorf("creating %s: %w", path, kms.ErrExists)
	} else if !errors.Is(err, kms.ErrNotFound) {
		return err
	}
	// Version 1 and no other: somebody who was faster is not written over.
	if err := c.setec.CreateVersion(ctx, path, 1, []byte(value)); errors.Is(err, api.ErrVersionClaimed) {
		return fmt.Errorf("creating %s: %w", path, kms.ErrExists)
	} else if err != nil {
		return translate("creating "+path, err)
	}
	return nil
}

// Write implements secret.Writer. What is compared is the number of the version: somebody who activates an older one
// meanwhile is not noticed.
func (c *Client) Write(ctx context.Context, path, after string, key backupkey.Key) (string, error) {
	return numbered.Write(ctx, writer{c}, path, after, key)
}

// writer implements numbered.Store.
type writer struct{ *Client }

func (w writer) State(ctx context.Context, path string) (current string, next uint64, err error) {
	info, err := w.state(ctx, path)
	if err != nil {
		return "", 0, err
	} else if info.ActiveVersion == 0 {
		return "", 1, nil
	}
	return info.ActiveVersion.String(), uint64(slices.Max(info.Versions)) + 1, nil
}

// state is Info, where what is not there is no error.
func (c *Client) state(ctx context.Context, name string) (*api.SecretInfo, error) {
	info, err := c.setec.Info(ctx, name)
	if errors.Is(err, api.ErrNotFound) {
		return &api.SecretInfo{}, nil
	} else if err != nil {
		return nil, translate("asking for "+name, err)
	} else if info == nil || info.ActiveVersion == 0 || len(info.Versions) == 0 {
		return nil, fmt.Errorf("asking for %s: %w", name, kms.ErrMalformed)
	}
	return info, nil
}

// Name writes a version of the companion, made from the one that was read: of two writers at once one begins again.
func (w writer) Name(ctx context.Context, path, version, publicKey string) error {
	const tries = 20
	for try := range tries {
		// Writers who met once must not meet again and again.
		select {
		case <-ctx.Done():
			return fmt.Errorf("writing the metadata %s.metadata: %w", path, ctx.Err())
		case <-time.After(rand.N(time.Duration(1+10*try) * time.Millisecond)):
		}
		info, err := w.state(ctx, path+".metadata")
		if err != nil {
			return err
		}
		next := api.SecretVersion(1)
		if len(info.Versions) > 0 {
			next = slices.Max(info.Versions) + 1
		}
		fields, err := w.metadata(ctx, path)
		if err != nil {
			return err
		}
		if fields == nil {
			fields = map[string]any{}
		}
		fields["public_key."+version] = publicKey
		encoded, err := json.Marshal(fields)
		if err != nil {
			return fmt.Errorf("encoding the metadata of %s: %w", path, err)
		}
		err = w.setec.CreateVersion(ctx, path+".metadata", next, encoded)
		if errors.Is(err, api.ErrVersionClaimed) {
			continue
		} else if err != nil {
			return translate("writing the metadata "+path+".metadata", err)
		}
		return nil
	}
	return fmt.Errorf("writing the metadata %s.metadata: others wrote it first, %d times: %w", path, tries, kms.ErrUnavailable)
}

func (w writer) Put(ctx context.Context, path, version string, key backupkey.Key) error {
	number, err := strconv.ParseUint(version, 10, 32)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := w.setec.CreateVersion(ctx, path, api.SecretVersion(number), []byte(key.RevealBase64())); err != nil {
		return translate("writing "+path+", version "+version, err)
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
	case errors.Is(err, api.ErrVersionClaimed):
		return fmt.Errorf("%s: %w", doing, kms.ErrConflict)
	case errors.Is(err, api.ErrAccessDenied):
		return fmt.Errorf("%s: %w", doing, kms.ErrForbidden)
	case errors.Is(err, kms.ErrUnavailable), errors.Is(err, kms.ErrForbidden), errors.Is(err, kms.ErrMalformed),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, kms.ErrMalformed)
}
