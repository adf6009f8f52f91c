// Package kms is what Keyherald asks of a key-management system, with metadata and secrets apart: the server's binary
// imports metadata clients alone, and the packages that read a secret (kms/secret, kms/*secret) are the device's.
//
// A KMS's convention for public keys: the public key of version N stands in the metadata as `public_key.N`, unpadded
// base64, written before the version itself, so that a device can check what it fetches.
package kms

import (
	"context"
	"errors"
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

// The errors of every client; only ErrUnavailable is worth trying again.
var (
	ErrNotFound    = errors.New("the KMS has no such secret or version")
	ErrForbidden   = errors.New("the KMS refuses these credentials")
	ErrUnavailable = errors.New("the KMS is not available")
	ErrMalformed   = errors.New("the KMS's answer is malformed")
)

// NewerVersion reports whether a is newer than b; versions that are not both decimal name no order.
func NewerVersion(a, b string) (newer, ordered bool) {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	if errX != nil || errY != nil {
		return false, false
	}
	return x > y, true
}
