// Package filemeta reads metadata from the directory KMS, which is for development only: `<dir>/<path>/current` names
// the current version and `<version>.pub` holds its public key. It never opens a key to read it.
package filemeta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/keyherald/keyherald/kms"
)

// Config names the directory.
type Config struct {
	Dir string `yaml:"dir"`
}

// Client implements kms.Metadata and kms.Lister, and is what package filesecret reads names and public keys with.
type Client struct{ root *os.Root }

var (
	_ kms.Metadata = (*Client)(nil)
	_ kms.Lister   = (*Client)(nil)
)

// New opens the directory; nothing outside of it can be reached through a path.
func New(config Config) (*Client, error) {
	if config.Dir == "" {
		return nil, errors.New("the development KMS: dir is missing")
	}
	root, err := os.OpenRoot(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the development KMS: %w", err)
	}
	return &Client{root}, nil
}

// Current implements kms.Metadata.
func (c *Client) Current(_ context.Context, secretPath string) (kms.Description, error) {
	version, err := c.read(secretPath, "current")
	if err != nil {
		return kms.Description{}, err
	}
	if err := checkVersion(version); err != nil {
		return kms.Description{}, fmt.Errorf("%s/current: %w", secretPath, err)
	}
	public, err := c.PublicKey(secretPath, version)
	if err != nil {
		return kms.Description{}, err
	}
	return kms.Description{Path: secretPath, Version: version, PublicKey: public}, nil
}

// PublicKey reads the public key of a version, unpadded base64; empty if none is there.
func (c *Client) PublicKey(secretPath, version string) (string, error) {
	if err := checkVersion(version); err != nil {
		return "", err
	}
	public, err := c.read(secretPath, version+".pub")
	if err != nil && !errors.Is(err, kms.ErrNotFound) {
		return "", err
	}
	return strings.TrimRight(public, "="), nil
}

// Versions implements kms.Lister: they are the numbers in the names of the keys, none of which is opened.
func (c *Client) Versions(_ context.Context, secretPath string) ([]string, error) {
	if err := kms.CheckPath(secretPath); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(c.root.FS(), secretPath)
	if err != nil {
		return nil, Error(secretPath, err)
	}
	var numbers []uint64
	for _, entry := range entries {
		if name, ok := strings.CutSuffix(entry.Name(), ".key"); ok {
			if n, err := strconv.ParseUint(name, 10, 64); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	versions := make([]string, len(numbers))
	for i, n := range numbers {
		versions[i] = strconv.FormatUint(n, 10)
	}
	return versions, nil
}

// CanReadSecret opens the current key and closes it unread.
func (c *Client) CanReadSecret(ctx context.Context, secretPath string) (bool, error) {
	current, err := c.Current(ctx, secretPath)
	if err != nil {
		return false, err
	}
	name := path.Join(secretPath, current.Version+".key")
	f, err := c.root.Open(name)
	if errors.Is(err, fs.ErrPermission) {
		return false, nil
	} else if err != nil {
		return false, Error(name, err)
	}
	return true, f.Close()
}

func (c *Client) read(secretPath, file string) (string, error) {
	if err := kms.CheckPath(secretPath); err != nil {
		return "", err
	}
	name := path.Join(secretPath, file)
	raw, err := c.root.ReadFile(name)
	if err != nil {
		return "", Error(name, err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// Error gives a failure to read a file of the directory package kms's word.
func Error(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("reading %s of the development KMS: %w", name, kms.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("reading %s of the development KMS: %w", name, kms.ErrForbidden)
	}
	return fmt.Errorf("reading the development KMS: %w: %w", kms.ErrUnavailable, err)
}

var versionPattern = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]*$`)

func checkVersion(version string) error {
	if !versionPattern.MatchString(version) {
		return fmt.Errorf("%q is no version (letters, digits, - and _): %w", version, kms.ErrMalformed)
	}
	return nil
}
