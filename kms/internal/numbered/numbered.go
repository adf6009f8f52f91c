// Package numbered is secret.Writer for systems that number versions and keep public keys beside them, where nothing
// writes both at once. Metadata comes first, so of two writers of one number the slower may name its public key for the
// faster one's version: each of them looks after the write what is there, and puts the metadata right.
package numbered

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
)

// Store is what Write asks of a system.
type Store interface {
	secret.Reader
	// State is the current version, "" for none, and the number that the next one gets, both of one moment.
	State(ctx context.Context, path string) (current string, next uint64, err error)
	// Name writes the public key of a version, which may not be there yet, into the metadata.
	Name(ctx context.Context, path, version, publicKey string) error
	// Put makes this version and no other, and makes it current. Where the number is taken that is kms.ErrConflict.
	Put(ctx context.Context, path, version string, key backupkey.Key) error
}

// Write implements secret.Writer.
func Write(ctx context.Context, s Store, path, after string, key backupkey.Key) (string, error) {
	if err := kms.CheckPath(path); err != nil {
		return "", err
	}
	const tries = 10
	for spent := range uint64(tries) {
		current, next, err := s.State(ctx, path)
		if err != nil {
			return "", err
		}
		if current != after {
			return compare(ctx, s, path, current, key)
		}
		version := strconv.FormatUint(next+spent, 10)
		if err := s.Name(ctx, path, version, key.PublicKey()); err != nil {
			return "", err
		}
		refused := s.Put(ctx, path, version, key)
		if refused != nil && !errors.Is(refused, kms.ErrConflict) {
			return "", refused
		}
		held, err := s.Fetch(ctx, path, version)
		if errors.Is(err, kms.ErrNotFound) && refused != nil {
			continue // a version that was deleted keeps its number
		} else if err != nil {
			return "", err
		}
		if held.Verify() != nil {
			if err := s.Name(ctx, path, version, held.Key.PublicKey()); err != nil {
				return "", err
			}
		}
		return ours(path, held, key)
	}
	return "", fmt.Errorf("writing %s, where %d numbers in a row are spent: %w", path, tries, kms.ErrConflict)
}

// compare is for a path whose current version is another one than the writer knows: it may be his own.
func compare(ctx context.Context, s Store, path, current string, key backupkey.Key) (string, error) {
	if current == "" {
		return "", fmt.Errorf("writing %s, which has no version by now: %w", path, kms.ErrConflict)
	}
	held, err := s.Fetch(ctx, path, current)
	if err != nil {
		return "", err
	}
	return ours(path, held, key)
}

func ours(path string, held secret.Value, key backupkey.Key) (string, error) {
	if !held.Key.Fits(key.PublicKey()) {
		return "", fmt.Errorf("writing %s, which has version %s: %w", path, held.Version, kms.ErrConflict)
	}
	return held.Version, nil
}
