// Package filesecret reads and writes keys in the directory KMS, which is for development only:
// `<dir>/<path>/<version>.key` beside the metadata that package filemeta describes.
package filesecret

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"syscall"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/filemeta"
	"github.com/keyherald/keyherald/kms/internal/numbered"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the directory.
type Config struct {
	Dir string `yaml:"dir"`
}

// Client implements secret.Store.
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
	if err := c.make(path.Join(secretPath, "1.key"), value); err != nil {
		return fmt.Errorf("creating %s: %w", secretPath, err)
	}
	return c.replace(path.Join(secretPath, "current"), "1")
}

// Write implements secret.Writer. A lock keeps the writers of one directory apart, so that none makes an older version
// the current one.
func (c *Client) Write(ctx context.Context, secretPath, after string, key backupkey.Key) (string, error) {
	if err := kms.CheckPath(secretPath); err != nil {
		return "", err
	}
	if err := c.root.MkdirAll(secretPath, 0o700); err != nil {
		return "", filemeta.Error(secretPath, err)
	}
	lock, err := c.root.Open(secretPath)
	if err != nil {
		return "", filemeta.Error(secretPath, err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", filemeta.Error(secretPath, err)
	}
	return numbered.Write(ctx, writer{c}, secretPath, after, key)
}

// writer implements numbered.Store.
type writer struct{ *Client }

func (w writer) State(ctx context.Context, secretPath string) (current string, next uint64, err error) {
	current, err = w.Current(ctx, secretPath)
	if err != nil && !errors.Is(err, kms.ErrNotFound) {
		return "", 0, err
	}
	versions, err := w.Versions(ctx, secretPath)
	if err != nil || len(versions) == 0 {
		return current, 1, err
	}
	newest, err := strconv.ParseUint(versions[len(versions)-1], 10, 64)
	return current, newest + 1, err
}

func (w writer) Name(_ context.Context, secretPath, version, publicKey string) error {
	return w.replace(path.Join(secretPath, version+".pub"), publicKey)
}

func (w writer) Put(_ context.Context, secretPath, version string, key backupkey.Key) error {
	err := w.make(path.Join(secretPath, version+".key"), key.RevealBase64())
	if errors.Is(err, kms.ErrExists) {
		return fmt.Errorf("writing %s, version %s: %w", secretPath, version, kms.ErrConflict)
	} else if err != nil {
		return err
	}
	return w.replace(path.Join(secretPath, "current"), version)
}

// make writes a file that is not there yet, whole or not at all.
func (c *Client) make(name, content string) error {
	temporary, err := c.temporary(name, content)
	if err != nil {
		return err
	}
	err = c.root.Link(temporary, name)
	if errors.Is(err, fs.ErrExist) {
		err = kms.ErrExists
	} else if err != nil {
		err = filemeta.Error(name, err)
	}
	return errors.Join(err, c.root.Remove(temporary))
}

// replace writes a file whole or not at all.
func (c *Client) replace(name, content string) error {
	temporary, err := c.temporary(name, content)
	if err != nil {
		return err
	}
	if err := c.root.Rename(temporary, name); err != nil {
		return filemeta.Error(name, err)
	}
	return nil
}

func (c *Client) temporary(name, content string) (string, error) {
	temporary := name + "." + rand.Text()
	f, err := c.root.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", filemeta.Error(name, err)
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", filemeta.Error(name, err)
	}
	return temporary, nil
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
