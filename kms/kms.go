// Package kms is what Keyherald asks of a key-management system, with metadata and secrets apart: the server's binary
// imports metadata clients alone, and the packages that read a secret (kms/secret, kms/*secret) are the device's.
//
// A KMS's convention for public keys: the public key of version N stands in the metadata as `public_key.N`, unpadded
// base64, written before the version itself, so that a device can check what it fetches.
package kms

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
)

// Description is a secret's current version. PublicKey is empty where the credentials may not see it.
type Description struct {
	Path      string
	Version   string
	PublicKey string
}

// Metadata reads what is known about a secret without its value. CanReadSecret is for the preflight alone: it tells
// whether these credentials could read the value, and never returns or keeps it.
type Metadata interface {
	Current(ctx context.Context, path string) (Description, error)
	CanReadSecret(ctx context.Context, path string) (bool, error)
}

// Lister is what a Metadata client is too where the system lists a secret's versions without their values.
type Lister interface {
	// Versions lists the names of all versions that are there, oldest first.
	Versions(ctx context.Context, path string) ([]string, error)
}

// The errors of every client. Ask Retryable, not them, whether to try again.
var (
	ErrNotFound    = errors.New("the KMS has no such secret or version")
	ErrExists      = errors.New("the KMS has a value there already, which is not written over")
	ErrConflict    = errors.New("another version is the current one in the KMS by now")
	ErrForbidden   = errors.New("the KMS refuses these credentials")
	ErrUnavailable = errors.New("the KMS is not available")
	ErrMalformed   = errors.New("the KMS's answer is malformed")
	ErrBadPath     = errors.New("not a path of a secret: write names separated by single slashes, such as keyherald/alice, with no leading slash and no . or .. in it")
)

// Retryable reports whether the same question may get another answer by itself: the KMS was not available, or an error
// in the chain says so with a method `Retryable() bool` (such as a key that is older than its metadata for a moment).
func Retryable(err error) bool {
	var says interface{ Retryable() bool }
	return errors.Is(err, ErrUnavailable) || (errors.As(err, &says) && says.Retryable())
}

// CheckPath refuses a path that is absolute, empty, or leads upwards: ErrBadPath.
func CheckPath(path string) error {
	if path == "." || !fs.ValidPath(path) {
		return fmt.Errorf("%q is %w", path, ErrBadPath)
	}
	return nil
}

// NewerVersion reports whether a is newer than b; versions that are not both decimal name no order.
func NewerVersion(a, b string) (newer, ordered bool) {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	if errX != nil || errY != nil {
		return false, false
	}
	return x > y, true
}
