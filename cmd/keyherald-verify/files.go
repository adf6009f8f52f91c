package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyherald/keyherald/verify"
)

const (
	maxKeyFile = 64 << 10
	// maxCheckpointFile and maxCheckpointFiles bound what is read of earlier checkpoints: a copy of each checkpoint of a
	// log that signs one a second makes this in a few days. Each costs a signature to verify.
	maxCheckpointFile  = 64 << 20
	maxCheckpointFiles = 200_000
)

func readKeys(path string) ([]verify.Key, error) {
	raw, err := readFile(path, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading --key: %w", err)
	}
	keys, err := verify.ParseKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("reading --key %s: %w", path, err)
	}
	return keys, nil
}

// readCheckpoints reads files with signed notes, and all files below directories.
func readCheckpoints(paths []string) ([]verify.Note, error) {
	var files []string
	for _, path := range paths {
		below, err := filesBelow(path)
		if err != nil {
			return nil, fmt.Errorf("reading --checkpoint: %w", err)
		}
		if files = append(files, below...); len(files) > maxCheckpointFiles {
			return nil, fmt.Errorf("reading --checkpoint: there are more than %d files: give the newest ones", maxCheckpointFiles)
		}
	}
	var notes []verify.Note
	for _, path := range files {
		raw, err := readFile(path, maxCheckpointFile)
		if err != nil {
			return nil, fmt.Errorf("reading --checkpoint: %w", err)
		}
		notes = append(notes, verify.SplitNotes(path, raw)...)
	}
	if len(paths) > 0 && len(notes) == 0 {
		return nil, errors.New("reading --checkpoint: there is no signed note in it")
	}
	return notes, nil
}

func filesBelow(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var files []string
	err = fs.WalkDir(os.DirFS(path), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			files = append(files, filepath.Join(path, filepath.FromSlash(name)))
		}
		return err
	})
	return files, err
}

func readFile(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	raw, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, most)
	}
	return raw, nil
}
