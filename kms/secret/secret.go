// Package secret reads key-backup keys from a key-management system. It is the managed device's; the server's binary
// must not contain it.
package secret

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// Reader reads one user's key and its versions. Errors are package kms's and backupkey.ErrNotAKey.
type Reader interface {
	// Current names the current version.
	Current(ctx context.Context, path string) (string, error)
	// Versions names all versions that can still be read, oldest first.
	Versions(ctx context.Context, path string) ([]string, error)
	// Fetch reads a version and the public key the metadata names for it.
	Fetch(ctx context.Context, path, version string) (Value, error)
}

// Value is one version of a key. PublicKey is what the metadata says, unpadded base64; empty if it says nothing.
type Value struct {
	Version   string
	Key       backupkey.Key
	PublicKey string
}

// The ways a value and its metadata do not fit.
var (
	ErrNoMetadata = errors.New("the KMS's metadata names no public key for this version: write public_key.<version> before the version")
	ErrMismatch   = errors.New("the key derives another public key than the KMS's metadata names")
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
