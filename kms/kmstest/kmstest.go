// Package kmstest is what every pair of KMS clients, one for metadata and one for secrets, must do alike. It is for
// tests alone.
package kmstest

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/crypto/utils"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
)

// Traits are what systems differ in.
type Traits struct {
	// HasPublicKey says that the metadata client sees public keys.
	HasPublicKey bool
	// Unordered says that the names of versions tell no order; decimal ones do.
	Unordered bool
	// Absent is a version in the system's form that no secret has.
	Absent string
	// Local says that the system is this machine's own: there is no wire and are no accounts.
	Local bool
}

// KMS is one key-management system with clients of several rights on it.
type KMS struct {
	// Metadata may read metadata alone; Privileged may read secrets too, which the preflight must notice.
	Metadata   kms.Metadata
	Privileged kms.Metadata
	// Secrets may read and write, ReadOnly may only read.
	Secrets  secret.Store
	ReadOnly secret.Store
	// Stranger and StrangerSecrets are known to the system and have no rights; nil where Traits.Local.
	Stranger        kms.Metadata
	StrangerSecrets secret.Store
	// Put writes the metadata (public; none if empty) and then the value as the next version, makes it current, and
	// returns its name.
	Put func(t *testing.T, path, value, public string) (version string)
	// Traffic is what came over the wire to and from the clients so far, in clear; nil where Traits.Local.
	Traffic func() []byte
}

// Run runs the suite on a fresh KMS for each test.
func Run(t *testing.T, traits Traits, start func(t *testing.T) KMS) {
	t.Helper()
	t.Run("reading", func(t *testing.T) { reading(t, traits, start) })
	t.Run("writing", func(t *testing.T) { writing(t, traits, start) })
	if !traits.Local {
		t.Run("rights", func(t *testing.T) { rights(t, start) })
	}
}

const path = "keyherald/alice"

