// Package atomicfile writes files so that a crash leaves the old one or the new one, and never a part.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is a file that comes to its path with Commit. Until then it has a temporary name in the same directory, one of
// the writer's own, since others may write the same path.
type File struct {
	*os.File
	path string
	done bool
}

// Create begins a file.
func Create(path string, mode fs.FileMode) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &File{File: f, path: path}, nil
}

// Commit makes the file durable and gives it its path. Where something is there already it is replaced with overwrite,
// and fs.ErrExist without.
func (f *File) Commit(overwrite bool) error {
	if f.done {
		return fmt.Errorf("%s was committed or aborted before", f.path)
	}
	err := errors.Join(f.Sync(), f.Close())
	switch {
	case err != nil:
	case overwrite:
		err = os.Rename(f.Name(), f.path)
	default:
		err = f.claim()
	}
	f.done = true
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(f.Name())))
	}
	return syncDirectory(filepath.Dir(f.path))
}

// claim gives the file its path where nothing is there. A link is refused where the name is taken, so there is no moment
// between a look and a rename; some shares have no links.
func (f *File) claim() error {
	err := os.Link(f.Name(), f.path)
	if err == nil {
		return os.Remove(f.Name())
	}
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if _, err := os.Lstat(f.path); err == nil {
		return &fs.PathError{Op: "create", Path: f.path, Err: fs.ErrExist}
	}
	return os.Rename(f.Name(), f.path)
}

// Abort forgets the file; after Commit it does nothing.
func (f *File) Abort() error {
	if f.done {
		return nil
	}
	f.done = true
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Replace writes a whole file.
func Replace(path string, content []byte, mode fs.FileMode) error {
	f, err := Create(path, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit(true)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
