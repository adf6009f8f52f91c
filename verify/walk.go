package verify

import (
	"fmt"
	"slices"
)

const (
	// maxStatements bounds the events about the log itself that are held: redactions, losses, changes of keys.
	maxStatements = 1 << 20
	// maxMissing bounds the events without a detail that are held until the log's end, where redactions may stand.
	maxMissing = 1 << 22
)

// walk takes the leaves in their order and keeps what is needed when they are through. Nothing in it grows with their
// number but the set of ids, which is bounded; see maxStatements and maxMissing for the rest.
type walk struct {
	name  string
	found *findings
	// claimed is the manifest's size, beyond which nothing is looked at.
	claimed uint64
	// next is the index that the next line should have. While the indexes are in order it is the tree's size.
	next uint64
	tree *tree
	// sizes are those at which a checkpoint says what the root is, in rising order.
	sizes []uint64
	roots map[uint64]roots
	// mismatched are the first leaves whose bytes do not hash to what is stored.
	mismatched []mismatch
	ids        *idSet
	// repeated are ids that the set had already.
	repeated map[eventID]bool
	missing  map[eventID]uint64
	redacted map[eventID]place
	losses   []loss
	changes  []keyChange
	more     bool

	bodies, details uint64
}

// place is where an event is.
type place struct {
	index uint64
	id    eventID
}

// mismatch is a leaf whose bytes, if it has any, do not hash to the stored hash, if there is one.
type mismatch struct {
	place
	named bool // it has an id
	gone  bool // it has no bytes
}

func newWalk(name string, claimed, maxSlots uint64, sizes []uint64, found *findings) *walk {
	slices.Sort(sizes)
	return &walk{name: name, claimed: claimed, sizes: slices.Compact(sizes), found: found, tree: newTree(), roots: map[uint64]roots{},
		ids: newIDSet(claimed, maxSlots), repeated: map[eventID]bool{}, missing: map[eventID]uint64{}, redacted: map[eventID]place{}}
}

func (w *walk) take(l *leaf) error {
	if w.tree.size() == w.claimed {
		// The rest is read all the same: a file that was damaged on its way shows at its end.
		w.more = true
		return nil
	}
	if err := w.rootsAt(w.tree.size()); err != nil {
		return err
	}
	w.checkIndex(l)
	at, id := w.tree.size(), ""
	if l.hasID {
		id = l.id.String()
		w.addID(l.id)
	}
	for _, fault := range l.faults {
		w.found.at(Altered, fault.check, at, id, "%s", fault.text)
	}
	if l.says != nil {
		if err := w.listen(l, at); err != nil {
			return err
		}
	}
	w.count(l, at)
	if (!l.hasHash || l.hasStored && l.hash != l.stored) && len(w.mismatched) < perCheck {
		w.mismatched = append(w.mismatched, mismatch{place{at, l.id}, l.hasID, !l.hasHash})
	}
	// Where one of the hashes is not there, the other one stands in: something is amiss already, and the checkpoints can
	// still say that it is only this.
	recomputed, stored := &l.hash, &l.stored
	if !l.hasHash {
		recomputed = stored
	} else if !l.hasStored {
		stored = recomputed
	}
	if err := w.tree.append(recomputed, stored); err != nil {
		return fmt.Errorf("hashing event %d into the tree: %w", at, err)
	}
	return nil
}

// takeID is take where only the ids are looked at again.
func (w *walk) takeID(l *leaf) error {
	if l.hasID {
		w.addID(l.id)
	}
	return nil
}

func (w *walk) addID(id eventID) {
	if w.ids.add(id) && len(w.repeated) < perCheck {
		w.repeated[id] = true
	}
}

// finish is for the size that the last leaf led to.
func (w *walk) finish() error { return w.rootsAt(w.tree.size()) }

func (w *walk) rootsAt(size uint64) (err error) {
	if _, wanted := slices.BinarySearch(w.sizes, size); wanted {
		if w.roots[size], err = w.tree.roots(); err != nil {
			return fmt.Errorf("computing the root of %d events: %w", size, err)
		}
	}
	return nil
}

func (w *walk) checkIndex(l *leaf) {
	switch {
	case !l.hasIndex || l.index == w.next:
		w.next++
	case l.index > w.next:
		w.found.between(Altered, "index", w.next, l.index-1, "missing: the line that should have index %d has %d", w.next, l.index)
		w.next = l.index + 1
	default:
		w.found.at(Altered, "index", l.index, "", "out of order: its line stands where index %d should be", w.next)
	}
}

func (w *walk) count(l *leaf, at uint64) {
	if l.hasHash {
		w.bodies++
	}
	if l.detailChecked {
		w.details++
	}
	if !l.detailGone {
		return
	}
	if !l.hasID {
		return
	}
	if _, twice := w.missing[l.id]; twice || len(w.missing) >= maxMissing {
		w.found.at(Altered, "detail", at, l.id.String(), "its detail is missing, and no redaction is for it alone")
		return
	}
	w.missing[l.id] = at
}

// listen keeps what an event says about the log itself. Whether a checkpoint covers it is seen in the end.
func (w *walk) listen(l *leaf, at uint64) error {
	if len(w.redacted)+len(w.losses)+len(w.changes) >= maxStatements {
		return fmt.Errorf("event %d: there are more than %d redactions, losses and changes of keys, which this program does not hold", at, maxStatements)
	}
	here := place{at, l.id}
	wrong := func(format string, args ...any) {
		w.found.at(Altered, l.says.action, at, l.id.String(), format, args...)
	}
	switch l.says.action {
	case actionRedacted:
		target, ok := parseID(l.says.subject)
		if !ok {
			wrong("its subject is not the id of an event")
		} else if _, before := w.redacted[target]; !before {
			w.redacted[target] = here
		}
	case actionLossAccepted:
		lost, err := parseLoss(l.says.detail, w.name)
		if err != nil {
			wrong("%s", err)
			return nil
		}
		lost.place = here
		if err := w.checkLoss(&lost, wrong); err != nil {
			return err
		}
		w.losses = append(w.losses, lost)
	case actionKeysChanged:
		keys, err := parseKeyList(l.says.detail, w.name)
		if err != nil {
			wrong("%s", err)
			return nil
		}
		w.changes = append(w.changes, keyChange{here, keys})
	}
	return nil
}
