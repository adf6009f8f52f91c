package integrity

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// judgeRest concludes from what the walk kept.
func (w *walk) judgeRest(ctx context.Context) error {
	if w.covered < w.options.Size && w.mismatched == 0 && !w.beyond {
		w.found.add(Altered, "coverage", w.covered, w.options.Size-1, "", "in the tree, and covered by no checkpoint in the database")
	}
	if stored, err := w.db.CountNodes(ctx); err != nil {
		return err
	} else if stored > w.counts.Nodes {
		w.found.about(Altered, "node", "the database has %d nodes more than the tree of %d events", stored-w.counts.Nodes, w.options.Size)
	}
	unsealed, err := w.db.CountUnsealed(ctx)
	if err != nil {
		return err
	}
	if w.counts.Unsealed = unsealed; unsealed > 0 {
		w.found.about(Remark, "unsealed", "%d events are not sealed yet, and nothing is said of them", unsealed)
	}
	for _, where := range w.options.Unreadable {
		w.found.about(Remark, "sink", "%s", where)
	}
	return w.judgeRedactions(ctx)
}

func (w *walk) judgeRedactions(ctx context.Context) error {
	waiting, err := w.db.UnsealedRedactions(ctx)
	if err != nil {
		return err
	}
	byIndex := func(a, b uuid.UUID) int { return cmp.Compare(w.missing[a], w.missing[b]) }
	for _, id := range slices.SortedFunc(maps.Keys(w.missing), byIndex) {
		at := w.missing[id]
		by, redacted := w.redacted[id]
		switch {
		case redacted && by.index < w.covered:
			w.counts.Redacted++
			w.found.add(Remark, "redaction", at, at, id.String(), "its detail was redacted by event %d (%s)", by.index, by.id)
		case redacted:
			w.found.add(Altered, "detail", at, at, id.String(), "its detail is missing, and event %d (%s), which says that it was redacted, is covered by no checkpoint", by.index, by.id)
		case slices.Contains(waiting, id):
			w.counts.Redacted++
			w.found.add(Remark, "redaction", at, at, id.String(), "its detail was redacted just now: the event that says so is not sealed yet")
		default:
			w.found.add(Altered, "detail", at, at, id.String(), "its detail is missing, and no event says that it was redacted")
		}
	}
	byRedaction := func(a, b uuid.UUID) int { return cmp.Compare(w.redacted[a].index, w.redacted[b].index) }
	for _, target := range slices.SortedFunc(maps.Keys(w.redacted), byRedaction) {
		by := w.redacted[target]
		if _, gone := w.missing[target]; gone {
			continue
		}
		record, ok, err := w.db.Event(ctx, target)
		switch {
		case err != nil:
			return err
		case !ok:
			w.found.add(Altered, "redaction", by.index, by.index, by.id.String(), "it redacts the event %s, which is not there", target)
		case record.Detail != nil && record.RedactedBy == uuid.Nil: // the walk told the other case
			w.found.add(Altered, "detail", record.Index, record.Index, target.String(), "it is there, though event %d (%s) redacted it", by.index, by.id)
		}
	}
	return nil
}

// judgeEarlier holds the database against the checkpoints from outside, and returns the newest that matches.
func (w *walk) judgeEarlier(counts *Counts) *Earlier {
	var since *Earlier
	counts.Earlier = len(w.options.Earlier)
	for i := range w.options.Earlier {
		e := &w.options.Earlier[i]
		if w.judgeOne(e) {
			counts.EarlierMatched++
			if since == nil || e.Compare(since.Checkpoint) > 0 {
				since = e
			}
		}
	}
	for _, l := range w.losses {
		verdict := DeclaredGap
		if since != nil && since.Size > l.index {
			// It was there when that checkpoint was signed.
			verdict = Remark
		}
		w.found.add(verdict, "accepted loss", l.index, l.index, l.id.String(), "a loss was accepted here: %d events survived of %s size %d, and epoch %d begins",
			l.surviving, checkpoint.Origin(w.options.Name, l.rememberedEpoch), l.rememberedSize, l.epoch)
	}
	return since
}

func (w *walk) judgeOne(e *Earlier) (matches bool) {
	name := fmt.Sprintf("%s size %d (%s has it)", checkpoint.Origin(w.options.Name, e.Epoch), e.Size, e.Where)
	size := w.options.Size
	if last := w.epochAt(size); e.Epoch > last {
		w.found.about(RolledBack, "earlier checkpoint", "the checkpoint %s is of epoch %d, and the log ends in epoch %d", name, e.Epoch, last)
		return false
	}
	// The loss that ended the checkpoint's epoch, if one did.
	at := slices.IndexFunc(w.losses, func(l loss) bool { return l.epoch > e.Epoch })
	switch {
	case at >= 0 && e.Size > w.losses[at].surviving:
		by := w.losses[at]
		remembered := checkpoint.Checkpoint{Epoch: by.rememberedEpoch, Size: by.rememberedSize}
		if e.Compare(remembered) > 0 {
			w.found.add(RolledBack, "earlier checkpoint", by.index, e.Size-1, "", "lost, as the checkpoint %s shows, though event %d (%s) accepts only the loss of what %s size %d covered",
				name, by.index, by.id, checkpoint.Origin(w.options.Name, by.rememberedEpoch), by.rememberedSize)
			return false
		}
		w.found.add(DeclaredGap, "earlier checkpoint", by.index, e.Size-1, "", "lost, which the checkpoint %s covered; event %d (%s) says so", name, by.index, by.id)
		return false
	case e.Size > size:
		w.found.add(RolledBack, "earlier checkpoint", size, e.Size-1, "", "missing: the checkpoint %s covers them", name)
		return false
	case e.Size > 0 && w.roots[e.Size] != e.Root:
		w.found.add(Altered, "earlier checkpoint", 0, e.Size-1, "", "not what the checkpoint %s covers", name)
		return false
	}
	return e.Size > 0
}
