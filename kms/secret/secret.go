// Package secret reads key-backup keys from a key-management system, and writes those the device generates. It is the
// managed device's; the server's binary must not contain it.
package secret

import (
	"context"
	"fmt"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// Reader reads one user's key and its versions. Errors are package kms's and backupkey.ErrNotAKey.
type Reader interface {
	// Current names the current version.
	Current(ctx context.Context, path string) (string, error)
	// Versions names all versions that can still be read, oldest first.
	Versions(ctx context.Context, path string) ([]string, error)
	// Fetch reads a version, or the current one for "", and the public key the metadata names for it. The key is not
	// compared: call Value.Verify.
	Fetch(ctx context.Context, path, version string) (Value, error)
}

// Creator puts something that must be kept into the KMS: the recovery key of an identity the device made.
type Creator interface {
	// Create makes the first version of a path. One that has a version already is kms.ErrExists, and stays as it is.
	Create(ctx context.Context, path, value string) error
}

// Writer makes versions of a path's key: the device generates it, and the KMS keeps it.
type Writer interface {
	// Write makes a key the version that comes after the one the caller knows as current ("" where the path has none),
	// makes it current, and returns its name. Its public key goes into the metadata before the key. Where another version
	// is current by then, that is kms.ErrConflict, and the KMS holds what it held. A write whose answer was lost may be
	// repeated: where the current version is this very key, it is that write's.
	Write(ctx context.Context, path, after string, key backupkey.Key) (version string, err error)
}

// Store is all that a device asks of its KMS.
type Store interface {
	Reader
	Creator
	Writer
}

// Value is one version of a key. PublicKey is what the metadata says, base64; empty if it says nothing.
type Value struct {
	Version   string
	Key       backupkey.Key
	PublicKey string
}

// unfit is an error that may go away by itself: metadata may be written a moment after its version.
type unfit string

func (u unfit) Error() string { return string(u) }

// Retryable is what kms.Retryable asks.
func (u unfit) Retryable() bool { return true }

// The ways a value and its metadata do not fit. Both are retryable, as metadata may be written a moment late.
var (
	ErrNoMetadata error = unfit("the KMS's metadata names no public key for this version: write public_key.<version> before the version")
	ErrMismatch   error = unfit("the key derives another public key than the KMS's metadata names")
)

// Verify compares the key with the metadata.
func (v Value) Verify() error {
	if v.PublicKey == "" {
		return fmt.Errorf("version %s: %w", v.Version, ErrNoMetadata)
	}
	if !v.Key.Fits(v.PublicKey) {
		return fmt.Errorf("version %s: %w", v.Version, ErrMismatch)
	}
	return nil
}
