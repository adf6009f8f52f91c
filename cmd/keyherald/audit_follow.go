package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/internal/atomicfile"
	"github.com/keyherald/keyherald/internal/loop"
)

// followFormat is what a state file calls itself.
const followFormat = "keyherald-audit-follow/1"

// followState is how far a follower came. LastLeafHash is that of the leaf before Next, by which a database that is not
// the one that was followed is told.
type followState struct {
	Format       string `json:"format"`
	Log          string `json:"log"`
	Next         int64  `json:"next"`
	LastLeafHash string `json:"last_leaf_hash,omitempty"` // base64
}

// parseFollowState reads a state file of the named log.
func parseFollowState(raw []byte, log string) (followState, error) {
	var s followState
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
	case s.Format != followFormat:
		return s, fmt.Errorf("its format is %q, and this program knows %s", s.Format, followFormat)
	case s.Log != log:
		return s, fmt.Errorf("it is of the log %q, and this one is %s", s.Log, log)
	case s.Next < 0 || err != nil || (s.Next > 0) != (len(hash) == 32) || (s.Next == 0) != (len(hash) == 0):
		return s, errors.New("its next index and last leaf hash do not go together")
	}
	return s, nil
}

func loadFollowState(path, log string) (followState, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return followState{Format: followFormat, Log: log}, nil
	} else if err != nil {
		return followState{}, fmt.Errorf("reading the state: %w", err)
	}
	s, err := parseFollowState(raw, log)
	if err != nil {
		return s, fmt.Errorf("reading the state %s: %w; to begin anew move it away, or name the place with --from", path, err)
	}
	return s, nil
}

func (s followState) save(path string) error {
	encoded, err := json.Marshal(s)
	if err == nil {
		err = atomicfile.Replace(path, append(encoded, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return nil
}

// follower writes sealed events in the order of their leaves, which have no gaps: an event that committed late has a later
// one, and none is missed.
type follower struct {
	tools    *auditTools
	out      *bufio.Writer
	said     io.Writer
	encode   export.Encoder
	state    followState
	path     string
	interval time.Duration
}

func auditFollow(load func() (config, error)) *cobra.Command {
	var from int64
	var statePath, format string
	var once bool
	f := follower{}
	cmd := tool(load, "follow", "Print sealed events as they come, in the order of their leaves, for a SIEM", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		f.tools, f.out, f.said, f.path = t, bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10), cmd.ErrOrStderr(), statePath
		if f.interval < 10*time.Millisecond {
			return fmt.Errorf("--interval is %s: write 1s", f.interval)
		}
		var err error
		if f.encode, err = lineEncoder(format, t.logName()); err != nil {
			return err
		}
		if err := f.begin(cmd.Context(), cmd.Flags().Changed("from"), from); err != nil {
			return err
		}
		if err := t.record(cmd.Context(), audit.LogRead, "follow", audit.Word("format", format), audit.Number("from", f.state.Next)); err != nil {
			return err
		}
		return f.run(cmd.Context(), once)
	})
	cmd.Flags().Int64Var(&from, "from", 0, "the leaf index to begin with, whatever the state says")
	cmd.Flags().StringVar(&statePath, "state", "", "a file that remembers how far it came: after an end, however it came, it goes on from there")
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl, or ocsf for OCSF "+export.OCSFVersion+", one JSON object a line")
	cmd.Flags().BoolVar(&once, "once", false, "end when all that is sealed was printed")
	cmd.Flags().DurationVar(&f.interval, "interval", time.Second, "how often to look")
	return cmd
}

// lineEncoder is the encoder of a format that has a line for each event.
func lineEncoder(format, log string) (export.Encoder, error) {
	switch format {
	case "jsonl":
		return export.JSONLine, nil
	case "ocsf":
		return export.OCSF(log), nil
	}
	return nil, fmt.Errorf("--format is %q: write jsonl or ocsf", format)
}

// begin finds where to begin: where somebody says, or where the state is.
func (f *follower) begin(ctx context.Context, given bool, from int64) (err error) {
	f.state = followState{Format: followFormat, Log: f.tools.logName()}
	switch {
	case given && from < 0:
		return fmt.Errorf("--from is %d: write a leaf index, from 0 on", from)
	case given && from > 0:
		before, err := f.tools.read.LeavesBetween(ctx, from-1, from)
		if err != nil {
			return err
		}
		if len(before) == 0 {
			return fmt.Errorf("--from is %d, and there is no leaf %d before it yet", from, from-1)
		}
		f.state.wrote(before[0])
	case !given && f.path != "":
		f.state, err = loadFollowState(f.path, f.state.Log)
	}
	return err
}

func (s *followState) wrote(record audit.Record) {
	s.Next, s.LastLeafHash = record.Index+1, base64.StdEncoding.EncodeToString(record.LeafHash)
}

// followBatch is how many events are printed before the state is written.
const followBatch = 500

// run ends with ctx, and where the log is not what it was. A database that does not answer is waited for.
func (f *follower) run(ctx context.Context, once bool) error {
	for {
		page, err := f.next(ctx)
		var changed exitError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &changed) || err != nil && once:
			return err
		case err != nil:
			_, _ = fmt.Fprintln(f.said, "keyherald:", err)
		default:
			if err := f.put(page); err != nil {
				return err
			}
		}
		if len(page) == followBatch {
			continue
		}
		if once {
			return nil
		}
		loop.Pause(ctx, f.interval)
	}
}

// next reads what comes next. That the leaf before is the one that was printed last tells that it is still the same log.
func (f *follower) next(ctx context.Context) ([]audit.Record, error) {
	page, err := f.tools.read.LeavesBetween(ctx, max(0, f.state.Next-1), f.state.Next+followBatch)
	if err != nil {
		return nil, err
	}
	if f.state.Next > 0 {
		if len(page) == 0 || page[0].Index != f.state.Next-1 || base64.StdEncoding.EncodeToString(page[0].LeafHash) != f.state.LastLeafHash {
			return nil, exitError{integrity.RolledBack.ExitCode(), fmt.Sprintf("leaf %d is not the one that was printed last: the log in the database went back, or is another one "+
				"(see `keyherald audit verify`). Where that is known, name the place to go on from with --from", f.state.Next-1)}
		}
		page = page[1:]
	}
	for i, record := range page {
		hash := tree.LeafHash(record.Body)
		if record.Index != f.state.Next+int64(i) || record.Body == nil || !bytes.Equal(hash[:], record.LeafHash) {
			return nil, exitError{integrity.Altered.ExitCode(), fmt.Sprintf("leaf %d is missing or is not what was sealed: somebody changed the log (see `keyherald audit verify`)", f.state.Next+int64(i))}
		}
	}
	return page, nil
}

// put prints events and then remembers that it did. Who is killed in between prints them again: none is missed.
func (f *follower) put(page []audit.Record) error {
	if len(page) == 0 {
		return nil
	}
	for _, record := range page {
		if err := f.encode(f.out, record); err != nil {
			return err
		}
	}
	if err := f.out.Flush(); err != nil {
		return fmt.Errorf("printing the audit log: %w", err)
	}
	f.state.wrote(page[len(page)-1])
	if f.path == "" {
		return nil
	}
	return f.state.save(f.path)
}
