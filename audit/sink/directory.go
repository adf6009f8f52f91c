// Package sink is the places outside the database where the audit log's checkpoints go: a directory (local, or shared by
// all replicas) and an S3-compatible store, which can be read back; a file that grows, standard output, syslog and a
// webhook, which cannot.
//
// A checkpoint is public: it says how long the log is and what its root is, and nothing of what is in it.
package sink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/internal/atomicfile"
)

// Directory keeps the newest checkpoint as the file `latest`, and one a day for good under epoch and date. A replica
// that was paused may come late with an older one, so what is there is looked at first.
type Directory struct {
	name, path string
	keys       checkpoint.Keys
}

// NewDirectory makes the sink; the directory is made where it is missing.
func NewDirectory(name, path string, keys checkpoint.Keys) (*Directory, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of checkpoints: %w", err)
	}
	return &Directory{name, path, keys}, nil
}

// Name implements signer.Sink.
func (d *Directory) Name() string { return d.name }

const latest = "latest"

// Newest implements signer.Memory.
func (d *Directory) Newest(context.Context) (string, error) {
	raw, err := os.ReadFile(filepath.Join(d.path, latest))
	if errors.Is(err, fs.ErrNotExist) {
		// A share that is not mounted looks like an empty directory: the mark tells them apart.
		if _, err := os.Stat(filepath.Join(d.path, mark)); err == nil {
			return "", fmt.Errorf("%s is gone, though checkpoints were written here", filepath.Join(d.path, latest))
		}
		return "", nil
	}
	return string(raw), err
}

// mark is written before the first checkpoint.
const mark = "keyherald-checkpoints"

// Publish implements signer.Sink.
func (d *Directory) Publish(ctx context.Context, c checkpoint.Signed) error {
	present, err := d.Newest(ctx)
	if err != nil {
		return err
	}
	toWrite, err := files(d.keys, present, c)
	if err != nil {
		return err
	}
	for _, file := range toWrite {
		if err := atomicfile.Replace(filepath.Join(d.path, file.name), []byte(file.content), 0o644); err != nil {
			return fmt.Errorf("writing the checkpoint %s: %w", file.name, err)
		}
	}
	return nil
}

type file struct{ name, content string }

// files are what a checkpoint is written as, in this order, where a sink that can be read back has present; none where
// that is not older.
func files(keys checkpoint.Keys, present string, c checkpoint.Signed) ([]file, error) {
	if older, err := olderThan(keys, present, c); err != nil || !older {
		return nil, err
	}
	var all []file
	if present == "" {
		all = append(all, file{mark, keys.Name + "\n"})
	}
	return append(all, file{dailyName(c), c.Note}, file{latest, c.Note}), nil
}

// dailyName is where a day's last checkpoint is kept for good.
func dailyName(c checkpoint.Signed) string {
	return fmt.Sprintf("epoch-%d-%s", c.Epoch, c.At.UTC().Format("2006-01-02"))
}

// olderThan reports whether what a sink has is older than c. What is not a checkpoint of this log is an error: it must
// not be written over.
func olderThan(keys checkpoint.Keys, present string, c checkpoint.Signed) (bool, error) {
	if strings.TrimSpace(present) == "" {
		return true, nil
	}
	known, err := checkpoint.Open(keys.Name, present, keys.Verifiers)
	if err != nil {
		return false, err
	}
	return known.Compare(c.Checkpoint) < 0, nil
}
