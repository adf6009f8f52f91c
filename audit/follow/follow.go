// Package follow writes the sealed events of the audit log as they come, in the order of their leaves, which have no gaps:
// an event that committed late has a later leaf, and none is missed. A state file remembers how far it came.
package follow

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/audit/tree"
	"github.com/keyherald/keyherald/internal/loop"
)

// The log is not what it was, or whoever has it does not give it, which only people can judge. Other errors of reading are
// waited for.
var (
	ErrRefused  = errors.New("the log cannot be followed")
	ErrWentBack = errors.New("the log in the database went back, or is another one (see `keyherald audit verify`); where that is known, name the place to go on from with --from")
	ErrAltered  = errors.New("somebody changed the log (see `keyherald audit verify`)")
)

// Batch is how many events are written before the state is: after a kill so many come again at most.
const Batch = 500

// Follower is what Run stands on.
type Follower struct {
	// Leaves reads the leaves with indexes from first to before end, in their order.
	Leaves func(ctx context.Context, first, end int64) ([]audit.Record, error)
	Encode export.Encoder
	Out    io.Writer
	State  State
	// Path is the state file; empty for none.
	Path string
	// Interval is how often to look while nothing comes. With Once it ends when all was written.
	Interval time.Duration
	Once     bool
	// Failed hears of a reading that failed and is tried again.
	Failed func(error)
}

// Run ends with ctx, where it cannot write, and where the log is not what it was.
func (f *Follower) Run(ctx context.Context) error {
	out := bufio.NewWriterSize(f.Out, 64<<10)
	for {
		page, err := f.next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (f.Once || errors.Is(err, ErrWentBack) || errors.Is(err, ErrAltered) || errors.Is(err, ErrRefused)):
			return err
		case err != nil:
			f.Failed(err)
		default:
			if err := f.put(out, page); err != nil {
				return err
			}
		}
		if len(page) == Batch {
			continue
		}
		if f.Once {
			return nil
		}
		loop.Pause(ctx, f.Interval)
	}
}

// next reads what comes next. That the leaf before is the one that was written last tells that it is still the same log.
func (f *Follower) next(ctx context.Context) ([]audit.Record, error) {
	page, err := f.Leaves(ctx, max(0, f.State.Next-1), f.State.Next+Batch)
	if err != nil {
		return nil, err
	}
	if f.State.Next > 0 {
		if len(page) == 0 || page[0].Index != f.State.Next-1 || base64.StdEncoding.EncodeToString(page[0].LeafHash) != f.State.LastLeafHash {
			return nil, fmt.Errorf("leaf %d is not the one that was written last: %w", f.State.Next-1, ErrWentBack)
		}
		page = page[1:]
	}
	for i, record := range page {
		hash := tree.LeafHash(record.Body)
		if record.Index != f.State.Next+int64(i) || record.Body == nil || !bytes.Equal(hash[:], record.LeafHash) {
			return nil, fmt.Errorf("leaf %d is missing or is not what was sealed: %w", f.State.Next+int64(i), ErrAltered)
		}
	}
	return page, nil
}

// put writes events and then remembers that it did. Who is killed in between writes them again: none is missed.
func (f *Follower) put(out *bufio.Writer, page []audit.Record) error {
	if len(page) == 0 {
		return nil
	}
	for _, record := range page {
		if err := f.Encode(out, record); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("printing the audit log: %w", err)
	}
	f.State = After(f.State.Log, page[len(page)-1])
	if f.Path == "" {
		return nil
	}
	return f.State.save(f.Path)
}
