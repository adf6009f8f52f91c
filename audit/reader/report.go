package reader

import (
	"context"
	"fmt"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/audit/report"
)

// Sink is a place outside the database where copies of the checkpoints go, as the configuration has it.
type Sink struct {
	Name, Type, Place, HeldBy string
	// Recall reads its newest checkpoint back, whose size is 0 where it has none; nil where Keyherald cannot read it.
	Recall func(ctx context.Context, keys checkpoint.Keys) (checkpoint.Checkpoint, error)
}

// outside is what is known of the log outside the database.
type outside struct {
	earlier    []integrity.Earlier
	unreadable []string
	sinks      []report.Sink
}

// outside reads the sinks. One that cannot be read is no error: the report says it.
func (r *Reader) outside(ctx context.Context, keys checkpoint.Keys) (o outside) {
	for _, s := range r.Sinks {
		shown := report.Sink{Name: s.Name, Type: s.Type, Place: s.Place, HeldBy: s.HeldBy, Newest: "cannot be read back by Keyherald: ask whoever controls it"}
		if s.Recall != nil {
			c, err := s.Recall(ctx, keys)
			switch {
			case err != nil:
				shown.Newest = "could not be read: " + err.Error()
				o.unreadable = append(o.unreadable, fmt.Sprintf("the sink %s could not be read: %v", s.Name, err))
			case c.Size == 0:
				shown.Newest = "empty"
				o.unreadable = append(o.unreadable, fmt.Sprintf("the sink %s has no checkpoint yet", s.Name))
			default:
				shown.Newest = fmt.Sprintf("%s size %d", checkpoint.Origin(keys.Name, c.Epoch), c.Size)
				o.earlier = append(o.earlier, integrity.Earlier{Checkpoint: c, Where: "the sink " + s.Name})
			}
		}
		o.sinks = append(o.sinks, shown)
	}
	return o
}

// Verify verifies the whole log against what the sinks have, and against further checkpoints, whose signatures were checked.
func (r *Reader) Verify(ctx context.Context, by audit.Actor, keys checkpoint.Keys, further ...integrity.Earlier) (result integrity.Report, err error) {
	known := r.outside(ctx, keys)
	known.earlier = append(further, known.earlier...)
	// Between the sinks and the database, so that a replica has caught up with what the sinks have.
	if err := r.Record(ctx, Reading{By: by, Action: audit.LogRead, Command: audit.CommandVerify}); err != nil {
		return result, err
	}
	err = r.Read.Snapshot(ctx, func(in context.Context) error {
		result, err = r.verify(in, keys, known)
		return err
	})
	return result, err
}

// verify verifies the log as the transaction sees it. What the sinks have must be read before: they get ahead of it.
func (r *Reader) verify(in context.Context, keys checkpoint.Keys, known outside) (integrity.Report, error) {
	state, err := r.Read.TreeState(in)
	if err != nil {
		return integrity.Report{}, err
	}
	return integrity.Check(in, r.Read, integrity.Options{Name: keys.Name, Size: state.Size, Keys: keys.Public, Earlier: known.earlier, Unreadable: known.unreadable})
}

// Report collects what the log tells of a period, and verifies the log.
func (r *Reader) Report(ctx context.Context, by audit.Actor, span report.Period) (page report.Page, err error) {
	keys, err := r.Keys()
	if err != nil {
		return page, err
	}
	known := r.outside(ctx, keys)
	asked := append([]audit.Field{audit.Word("format", audit.FormatReport)}, periodFields(span.From, span.To)...)
	if err := r.Record(ctx, Reading{By: by, Action: audit.LogExported, Command: audit.CommandReport, Asked: asked}); err != nil {
		return page, err
	}
	page = report.Page{Log: r.LogName(), By: by.String(), At: r.Now(), Sinks: known.sinks}
	err = r.Read.Snapshot(ctx, func(in context.Context) error {
		if page.Integrity, err = r.verify(in, keys, known); err != nil {
			return err
		}
		page.Unsealed = page.Integrity.Checked.Unsealed
		page.Facts, err = report.Collect(r.Read.Leaves(in, 0, page.Integrity.Size), span)
		return err
	})
	return page, err
}
