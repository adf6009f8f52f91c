// Package vaultsecret reads and writes keys in a KV v2 engine of Vault or OpenBao, for the managed device. A secret's
// data holds the key in one field. Public keys are in the secret's custom metadata, `public_key.<version>`: it belongs
// to the secret and not to a version, and is written first.
package vaultsecret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/numbered"
	"github.com/keyherald/keyherald/kms/internal/vault"
	"github.com/keyherald/keyherald/kms/secret"
)

// Config names the server and how to log in.
type Config = vault.Config

// Client implements secret.Store. To read it needs the capability "read" on <mount>/data/<path> and
// <mount>/metadata/<path>; to write also "create" and "update" on the data, and "create", "update" and "patch" on the
// metadata.
type Client struct{ session *vault.Session }

// Keep is where a secret id is kept that was unwrapped, for a program that starts again.
type Keep = vault.Keep

// New checks the configuration; nothing is sent yet. keep may be nil: a wrapped secret id then serves this process alone.
func New(config Config, keep Keep) (*Client, error) {
	session, err := vault.New(config, vault.Everything, keep)
	if err != nil {
		return nil, err
	}
	return &Client{session}, nil
}

// KeepAlive keeps the login alive until ctx ends.
func (c *Client) KeepAlive(ctx context.Context, failed func(error)) { c.session.KeepAlive(ctx, failed) }

// Current implements secret.Reader. A secret whose newest version is deleted has no current one.
func (c *Client) Current(ctx context.Context, path string) (string, error) {
	metadata, err := c.session.ReadMetadata(ctx, path)
	if err != nil {
		return "", err
	}
	current, err := metadata.Current()
	if err != nil {
		return "", fmt.Errorf("reading the Vault metadata of %s: %w", path, err)
	}
	return current, nil
}

// Versions implements secret.Reader.
func (c *Client) Versions(ctx context.Context, path string) ([]string, error) {
	metadata, err := c.session.ReadMetadata(ctx, path)
	if err != nil {
		return nil, err
	}
	return metadata.Versions(), nil
}

// Fetch implements secret.Reader.
func (c *Client) Fetch(ctx context.Context, path, version string) (secret.Value, error) {
	if err := kms.CheckPath(path); err != nil {
		return secret.Value{}, err
	}
	doing := "fetching " + path
	var query map[string][]string
	if version != "" {
		if number, err := strconv.ParseUint(version, 10, 32); err != nil || number == 0 || strconv.FormatUint(number, 10) != version {
			return secret.Value{}, fmt.Errorf("%s: Vault's versions are numbers from 1 on, not %q: %w", doing, version, kms.ErrNotFound)
		}
		doing += ", version " + version
		query = map[string][]string{"version": {version}}
	}
	body, err := c.session.Read(ctx, doing, c.session.Mount()+"/data/"+path, query)
	if err != nil {
		return secret.Value{}, err
	}
	value, err := parse(body, c.session.Field())
	if err == nil && version != "" && value.Version != version {
		err = fmt.Errorf("%w: it is of version %s", kms.ErrMalformed, value.Version)
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("%s: %w", doing, err)
	}
	return value, nil
}

