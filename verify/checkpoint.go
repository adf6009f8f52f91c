package verify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
)

// maxNote bounds a signed note, in bytes.
const maxNote = 16 << 10

// Key is a verifier key of the log.
type Key struct {
	// ID is the key as it is written, "<name>+<hash>+<key>".
	ID       string
	verifier note.Verifier
}

// ParseKeys reads verifier keys, one a line; empty lines and lines that begin with # are skipped. All of them have the
// same name.
func ParseKeys(text []byte) ([]Key, error) {
	var keys []Key
	for number, line := range strings.Split(string(unixLines(text)), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number+1, err)
		}
		if len(keys) > 0 && key.name() != keys[0].name() {
			return nil, fmt.Errorf("line %d: the key is of the log %q, the first one of %q: give the keys of one log", number+1, key.name(), keys[0].name())
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no verifier key in it: a line like <name>+<hash>+<key> is expected")
	}
	return keys, nil
}

func parseKey(id string) (Key, error) {
	if strings.HasPrefix(id, "PRIVATE+KEY+") {
		return Key{}, errors.New("this is the log's private signing key, which nobody but the signer may have: bring the verifier key, and have the signing key replaced")
	}
	verifier, err := note.NewVerifier(id)
	if err != nil {
		return Key{}, fmt.Errorf("this is no verifier key like <name>+<hash>+<key>: %w", err)
	}
	return Key{ID: id, verifier: verifier}, nil
}

func (k Key) name() string { return k.verifier.Name() }

// short names a key without its 44 characters of key.
func (k Key) short() string { return fmt.Sprintf("%s+%08x", k.name(), k.verifier.KeyHash()) }

// signed reports whether the key has signed the note. An error is a signature in its name that is wrong.
func (k Key) signed(raw []byte) (bool, error) {
	// Each key is tried alone, so that a key made up to have another one's name and hash gets in nobody's way.
	_, err := note.Open(raw, note.VerifierList(k.verifier))
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		return false, nil
	}
	return err == nil, err
}

// Note is a signed note and where it is from.
type Note struct {
	Source string
	Raw    []byte
}

// SplitNotes takes a file with one or more signed notes apart, with or without empty lines between them. What is no
// signed note comes out as one that cannot be read.
func SplitNotes(source string, text []byte) []Note {
	source = printable(source)
	var notes []Note
	var current []string
	signed := false
	flush := func() {
		for len(current) > 0 && current[0] == "" {
			current = current[1:]
		}
		if len(current) > 0 {
			notes = append(notes, Note{source, []byte(strings.Join(current, "\n") + "\n")})
		}
		current, signed = nil, false
	}
	for line := range strings.SplitSeq(strings.TrimRight(string(unixLines(text)), "\n"), "\n") {
		signature := strings.HasPrefix(line, "— ")
		if signed && !signature {
			flush()
		}
		current, signed = append(current, line), signature
	}
	flush()
	if len(notes) > 1 {
		for i := range notes {
			notes[i].Source = fmt.Sprintf("%s, note %d", source, i+1)
		}
	}
	return notes
}

// unixLines undoes what editors and mail programs on Windows do to a text file. A signature is over the text, so that
// nothing is accepted by it that would not be accepted otherwise.
func unixLines(text []byte) []byte {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	return bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
}

// checkpoint is a signed note that has the form of a checkpoint of this log; who signed it is another question.
type checkpoint struct {
	source string
	raw    []byte
	// given: the auditor brought it.
	given  bool
	origin string
	epoch  uint64
	size   uint64
	root   hash

	// What follows is filled in when the log has been read.
	signers []int // into trust's keys
	// wrong is a signature that names a given key and is not by it.
	wrong error
	// matches: size is within the log, and root is the root there.
	matches bool
	// trusted: signed by a key that is given, or announced under one that is.
	trusted bool
	// retired is the signing key of it that had been retired before, where there is no other.
	retired string
}

func (c *checkpoint) String() string {
	return fmt.Sprintf("%s (%s size %d)", c.source, quoted(c.origin), c.size)
}

func (c *checkpoint) named() *Named {
	return &Named{Source: c.source, Origin: c.origin, Size: c.size, Root: base64.StdEncoding.EncodeToString(c.root[:])}
}

// parseCheckpoint reads a note as a checkpoint of the log with that name, without looking at signatures.
func parseCheckpoint(in Note, name string) (*checkpoint, error) {
	if len(in.Raw) > maxNote {
		return nil, fmt.Errorf("it is longer than %d bytes", maxNote)
	}
	_, err := note.Open(in.Raw, nil)
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return nil, errors.New("it is not a signed note")
	}
	text := []byte(unverified.Note.Text)
	var parsed log.Checkpoint
	if _, err := parsed.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("it is not a checkpoint: %s", oneLine(err))
	}
	// Of each checkpoint there is one form: no zeros before the size, no further lines.
	if len(parsed.Hash) != len(hash{}) || !bytes.Equal(parsed.Marshal(), text) {
		return nil, errors.New("it is not a checkpoint of three lines, with a size and a root of 32 bytes")
	}
	epoch, ok := epochOf(parsed.Origin, name)
	if !ok {
		return nil, fmt.Errorf("it is of another log, %s", quoted(parsed.Origin))
	}
	return &checkpoint{source: in.Source, raw: in.Raw, origin: parsed.Origin, epoch: epoch, size: parsed.Size, root: hash(parsed.Hash)}, nil
}

// epochOf reads the epoch off an origin line of the log with that name.
func epochOf(origin, name string) (uint64, bool) {
	if origin == name {
		return 1, true
	}
	number, ok := strings.CutPrefix(origin, name+"/epoch/")
	if !ok {
		return 0, false
	}
	epoch, err := strconv.ParseUint(number, 10, 64)
	return epoch, err == nil && epoch > 1 && number == strconv.FormatUint(epoch, 10)
}

// originOf is the inverse of epochOf.
func originOf(name string, epoch uint64) string {
	if epoch == 1 {
		return name
	}
	return fmt.Sprintf("%s/epoch/%d", name, epoch)
}

// printable keeps control characters in a file's name out of the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// quoted quotes foreign text unless it is plain and needs none.
func quoted(text string) string {
	quoted := strconv.QuoteToASCII(text)
	if plain := quoted[1 : len(quoted)-1]; plain == text && !strings.Contains(text, " ") {
		return text
	}
	return quoted
}