func reading(t *testing.T, traits Traits, start func(t *testing.T) KMS) {
	key, err := backupkey.Generate()
	if err != nil {
		t.Fatal(err)
	}
	other, err := backupkey.Generate()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("metadata and secret agree on the current version, which the newest is", func(t *testing.T) {
		k := start(t)
		first := k.Put(t, path, other.RevealBase64(), other.PublicKey())
		second := k.Put(t, path, key.RevealBase64(), key.PublicKey())
		if newer, ordered := kms.NewerVersion(second, first); ordered == traits.Unordered || newer == traits.Unordered {
			t.Fatalf("version %q after %q: newer=%v, ordered=%v", second, first, newer, ordered)
		}
		described, err := k.Metadata.Current(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		want := kms.Description{Path: path, Version: second}
		if traits.HasPublicKey {
			want.PublicKey = key.PublicKey()
		}
		if described != want {
			t.Fatalf("the metadata is %+v, not %+v", described, want)
		}
		if current, err := k.Secrets.Current(t.Context(), path); err != nil || current != second {
			t.Fatalf("the current version is %q (%v), not %q", current, err, second)
		}
		versions, err := k.Secrets.Versions(t.Context(), path)
		if err != nil || len(versions) != 2 || versions[0] != first || versions[1] != second {
			t.Fatalf("the versions are %v (%v), not %q and %q, oldest first", versions, err, first, second)
		}
		if lister, ok := k.Privileged.(kms.Lister); ok {
			listed, err := lister.Versions(t.Context(), path)
			if err != nil || !slices.Equal(listed, versions) {
				t.Fatalf("the metadata lists the versions %v (%v), and the secrets %v", listed, err, versions)
			}
		}
	})

	t.Run("the current version is fetched by no name, and an earlier one by its own", func(t *testing.T) {
		k := start(t)
		first := k.Put(t, path, other.RevealBase64(), other.PublicKey())
		second := k.Put(t, path, key.RevealBase64(), key.PublicKey())
		for _, c := range []struct {
			ask, version string
			key          backupkey.Key
		}{{"", second, key}, {second, second, key}, {first, first, other}} {
			value, err := k.Secrets.Fetch(t.Context(), path, c.ask)
			if err != nil {
				t.Fatal(err)
			}
			if value.Version != c.version || !value.Key.Fits(c.key.PublicKey()) {
				t.Fatalf("asked for %q, got version %q with public key %s", c.ask, value.Version, value.Key.PublicKey())
			}
			if err := value.Verify(); err != nil {
				t.Fatal(err)
			}
		}
	})

	raw := key.Reveal()
	for name, text := range map[string]string{
		"unpadded base64":                      base64.RawStdEncoding.EncodeToString(raw),
		"padded base64 with a line's end":      base64.StdEncoding.EncodeToString(raw) + "\n",
		"a Matrix recovery key":                utils.EncodeBase58RecoveryKey(raw),
		"a Matrix recovery key and line's end": utils.EncodeBase58RecoveryKey(raw) + "\n",
	} {
		t.Run("a key is read as "+name, func(t *testing.T) {
			k := start(t)
			k.Put(t, path, text, base64.StdEncoding.EncodeToString(mustPublic(t, key)))
			value, err := k.Secrets.Fetch(t.Context(), path, "")
			if err != nil {
				t.Fatal(err)
			}
			if err := value.Verify(); err != nil {
				t.Fatalf("the padded public key in the metadata is not the key's: %v", err)
			}
		})
	}

	t.Run("a value that is no key is refused without showing it", func(t *testing.T) {
		k := start(t)
		const text = "c2hvcnQ-not-a-key-hunter2"
		k.Put(t, path, text, key.PublicKey())
		_, err := k.Secrets.Fetch(t.Context(), path, "")
		if !errors.Is(err, backupkey.ErrNotAKey) || kms.Retryable(err) {
			t.Fatalf("got %v, which must be a lasting ErrNotAKey", err)
		}
		if contains(err, "hunter2") {
			t.Fatal("the error shows the value")
		}
	})

	t.Run("a key whose metadata names another public key does not verify, and may later", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), other.PublicKey())
		value, err := k.Secrets.Fetch(t.Context(), path, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := value.Verify(); !errors.Is(err, secret.ErrMismatch) || !kms.Retryable(err) {
			t.Fatalf("got %v, which must be a retryable ErrMismatch", err)
		}
	})

	t.Run("a key without metadata does not verify, and may later", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), "")
		value, err := k.Secrets.Fetch(t.Context(), path, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := value.Verify(); !errors.Is(err, secret.ErrNoMetadata) || !kms.Retryable(err) {
			t.Fatalf("got %v, which must be a retryable ErrNoMetadata", err)
		}
	})

	t.Run("what is not there is not found, by every call", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		ctx := t.Context()
		_, described := k.Metadata.Current(ctx, "keyherald/nobody")
		_, current := k.Secrets.Current(ctx, "keyherald/nobody")
		_, versions := k.Secrets.Versions(ctx, "keyherald/nobody")
		if lister, ok := k.Privileged.(kms.Lister); ok {
			if _, err := lister.Versions(ctx, "keyherald/nobody"); !errors.Is(err, kms.ErrNotFound) {
				t.Errorf("Metadata.Versions: got %v, which must be ErrNotFound", err)
			}
		}
		_, fetched := k.Secrets.Fetch(ctx, "keyherald/nobody", "")
		_, version := k.Secrets.Fetch(ctx, path, traits.Absent)
		for call, err := range map[string]error{"Metadata.Current": described, "Current": current, "Versions": versions, "Fetch": fetched, "Fetch of a version": version} {
			if !errors.Is(err, kms.ErrNotFound) || kms.Retryable(err) {
				t.Errorf("%s: got %v, which must be a lasting ErrNotFound", call, err)
			}
		}
	})

	t.Run("a path that leads elsewhere is refused, by every call", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		ctx := t.Context()
		for _, bad := range []string{"", ".", "..", "/etc", "../" + path, "keyherald/../keyherald/alice", "keyherald//alice", "keyherald/alice/"} {
			_, described := k.Metadata.Current(ctx, bad)
			_, readable := k.Metadata.CanReadSecret(ctx, bad)
			_, current := k.Secrets.Current(ctx, bad)
			_, versions := k.Secrets.Versions(ctx, bad)
			_, fetched := k.Secrets.Fetch(ctx, bad, "1")
			created := k.Secrets.Create(ctx, bad, "value")
			_, written := k.Secrets.Write(ctx, bad, "", key)
			for _, err := range []error{described, readable, current, versions, fetched, created, written} {
				if !errors.Is(err, kms.ErrBadPath) {
					t.Errorf("path %q: got %v, which must be ErrBadPath", bad, err)
				}
			}
		}
	})

	t.Run("a version that leads elsewhere is refused", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		for _, bad := range []string{"../alice/1", "1/../1", "-1", "1 ", "0x1"} {
			if _, err := k.Secrets.Fetch(t.Context(), path, bad); err == nil || kms.Retryable(err) {
				t.Errorf("version %q: got %v, which must be a lasting error", bad, err)
			}
		}
	})

	t.Run("the preflight tells credentials that could read a secret from those that could not", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		if readable, err := k.Metadata.CanReadSecret(t.Context(), path); err != nil || readable {
			t.Errorf("the server's credentials: readable=%v, %v", readable, err)
		}
		if readable, err := k.Privileged.CanReadSecret(t.Context(), path); err != nil || !readable {
			t.Errorf("credentials that may read: readable=%v, %v", readable, err)
		}
	})

	t.Run("the preflight tells them before the secret is there", func(t *testing.T) {
		k := start(t)
		for name, c := range map[string]struct {
			metadata kms.Metadata
			want     bool
		}{"the server's credentials": {k.Metadata, false}, "credentials that may read": {k.Privileged, true}} {
			readable, err := c.metadata.CanReadSecret(t.Context(), "keyherald/later")
			if traits.Local && errors.Is(err, kms.ErrNotFound) {
				continue // a directory has rights for files that are there
			}
			if err != nil || readable != c.want {
				t.Errorf("%s: readable=%v, %v", name, readable, err)
			}
		}
	})

	t.Run("a call that its caller cancels is cancelled, and nothing else", func(t *testing.T) {
		if traits.Local {
			return // files are read at once
		}
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for call, err := range everyCall(ctx, k.Metadata, k.Secrets, key) {
			if !errors.Is(err, context.Canceled) || kms.Retryable(err) {
				t.Errorf("%s: got %v, where the caller cancelled", call, err)
			}
		}
	})
}

