package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/internal/loop"
	"github.com/keyherald/keyherald/internal/refusal"
	"github.com/keyherald/keyherald/postgres"
)

// bundleCheckpoints is about how many checkpoints of an epoch a bundle has.
const bundleCheckpoints = 2000

// Export is what is exported: the sealed events of one moment. A zero time is no bound.
type Export struct {
	Format       audit.Format
	Since, Until time.Time
}

// check refuses what there is no file of.
func (r *Reader) check(e Export) error {
	switch e.Format {
	case audit.FormatJSONLines, audit.FormatCSV, audit.FormatOCSF:
		return nil
	case audit.FormatBundle:
		if !e.Since.IsZero() || !e.Until.IsZero() {
			return refusal.New(refusal.Invalid, "", "a bundle is always whole, or nothing could be said of it: ask for no period")
		}
		if r.Name == "" {
			return ErrUnsigned
		}
		return nil
	}
	return refusal.New(refusal.Invalid, "", "there is no format %q: write jsonl, csv, ocsf or bundle", e.Format)
}

// Moment is what the log was when it was exported.
type Moment struct {
	// Size is how many events are sealed, and Unsealed how many are not: an export has none of these.
	Size, Unsealed int64
	// Newest is the newest checkpoint; its size is 0 where there is none.
	Newest checkpoint.Checkpoint
}

// ErrRedactionUnsealed is why there is no bundle at this moment.
var ErrRedactionUnsealed = refusal.New(refusal.Conflict, "", "a detail was redacted, and the event that says so is not sealed, so that a bundle would look altered: see that `keyherald serve` runs and signs (/readyz says), then export again")

// Export has put write the log out: it is called once, within the transaction that reads, when the event of the exporting is
// in the log, and calls encode once. n is how many events encode wrote.
func (r *Reader) Export(ctx context.Context, by audit.Actor, e Export, put func(at Moment, encode func(to io.Writer) (n int64, err error)) error) error {
	if err := r.check(e); err != nil {
		return err
	}
	// For how long a redaction that was made just now is waited for: a few batches.
	patience := 5*time.Second + 3*r.SealInterval
	for deadline := time.Now().Add(patience); ; loop.Pause(ctx, 200*time.Millisecond) {
		err := r.Read.Snapshot(ctx, func(in context.Context) error { return r.export(ctx, in, by, e, put) })
		if !errors.Is(err, ErrRedactionUnsealed) || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

// export exports one moment. in is of the transaction that reads, and ctx is not.
func (r *Reader) export(ctx, in context.Context, by audit.Actor, e Export, put func(Moment, func(io.Writer) (int64, error)) error) error {
	state, err := r.Read.TreeState(in)
	if err != nil {
		return err
	}
	unsealed, err := r.Read.CountUnsealed(in)
	if err != nil {
		return err
	}
	if e.Format == audit.FormatBundle {
		if waiting, err := r.Read.UnsealedRedactions(in); err != nil {
			return err
		} else if len(waiting) > 0 {
			return ErrRedactionUnsealed
		}
	}
	asked := append([]audit.Field{audit.Word("format", e.Format), audit.Number("size", state.Size)}, periodFields(e.Since, e.Until)...)
	if err := r.Record(ctx, Reading{By: by, Action: audit.LogExported, Command: audit.CommandExport, Asked: asked}); err != nil {
		return err
	}
	return put(Moment{state.Size, unsealed, state.Newest}, func(to io.Writer) (int64, error) {
		n, err := r.encode(in, to, e, state)
		if err != nil {
			err = fmt.Errorf("exporting the audit log: %w", err)
		}
		return n, err
	})
}

func (r *Reader) encode(in context.Context, to io.Writer, e Export, state postgres.TreeState) (int64, error) {
	leaves := r.Read.Leaves(in, 0, state.Size)
	switch e.Format {
	case audit.FormatBundle:
		return state.Size, r.bundle(in, to, state, leaves)
	case audit.FormatCSV:
		return export.CSV(to, export.Between(leaves, e.Since, e.Until))
	case audit.FormatOCSF:
		return export.Each(to, export.Between(leaves, e.Since, e.Until), export.OCSF(r.LogName()))
	}
	return export.Each(to, export.Between(leaves, e.Since, e.Until), export.JSONLine)
}

func (r *Reader) bundle(in context.Context, to io.Writer, state postgres.TreeState, leaves export.Rows) error {
	b := export.Bundle{Name: r.Name, Size: state.Size, ExportedAt: r.Now(), Leaves: leaves}
	var err error
	if b.Epoch, err = r.Read.SealedEpoch(in); err != nil {
		return err
	}
	if b.Checkpoints, err = r.Read.SomeCheckpoints(in, bundleCheckpoints); err != nil {
		return err
	}
	if b.Keys, err = r.Read.AllSigningKeys(in); err != nil {
		return err
	}
	return b.Write(to)
}
