// Package filesecret reads keys from the directory KMS, which is for development only: `<dir>/<path>/<version>.key`
// beside the metadata that package filemeta describes.
package filesecret

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the directory.
type Config struct {
	Dir string `yaml:"dir"`
}

// Client implements secret.Reader.
type Client struct{ root *os.Root }

// New opens the directory; nothing outside of it can be reached through a path.
func New(config Config) (*Client, error) {
	root, err := os.OpenRoot(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the development KMS: %w", err)
	}
	return &Client{root}, nil
}

// Current implements secret.Reader.
func (c *Client) Current(_ context.Context, path string) (string, error) {
	return c.read(filepath.Join(path, "current"))
}

// Versions implements secret.Reader; versions are numbers.
func (c *Client) Versions(_ context.Context, path string) ([]string, error) {
	entries, err := fs.ReadDir(c.root.FS(), path)
	if err != nil {
		return nil, translate(path, err)
	}
	var numbers []int
	for _, entry := range entries {
		if name, ok := strings.CutSuffix(entry.Name(), ".key"); ok {
			if n, err := strconv.Atoi(name); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	versions := make([]string, len(numbers))
	for i, n := range numbers {
		versions[i] = strconv.Itoa(n)
	}
	return versions, nil
}

// Fetch implements secret.Reader.
func (c *Client) Fetch(_ context.Context, path, version string) (secret.Value, error) {
	text, err := c.read(filepath.Join(path, version+".key"))
	if err != nil {
		return secret.Value{}, err
	}
	value := secret.Value{Version: version}
	if value.Key, err = backupkey.Parse(text); err != nil {
		return secret.Value{}, fmt.Errorf("fetching %s, version %s: %w", path, version, err)
	}
	if value.PublicKey, err = c.read(filepath.Join(path, version+".pub")); err != nil && !errors.Is(err, kms.ErrNotFound) {
		return secret.Value{}, err
	}
	return value, nil
}

func (c *Client) read(name string) (string, error) {
	raw, err := c.root.ReadFile(name)
	if err != nil {
		return "", translate(name, err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func translate(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", name, kms.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w", name, kms.ErrForbidden)
	default:
		return fmt.Errorf("reading the development KMS: %w", err)
	}
}
