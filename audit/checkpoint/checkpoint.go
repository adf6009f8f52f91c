// Package checkpoint is the signed tree head of the audit log: a C2SP tlog-checkpoint (https://c2sp.org/tlog-checkpoint)
// in a signed note with Ed25519 (https://c2sp.org/signed-note), and the keys that sign and verify it. docs/audit-log.md
// has the format. It is pure but for the two functions that read and write key files.
package checkpoint

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint says which leaves a log has: the first Size of them have this Root. Sizes grow within an epoch.
type Checkpoint struct {
	Epoch int
	Size  int64
	Root  tlog.Hash
}

// Signed is a checkpoint as it is published: Note is the signed note, At when it was signed.
type Signed struct {
	Checkpoint
	Note string
	At   time.Time
}

// Compare orders checkpoints of one log by how new they are.
func (c Checkpoint) Compare(other Checkpoint) int {
	return cmp.Or(cmp.Compare(c.Epoch, other.Epoch), cmp.Compare(c.Size, other.Size))
}

// Origin is the first line of the checkpoints of an epoch of the named log.
func Origin(name string, epoch int) string {
	if epoch <= 1 {
		return name
	}
	return name + "/epoch/" + strconv.Itoa(epoch)
}

// EpochOf is the epoch that the first line of a checkpoint names; it fails where that is of another log.
func EpochOf(name, origin string) (int, error) {
	if origin == name {
		return 1, nil
	}
	text, ok := strings.CutPrefix(origin, name+"/epoch/")
	if epoch, err := strconv.Atoi(text); ok && err == nil && epoch > 1 && Origin(name, epoch) == origin {
		return epoch, nil
	}
	return 0, fmt.Errorf("the checkpoint is of %q, and not of the log %s", origin, name)
}

// Sign makes the signed note.
func Sign(name string, c Checkpoint, signers ...note.Signer) (string, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n", Origin(name, c.Epoch), c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
	signed, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		return "", fmt.Errorf("signing a checkpoint: %w", err)
	}
	return string(signed), nil
}

// Open checks that a signed note is a checkpoint of the named log with a good signature by one of the verifiers.
func Open(name, signed string, verifiers note.Verifiers) (Checkpoint, error) {
	opened, err := note.Open([]byte(signed), verifiers)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint: %w", err)
	}
	lines := strings.SplitN(opened.Text, "\n", 4)
	if len(lines) < 4 {
		return Checkpoint{}, errors.New("opening a checkpoint: origin, size or root is missing")
	}
	var c Checkpoint
	if c.Epoch, err = EpochOf(name, lines[0]); err != nil {
		return c, err
	}
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return c, fmt.Errorf("opening a checkpoint: %q is no tree size", lines[1])
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return c, fmt.Errorf("opening a checkpoint: %q is no root hash", lines[2])
	}
	return c, nil
}

// Keys are the log's name with the keys that sign its checkpoints; the first is the present one, the others are on
// their way out or in.
type Keys struct {
	Name      string
	Signers   []note.Signer
	Verifiers note.Verifiers
	// Public are the verifier keys, in the order of the signers.
	Public []string
}

// Keygen makes a key for the log of this name, as a signer key and its verifier key, one line each.
func Keygen(name string) (signerKey, verifierKey string, err error) {
	signerKey, verifierKey, err = note.GenerateKey(rand.Reader, name)
	if err == nil {
		// It tells where the name cannot be one.
		_, err = note.NewVerifier(verifierKey)
	}
	if err != nil {
		return "", "", fmt.Errorf("%q cannot be the name of a log: write your domain and a word, such as example.org/keyherald, without spaces or +", name)
	}
	return signerKey, verifierKey, nil
}

// WriteKeys writes a new key into path (0600) and path.pub, never over what is there.
func WriteKeys(path, name string) (verifierKey string, err error) {
	signerKey, verifierKey, err := Keygen(name)
	if err != nil {
		return "", err
	}
	for _, file := range []struct {
		path, content string
		mode          os.FileMode
	}{{path, signerKey, 0o600}, {path + ".pub", verifierKey, 0o644}} {
		f, err := os.OpenFile(file.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, file.mode)
		if errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("%s exists already: a key is never written over; name another file", file.path)
		} else if err != nil {
			return "", fmt.Errorf("writing the audit log's key: %w", err)
		}
		_, err = f.WriteString(file.content + "\n")
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return "", fmt.Errorf("writing the audit log's key: %w", err)
		}
	}
	return verifierKey, nil
}

// LoadKeys reads signer keys from files. No error contains a key.
func LoadKeys(name string, paths ...string) (Keys, error) {
	keys := Keys{Name: name}
	var verifiers []note.Verifier
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return keys, fmt.Errorf("reading the audit log's key (`keyherald audit keygen` makes one): %w", err)
		}
		text := strings.TrimSpace(string(raw))
		signer, err := note.NewSigner(text)
		if err != nil {
			return keys, fmt.Errorf("%s is no signer key: `keyherald audit keygen` makes one", path)
		}
		if signer.Name() != name {
			return keys, fmt.Errorf("%s is a key of the log %s, and the log is %s", path, signer.Name(), name)
		}
		public, err := publicOf(text)
		if err != nil {
			return keys, fmt.Errorf("%s: %w", path, err)
		}
		verifier, err := note.NewVerifier(public)
		if err != nil {
			return keys, fmt.Errorf("%s: its verifier key cannot be made: %w", path, err)
		}
		keys.Signers, keys.Public, verifiers = append(keys.Signers, signer), append(keys.Public, public), append(verifiers, verifier)
	}
	if len(keys.Signers) == 0 {
		return keys, errors.New("the audit log has no key to sign with: `keyherald audit keygen` makes one")
	}
	keys.Verifiers = note.VerifierList(verifiers...)
	return keys, nil
}

// LoadVerifierKeys reads the verifier keys that belong to files with signer keys: those beside them with .pub, so that who
// verifies needs no right to the signer keys; and where there is none, the signer key's own. Signers is empty.
func LoadVerifierKeys(name string, paths ...string) (Keys, error) {
	keys := Keys{Name: name}
	var verifiers []note.Verifier
	for _, path := range paths {
		raw, err := os.ReadFile(path + ".pub")
		public := strings.TrimSpace(string(raw))
		if errors.Is(err, os.ErrNotExist) {
			var of Keys
			if of, err = LoadKeys(name, path); err == nil {
				public = of.Public[0]
			}
		}
		if err != nil {
			return keys, fmt.Errorf("reading the audit log's verifier key: %w", err)
		}
		verifier, err := note.NewVerifier(public)
		if err != nil {
			return keys, fmt.Errorf("%s.pub is no verifier key: it is what `keyherald audit keygen` writes beside the key", path)
		}
		if verifier.Name() != name {
			return keys, fmt.Errorf("%s.pub is a key of the log %s, and the log is %s", path, verifier.Name(), name)
		}
		keys.Public, verifiers = append(keys.Public, public), append(verifiers, verifier)
	}
	keys.Verifiers = note.VerifierList(verifiers...)
	return keys, nil
}
