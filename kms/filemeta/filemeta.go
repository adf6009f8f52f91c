// Package filemeta reads metadata from the directory KMS, which is for development only: `<dir>/<path>/current` names
// the current version and `<version>.pub` holds its public key. It never opens a key to read it.
package filemeta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyherald/keyherald/kms"
)

// Config names the directory.
type Config struct {
	Dir string `yaml:"dir"`
}

// Client implements kms.Metadata.
type Client struct{ root *os.Root }

// New opens the directory; nothing outside of it can be reached through a path.
func New(config Config) (*Client, error) {
	root, err := os.OpenRoot(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the development KMS: %w", err)
	}
	return &Client{root}, nil
}

// Current implements kms.Metadata.
func (c *Client) Current(_ context.Context, path string) (kms.Description, error) {
	version, err := c.read(filepath.Join(path, "current"))
	if err != nil {
		return kms.Description{}, err
	}
	public, err := c.read(filepath.Join(path, version+".pub"))
	if err != nil && !errors.Is(err, kms.ErrNotFound) {
		return kms.Description{}, err
	}
	return kms.Description{Path: path, Version: version, PublicKey: public}, nil
}

// CanReadSecret opens the current key and closes it unread.
func (c *Client) CanReadSecret(ctx context.Context, path string) (bool, error) {
	current, err := c.Current(ctx, path)
	if err != nil {
		return false, err
	}
	f, err := c.root.Open(filepath.Join(path, current.Version+".key"))
	if errors.Is(err, fs.ErrPermission) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("opening a key of the development KMS: %w", err)
	}
	return true, f.Close()
}

func (c *Client) read(name string) (string, error) {
	raw, err := c.root.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s: %w", name, kms.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("%s: %w", name, kms.ErrForbidden)
	case err != nil:
		return "", fmt.Errorf("reading the development KMS: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
