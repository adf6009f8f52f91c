package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const name = "example.org/keyherald"

func newKeys(t *testing.T, n int) Keys {
	t.Helper()
	var paths []string
	for range n {
		path := filepath.Join(t.TempDir(), "audit.key")
		public, err := WriteKeys(path, name)
		if err != nil {
			t.Fatal(err)
		}
		if written, err := os.ReadFile(path + ".pub"); err != nil || strings.TrimSpace(string(written)) != public {
			t.Fatalf("the verifier key in the file is another: %v", err)
		}
		paths = append(paths, path)
	}
	keys, err := LoadKeys(name, paths...)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestACheckpointIsOpenedByAnyOfTheKeysThatSignedIt(t *testing.T) {
	keys := newKeys(t, 2)
	for _, want := range []Checkpoint{{Epoch: 1, Size: 1, Root: tlog.Hash{1}}, {Epoch: 12, Size: 1 << 40, Root: tlog.Hash{2}}} {
		signed, err := Sign(name, want, keys.Signers...)
		if err != nil {
			t.Fatal(err)
		}
		for _, public := range keys.Public {
			verifier, err := note.NewVerifier(public)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Open(name, signed, note.VerifierList(verifier)); err != nil || got != want {
				t.Errorf("got %v, %v", got, err)
			}
		}
		if _, err := Open(name, signed, newKeys(t, 1).Verifiers); err == nil {
			t.Error("another key opens it")
		}
	}
}

func TestWhatIsNoCheckpointOfTheLogIsRefused(t *testing.T) {
	keys := newKeys(t, 1)
	root := "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
	for what, text := range map[string]string{
		"another log":                   "example.org/other\n5\n" + root,
		"an epoch that is written odd":  name + "/epoch/02\n5\n" + root,
		"the first epoch spelled out":   name + "/epoch/1\n5\n" + root,
		"a size with a leading zero":    name + "\n05\n" + root,
		"a negative size":               name + "\n-5\n" + root,
		"a root that is too short":      name + "\n5\nAQAA\n",
		"a root that is missing":        name + "\n5\n",
		"a size that is no number":      name + "\nfive\n" + root,
		"an origin that continues ours": name + "x\n5\n" + root,
	} {
		signed, err := note.Sign(&note.Note{Text: text}, keys.Signers...)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := Open(name, string(signed), keys.Verifiers); err == nil {
			t.Errorf("%s is opened as %v", what, c)
		}
	}
}

func TestKeysThatDoNotFitAreRefusedWithoutBeingShown(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.key")
	if _, err := WriteKeys(path, name); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteKeys(path, name); err == nil || !strings.Contains(err.Error(), "never written over") {
		t.Errorf("a key is written over: %v", err)
	}
	if _, err := WriteKeys(filepath.Join(dir, "odd.key"), "two words"); err == nil {
		t.Error("a name with a space is taken")
	}
	if _, err := LoadKeys("example.org/other", path); err == nil || !strings.Contains(err.Error(), "a key of the log "+name) {
		t.Errorf("the key of another log is taken: %v", err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(raw))
	damaged := filepath.Join(dir, "damaged.key")
	if err := os.WriteFile(damaged, []byte(secret[:len(secret)-6]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(name, damaged); err == nil || strings.Contains(err.Error(), secret[30:60]) {
		t.Errorf("a damaged key is taken, or shown: %v", err)
	}
	if _, err := LoadKeys(name); err == nil {
		t.Error("no key is enough")
	}
}

func TestWhoVerifiesNeedsNoSignerKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.key")
	public, err := WriteKeys(path, name)
	if err != nil {
		t.Fatal(err)
	}
	signers, err := LoadKeys(name, path)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(name, Checkpoint{Epoch: 1, Size: 3}, signers.Signers...)
	if err != nil {
		t.Fatal(err)
	}
	works := func(with string) {
		t.Helper()
		keys, err := LoadVerifierKeys(name, path)
		if err != nil || len(keys.Public) != 1 || keys.Public[0] != public || len(keys.Signers) != 0 {
			t.Errorf("%s: %v, %v", with, keys.Public, err)
		}
		if _, err := Open(keys.Name, signed, keys.Verifiers); err != nil {
			t.Errorf("%s: %v", with, err)
		}
	}
	if _, err := LoadVerifierKeys("example.org/another", path); err == nil {
		t.Error("a key of another log is taken")
	}
	works("both files")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	works("the verifier key alone")
	if err := errors.Join(os.Rename(path+".away", path), os.Remove(path+".pub")); err != nil {
		t.Fatal(err)
	}
	works("the signer key alone")
	if err := os.WriteFile(path+".pub", []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadVerifierKeys(name, path); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("it says %v", err)
	}
}