// errSaysReadable stands for the preflight's alarm.
var errSaysReadable = errors.New("the credentials can read the secret")

// everyCall makes each call once, on the path of the tests.
func everyCall(ctx context.Context, metadata kms.Metadata, secrets secret.Store, key backupkey.Key) map[string]error {
	_, described := metadata.Current(ctx, path)
	can, readable := metadata.CanReadSecret(ctx, path)
	if can && readable == nil {
		readable = errSaysReadable
	}
	_, current := secrets.Current(ctx, path)
	_, versions := secrets.Versions(ctx, path)
	_, fetched := secrets.Fetch(ctx, path, "")
	created := secrets.Create(ctx, path, key.RevealBase64())
	_, written := secrets.Write(ctx, path, "", key)
	return map[string]error{"Metadata.Current": described, "CanReadSecret": readable, "Current": current, "Versions": versions,
		"Fetch": fetched, "Create": created, "Write": written}
}

// rights are what credentials can and cannot do, and what comes over the wire of it.
func rights(t *testing.T, start func(t *testing.T) KMS) {
	key, err := backupkey.Generate()
	if err != nil {
		t.Fatal(err)
	}
	search := keyheraldtest.NewSearch(map[string][]byte{"the key": key.Reveal()})

	t.Run("the metadata client never causes a value to be sent, whatever its credentials may", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		for _, metadata := range []kms.Metadata{k.Metadata, k.Privileged} {
			if _, err := metadata.Current(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			if _, err := metadata.CanReadSecret(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		if len(k.Traffic()) == 0 {
			t.Fatal("nothing was seen on the wire")
		}
		if found := search.In(k.Traffic()); len(found) > 0 {
			t.Fatalf("on the wire was %v", found)
		}
		if _, err := k.Secrets.Fetch(t.Context(), path, ""); err != nil {
			t.Fatal(err)
		}
		if len(search.In(k.Traffic())) == 0 {
			t.Fatal("the search does not find the value where it must be: it proves nothing")
		}
	})

	t.Run("credentials without rights are forbidden, by every call and for good", func(t *testing.T) {
		k := start(t)
		k.Put(t, path, key.RevealBase64(), key.PublicKey())
		calls := everyCall(t.Context(), k.Stranger, k.StrangerSecrets, key)
		// The preflight knows without trying that these credentials cannot read.
		if calls["CanReadSecret"] == nil {
			delete(calls, "CanReadSecret")
		}
		for call, err := range calls {
			if !errors.Is(err, kms.ErrForbidden) || kms.Retryable(err) {
				t.Errorf("%s: got %v, which must be a lasting ErrForbidden", call, err)
			}
		}
	})
}

func mustPublic(t *testing.T, key backupkey.Key) []byte {
	t.Helper()
	raw, err := base64.RawStdEncoding.DecodeString(key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