// parse reads the answer to a read of data. An error never quotes it.
func parse(body []byte, field string) (secret.Value, error) {
	var answer struct {
		Data *struct {
			Data     map[string]any `json:"data"`
			Metadata struct {
				Version uint64            `json:"version"`
				Custom  map[string]string `json:"custom_metadata"`
			} `json:"metadata"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Data == nil || answer.Data.Metadata.Version == 0 {
		return secret.Value{}, fmt.Errorf("%w: it is no secret of a KV v2 engine", kms.ErrMalformed)
	}
	version := strconv.FormatUint(answer.Data.Metadata.Version, 10)
	text, ok := answer.Data.Data[field].(string)
	if !ok {
		return secret.Value{}, fmt.Errorf("version %s has no text in the field %q: %w", version, field, backupkey.ErrNotAKey)
	}
	key, err := backupkey.Parse(text)
	if err != nil {
		return secret.Value{}, fmt.Errorf("version %s, field %q: %w", version, field, err)
	}
	public := vault.Metadata{Custom: answer.Data.Metadata.Custom}.PublicKey(version)
	return secret.Value{Version: version, Key: key, PublicKey: public}, nil
}

// Create implements secret.Creator.
func (c *Client) Create(ctx context.Context, path, value string) error {
	if err := kms.CheckPath(path); err != nil {
		return err
	}
	err := c.put(ctx, "creating "+path, path, 0, value)
	exists := errors.Is(err, kms.ErrConflict)
	if errors.Is(err, kms.ErrForbidden) {
		// To write where something is takes the capability "update", which creating alone does not need.
		metadata, unread := c.session.ReadMetadata(ctx, path)
		exists = unread == nil && metadata.Newest > 0
	}
	if exists {
		return fmt.Errorf("creating %s: %w", path, kms.ErrExists)
	}
	return err
}

// Write implements secret.Writer.
func (c *Client) Write(ctx context.Context, path, after string, key backupkey.Key) (string, error) {
	return numbered.Write(ctx, writer{c}, path, after, key)
}

func (c *Client) put(ctx context.Context, doing, path string, after uint64, value string) error {
	answer, err := c.session.Write(ctx, doing, c.session.Mount()+"/data/"+path, map[string]any{
		"options": map[string]any{"cas": after}, "data": map[string]any{c.session.Field(): value}})
	if err == nil && fmt.Sprint(answer["version"]) != strconv.FormatUint(after+1, 10) {
		err = fmt.Errorf("%s: %w: it does not tell the version that was made", doing, kms.ErrMalformed)
	}
	return err
}

// writer implements numbered.Store.
type writer struct{ *Client }

func (w writer) State(ctx context.Context, path string) (current string, next uint64, err error) {
	metadata, err := w.session.ReadMetadata(ctx, path)
	if err != nil && !errors.Is(err, kms.ErrNotFound) {
		return "", 0, err
	}
	current, err = metadata.Current()
	if err != nil {
		current = ""
	}
	return current, metadata.Newest + 1, nil
}

// maxCustom is how many keys a secret's custom metadata may have.
const maxCustom = 64

func (w writer) Name(ctx context.Context, path, version, publicKey string) error {
	metadata, err := w.session.ReadMetadata(ctx, path)
	if err != nil && !errors.Is(err, kms.ErrNotFound) {
		return err
	}
	missing := errors.Is(err, kms.ErrNotFound)
	custom := map[string]any{vault.PublicKeyPrefix + version: publicKey}
	for _, spent := range makeRoom(metadata, version) {
		custom[vault.PublicKeyPrefix+spent] = nil
	}
	doing, endpoint, body := "writing the Vault metadata of "+path, w.session.Mount()+"/metadata/"+path, map[string]any{"custom_metadata": custom}
	if missing {
		_, err := w.session.Write(ctx, doing, endpoint, body)
		return err
	}
	return w.session.Patch(ctx, doing, endpoint, body)
}

// makeRoom names the versions whose public keys go when one more is written: those that cannot be read any more, and
// the oldest where there are too many.
func makeRoom(metadata vault.Metadata, version string) (spent []string) {
	newest, _ := strconv.ParseUint(version, 10, 64)
	var kept []uint64
	total := len(metadata.Custom) + 1
	for key := range metadata.Custom {
		name, ok := strings.CutPrefix(key, vault.PublicKeyPrefix)
		number, err := strconv.ParseUint(name, 10, 64)
		switch {
		case !ok || err != nil || number > newest:
		case number == newest:
			total--
		case !slices.Contains(metadata.Readable, number):
			spent = append(spent, name)
			total--
		default:
			kept = append(kept, number)
		}
	}
	slices.Sort(kept)
	for len(kept) > 0 && total > maxCustom {
		spent = append(spent, strconv.FormatUint(kept[0], 10))
		kept, total = kept[1:], total-1
	}
	return spent
}

func (w writer) Put(ctx context.Context, path, version string, key backupkey.Key) error {
	number, err := strconv.ParseUint(version, 10, 64)
	if err != nil || number == 0 {
		return fmt.Errorf("writing %s, version %q: %w", path, version, kms.ErrNotFound)
	}
	return w.put(ctx, "writing "+path+", version "+version, path, number-1, key.RevealBase64())
}
