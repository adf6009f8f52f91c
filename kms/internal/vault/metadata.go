package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyherald/keyherald/kms"
)

// Metadata is what the KV v2 engine says of a secret without its values (GET <mount>/metadata/<path>).
type Metadata struct {
	// Newest is the number of the newest version, which is the current one even if it is deleted; 0 for none.
	Newest uint64
	// Readable are the numbers of the versions that are neither deleted nor destroyed, oldest first.
	Readable []uint64
	// Custom is the secret's custom metadata.
	Custom map[string]string
}

// Current is the current version; ErrNotFound where there is none, or it is deleted.
func (m Metadata) Current() (string, error) {
	if !slices.Contains(m.Readable, m.Newest) {
		return "", kms.ErrNotFound
	}
	return strconv.FormatUint(m.Newest, 10), nil
}

// Versions are the names of those that can be read, oldest first.
func (m Metadata) Versions() []string {
	versions := make([]string, len(m.Readable))
	for i, number := range m.Readable {
		versions[i] = strconv.FormatUint(number, 10)
	}
	return versions
}

// PublicKey is what the custom metadata names for a version, without padding; empty for nothing.
func (m Metadata) PublicKey(version string) string {
	return strings.TrimRight(m.Custom[PublicKeyPrefix+version], "=")
}

// PublicKeyPrefix and a version's number are the custom metadata's key for its public key.
const PublicKeyPrefix = "public_key."

// ReadMetadata asks for a secret's metadata.
func (s *Session) ReadMetadata(ctx context.Context, path string) (Metadata, error) {
	if err := kms.CheckPath(path); err != nil {
		return Metadata{}, err
	}
	doing := "reading the Vault metadata of " + path
	body, err := s.Read(ctx, doing, s.Mount()+"/metadata/"+path, nil)
	if err != nil {
		return Metadata{}, err
	}
	metadata, err := parseMetadata(body, s.now())
	if err != nil {
		return Metadata{}, fmt.Errorf("%s: %w", doing, err)
	}
	return metadata, nil
}

// parseMetadata reads the answer to a read of metadata. A version with a deletion time is deleted from then on.
func parseMetadata(body []byte, now time.Time) (Metadata, error) {
	var answer struct {
		Data *struct {
			CurrentVersion uint64             `json:"current_version"`
			Custom         map[string]string  `json:"custom_metadata"`
			Versions       map[string]version `json:"versions"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Data == nil {
		return Metadata{}, fmt.Errorf("%w: it is no metadata of a secret", kms.ErrMalformed)
	}
	m := Metadata{Newest: answer.Data.CurrentVersion, Custom: answer.Data.Custom}
	for name, v := range answer.Data.Versions {
		number, err := strconv.ParseUint(name, 10, 64)
		if err != nil || number == 0 || number > m.Newest || strconv.FormatUint(number, 10) != name {
			return Metadata{}, fmt.Errorf("%w: it has a version that is no number up to %d", kms.ErrMalformed, m.Newest)
		}
		readable, err := v.readable(now)
		if err != nil {
			return Metadata{}, err
		}
		if readable {
			m.Readable = append(m.Readable, number)
		}
	}
	slices.Sort(m.Readable)
	return m, nil
}

// version is what is told of one version.
type version struct {
	DeletionTime string `json:"deletion_time"`
	Destroyed    bool   `json:"destroyed"`
}

func (v version) readable(now time.Time) (bool, error) {
	if v.Destroyed || v.DeletionTime == "" {
		return !v.Destroyed, nil
	}
	deleted, err := time.Parse(time.RFC3339Nano, v.DeletionTime)
	if err != nil {
		return false, fmt.Errorf("%w: a version's deletion_time is no time", kms.ErrMalformed)
	}
	return now.Before(deleted), nil
}
