// Package vaultmeta reads metadata from a KV v2 engine of Vault or OpenBao. The vendor's client under it can read values
// too: what is sent is limited to logins and metadata, and to the question what the token may do.
package vaultmeta

import (
	"context"
	"fmt"
	"slices"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/vault"
)

// Config names the server and how to log in. Field is not used here.
type Config = vault.Config

// Client implements kms.Metadata and kms.Lister. It needs the capability "read" on <mount>/metadata/<path>, and must not have it on
// <mount>/data/<path>.
type Client struct{ session *vault.Session }

var (
	_ kms.Metadata = (*Client)(nil)
	_ kms.Lister   = (*Client)(nil)
)

// New checks the configuration; nothing is sent yet.
func New(config Config) (*Client, error) {
	session, err := vault.New(config, vault.MetadataOnly, nil)
	if err != nil {
		return nil, err
	}
	return &Client{session}, nil
}

// Current implements kms.Metadata. A secret whose newest version is deleted has no current one.
func (c *Client) Current(ctx context.Context, path string) (kms.Description, error) {
	metadata, err := c.session.ReadMetadata(ctx, path)
	if err != nil {
		return kms.Description{}, err
	}
	current, err := metadata.Current()
	if err != nil {
		return kms.Description{}, fmt.Errorf("reading the Vault metadata of %s: %w", path, err)
	}
	return kms.Description{Path: path, Version: current, PublicKey: metadata.PublicKey(current)}, nil
}

// Versions implements kms.Lister: those that are neither deleted nor destroyed.
func (c *Client) Versions(ctx context.Context, path string) ([]string, error) {
	metadata, err := c.session.ReadMetadata(ctx, path)
	if err != nil {
		return nil, err
	}
	return metadata.Versions(), nil
}

// CanReadSecret asks Vault what the token may do with the data, and does not try it.
func (c *Client) CanReadSecret(ctx context.Context, path string) (bool, error) {
	if err := kms.CheckPath(path); err != nil {
		return false, err
	}
	capabilities, err := c.session.Capabilities(ctx, c.session.Mount()+"/data/"+path)
	return slices.Contains(capabilities, "read") || slices.Contains(capabilities, "root"), err
}

// KeepAlive keeps the login alive until ctx ends.
func (c *Client) KeepAlive(ctx context.Context, failed func(error)) { c.session.KeepAlive(ctx, failed) }
