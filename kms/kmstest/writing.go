package kmstest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/secret"
)

// writing is the suite of secret.Writer and secret.Creator.
func writing(t *testing.T, traits Traits, start func(t *testing.T) KMS) {
	t.Run("a first key is written where nothing is, and the next one after it", func(t *testing.T) {
		k, after := start(t), ""
		var written []string
		for range 3 {
			key := generate(t)
			version, err := k.Secrets.Write(t.Context(), path, after, key)
			if err != nil {
				t.Fatal(err)
			}
			k.holds(t, traits, version, key)
			if newer, _ := kms.NewerVersion(version, after); after != "" && !traits.Unordered && !newer {
				t.Fatalf("version %q came after %q", version, after)
			}
			written, after = append(written, version), version
		}
		versions, err := k.Secrets.Versions(t.Context(), path)
		if err != nil || strings.Join(versions, " ") != strings.Join(written, " ") {
			t.Fatalf("the versions are %v (%v), not %v", versions, err, written)
		}
	})

	t.Run("a key is written after one that somebody else put", func(t *testing.T) {
		k, key := start(t), generate(t)
		before := k.Put(t, path, generate(t).RevealBase64(), "")
		version, err := k.Secrets.Write(t.Context(), path, before, key)
		if err != nil {
			t.Fatal(err)
		}
		k.holds(t, traits, version, key)
	})

	t.Run("a key is not written after a version that is not current any more", func(t *testing.T) {
		k, key, other := start(t), generate(t), generate(t)
		first := k.Put(t, path, generate(t).RevealBase64(), "")
		second := k.Put(t, path, key.RevealBase64(), key.PublicKey())
		for _, after := range []string{"", first} {
			if _, err := k.Secrets.Write(t.Context(), path, after, other); !errors.Is(err, kms.ErrConflict) || kms.Retryable(err) {
				t.Errorf("after %q: got %v, which must be a lasting ErrConflict", after, err)
			}
			k.holds(t, traits, second, key)
		}
		if _, err := k.Secrets.Write(t.Context(), "keyherald/nobody", "7", other); !errors.Is(err, kms.ErrConflict) {
			t.Errorf("after a version where there is none: got %v", err)
		}
	})

	t.Run("a write that is repeated, as its answer was lost, is the same version", func(t *testing.T) {
		k, key := start(t), generate(t)
		before := k.Put(t, path, generate(t).RevealBase64(), "")
		version, err := k.Secrets.Write(t.Context(), path, before, key)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := k.Secrets.Write(t.Context(), path, before, key); err != nil || again != version {
			t.Fatalf("it is version %q (%v), and was %q", again, err, version)
		}
		if versions, err := k.Secrets.Versions(t.Context(), path); err != nil || len(versions) != 2 {
			t.Fatalf("the versions are %v (%v)", versions, err)
		}
	})

	t.Run("of many writers at once one wins, and its public key is the metadata's", func(t *testing.T) {
		k := start(t)
		before := k.Put(t, path, generate(t).RevealBase64(), "")
		const writers = 8
		keys, versions, errs := make([]backupkey.Key, writers), make([]string, writers), make([]error, writers)
		var all sync.WaitGroup
		for i := range writers {
			keys[i] = generate(t)
			all.Go(func() { versions[i], errs[i] = k.Secrets.Write(t.Context(), path, before, keys[i]) })
		}
		all.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won < 0:
				won = i
			case err == nil:
				t.Fatalf("two writers won, with versions %q and %q", versions[won], versions[i])
			case !errors.Is(err, kms.ErrConflict):
				t.Errorf("a writer that lost got %v", err)
			}
		}
		if won < 0 {
			t.Fatal("no writer won")
		}
		k.holds(t, traits, versions[won], keys[won])
	})

	t.Run("whoever reads while keys are written, and many are, finds each with its public key", func(t *testing.T) {
		k := start(t)
		after, err := k.Secrets.Write(t.Context(), path, "", generate(t))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		read := make(chan int)
		go func() {
			n := 0
			defer func() { read <- n }()
			for ; ctx.Err() == nil; n++ {
				value, err := k.ReadOnly.Fetch(ctx, path, "")
				if ctx.Err() != nil {
					return
				}
				if err == nil {
					err = value.Verify()
				}
				if err != nil {
					t.Errorf("version %q: %v", value.Version, err)
					return
				}
			}
		}()
		var last backupkey.Key
		// More than any system keeps public keys for: old ones have to make room.
		for range 70 {
			last = generate(t)
			if after, err = k.Secrets.Write(t.Context(), path, after, last); err != nil {
				t.Error(err)
				break
			}
		}
		cancel()
		if n := <-read; n < 10 {
			t.Errorf("only %d reads were made meanwhile", n)
		}
		k.holds(t, traits, after, last)
		versions, err := k.Secrets.Versions(t.Context(), path)
		if err != nil || len(versions) < 5 {
			t.Fatalf("the versions are %v (%v)", versions, err)
		}
		for _, version := range versions[len(versions)-5:] {
			if value, err := k.Secrets.Fetch(t.Context(), path, version); err != nil || value.Verify() != nil {
				t.Errorf("version %q, one of the last five: %v, %v", version, err, value.Verify())
			}
		}
	})

	t.Run("what is created is kept and never written over", func(t *testing.T) {
		k, key := start(t), generate(t)
		if err := k.Secrets.Create(t.Context(), path, key.RevealBase64()); err != nil {
			t.Fatal(err)
		}
		if err := k.Secrets.Create(t.Context(), path, "another"); !errors.Is(err, kms.ErrExists) || kms.Retryable(err) {
			t.Errorf("got %v, want ErrExists", err)
		}
		kept, err := k.Secrets.Fetch(t.Context(), path, "")
		if err != nil {
			t.Fatal(err)
		}
		if !kept.Key.Fits(key.PublicKey()) {
			t.Errorf("version %s does not hold what was created", kept.Version)
		}
		if versions, err := k.Secrets.Versions(t.Context(), path); err != nil || len(versions) != 1 {
			t.Errorf("the versions are %v (%v)", versions, err)
		}
	})

	t.Run("who may only read writes nothing, and the error does not show the key", func(t *testing.T) {
		k, key, other := start(t), generate(t), generate(t)
		before := k.Put(t, path, key.RevealBase64(), key.PublicKey())
		_, written := k.ReadOnly.Write(t.Context(), path, before, other)
		created := k.ReadOnly.Create(t.Context(), "keyherald/bob", other.RevealBase64())
		for _, err := range []error{written, created} {
			if !errors.Is(err, kms.ErrForbidden) || kms.Retryable(err) {
				t.Errorf("got %v, which must be a lasting ErrForbidden", err)
			} else if found := keyheraldtest.NewSearch(map[string][]byte{"the key": other.Reveal()}).In([]byte(err.Error())); len(found) > 0 {
				t.Errorf("the error has %v", found)
			}
		}
		k.holds(t, traits, before, key)
		if _, err := k.Secrets.Current(t.Context(), "keyherald/bob"); !errors.Is(err, kms.ErrNotFound) {
			t.Errorf("something was created: %v", err)
		}
	})
}

// holds fails the test unless this version with this key is the current one, for both clients, and fits its metadata.
func (k KMS) holds(t *testing.T, traits Traits, version string, key backupkey.Key) {
	t.Helper()
	want := kms.Description{Path: path, Version: version}
	if traits.HasPublicKey {
		want.PublicKey = key.PublicKey()
	}
	if described, err := k.Metadata.Current(t.Context(), path); err != nil || described != want {
		t.Fatalf("the metadata is %+v (%v), not %+v", described, err, want)
	}
	var value secret.Value
	value, err := k.Secrets.Fetch(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	if value.Version != version || !value.Key.Fits(key.PublicKey()) || value.Verify() != nil {
		t.Fatalf("version %q is current and not %q, or not the key (%v)", value.Version, version, value.Verify())
	}
}

func generate(t *testing.T) backupkey.Key {
	t.Helper()
	key, err := backupkey.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
