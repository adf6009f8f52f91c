// Package filesecret reads keys from the directory KMS, which is for development only: `<dir>/<path>/<version>.key`
// beside the metadata that package filemeta describes.
package filesecret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/filemeta"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the directory.
type Config struct {
	Dir string `yaml:"dir"`
}

// Client implements secret.Reader.
type Client struct {
	root     *os.Root
	metadata *filemeta.Client
}

// New opens the directory; nothing outside of it can be reached through a path.
func New(config Config) (*Client, error) {
	metadata, err := filemeta.New(filemeta.Config(config))
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the development KMS: %w", err)
	}
	return &Client{root, metadata}, nil
}

// Current implements secret.Reader.
func (c *Client) Current(ctx context.Context, secretPath string) (string, error) {
	current, err := c.metadata.Current(ctx, secretPath)
	return current.Version, err
}

// Versions implements secret.Reader; versions are numbers.
func (c *Client) Versions(ctx context.Context, secretPath string) ([]string, error) {
	return c.metadata.Versions(ctx, secretPath)
}

// Fetch implements secret.Reader.
func (c *Client) Fetch(ctx context.Context, secretPath, version string) (secret.Value, error) {
	if version == "" {
		current, err := c.metadata.Current(ctx, secretPath)
		if err != nil {
			return secret.Value{}, err
		}
		version = current.Version
	}
	// It also refuses a version that is no name of a file.
	public, err := c.metadata.PublicKey(secretPath, version)
	if err != nil {
		return secret.Value{}, err
	}
	text, err := c.read(path.Join(secretPath, version+".key"))
	if err != nil {
		return secret.Value{}, err
	}
	key, err := backupkey.Parse(text)
	if err != nil {
		return secret.Value{}, fmt.Errorf("fetching %s, version %s: %w", secretPath, version, err)
	}
	return secret.Value{Version: version, Key: key, PublicKey: public}, nil
}

// Create implements secret.Creator.
func (c *Client) Create(_ context.Context, secretPath, value string) error {
	if err := kms.CheckPath(secretPath); err != nil {
		return err
	}
	if err := c.root.MkdirAll(secretPath, 0o700); err != nil {
		return filemeta.Error(secretPath, err)
	}
	for _, file := range []struct{ name, content string }{{"1.key", value}, {"current", "1"}} {
		f, err := c.root.OpenFile(path.Join(secretPath, file.name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("creating %s: %w", secretPath, kms.ErrExists)
		} else if err != nil {
			return filemeta.Error(secretPath, err)
		}
		_, err = f.WriteString(file.content)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return filemeta.Error(secretPath, err)
		}
	}
	return nil
}

// read reads a file that nobody else may read.
func (c *Client) read(name string) (string, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return "", filemeta.Error(name, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", filemeta.Error(name, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s of the development KMS can be read by others, make it chmod 0600: %w", name, kms.ErrForbidden)
	}
	raw, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", filemeta.Error(name, err)
	}
	return string(raw), nil
}
