package follow

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/atomicfile"
)

// stateFormat is what a state file calls itself.
const stateFormat = "keyherald-audit-follow/1"

// State is how far a follower came. LastLeafHash is that of the leaf before Next, by which a database that is not the one
// that was followed is told.
type State struct {
	Format       string `json:"format"`
	Log          string `json:"log"`
	Next         int64  `json:"next"`
	LastLeafHash string `json:"last_leaf_hash,omitempty"` // base64
}

// Begin is the state of who has seen nothing of the named log.
func Begin(log string) State { return State{Format: stateFormat, Log: log} }

// After is the state of who has seen a leaf last.
func After(log string, last audit.Record) State {
	return State{stateFormat, log, last.Index + 1, base64.StdEncoding.EncodeToString(last.LeafHash)}
}

// ParseState reads a state file of the named log.
func ParseState(raw []byte, log string) (State, error) {
	var s State
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		return s, fmt.Errorf("it is no state of `keyherald audit follow`: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("it is no state of `keyherald audit follow`: something comes after the object")
	}
	hash, err := base64.StdEncoding.DecodeString(s.LastLeafHash)
	switch {
	case s.Format != stateFormat:
		return s, fmt.Errorf("its format is %q, and this program knows %s", s.Format, stateFormat)
	case s.Log != log:
		return s, fmt.Errorf("it is of the log %q, and this one is %s", s.Log, log)
	case s.Next < 0 || err != nil || (s.Next > 0) != (len(hash) == 32) || (s.Next == 0) != (len(hash) == 0):
		return s, errors.New("its next index and last leaf hash do not go together")
	}
	return s, nil
}

// LoadState reads a state file; where there is none it is Begin.
func LoadState(path, log string) (State, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Begin(log), nil
	} else if err != nil {
		return State{}, fmt.Errorf("reading the state: %w", err)
	}
	s, err := ParseState(raw, log)
	if err != nil {
		return s, fmt.Errorf("reading the state %s: %w; to begin anew move it away, or name the place with --from", path, err)
	}
	return s, nil
}

func (s State) save(path string) error {
	encoded, err := json.Marshal(s)
	if err == nil {
		err = atomicfile.Replace(path, append(encoded, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return nil
}
