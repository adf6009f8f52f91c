package verify

import (
	"crypto/sha256"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

type hash = [sha256.Size]byte

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// tree grows by leaves and keeps the right border alone. There are two of it as soon as they differ: over the hashes of
// the events' bytes, and over the leaf hashes that the log has stored. Where the second one alone fits a checkpoint,
// each event whose bytes do not hash to the stored hash is one that was altered, and the others are not.
type tree struct {
	recomputed *compact.Range
	// stored is nil while there is no difference.
	stored *compact.Range
}

// roots are the roots of both at one size.
type roots struct{ recomputed, stored hash }

func newTree() *tree { return &tree{recomputed: ranges.NewEmptyRange(0)} }

// append takes the two hashes of the next leaf.
func (t *tree) append(recomputed, stored *hash) error {
	if t.stored == nil && *recomputed != *stored {
		same, err := ranges.NewRange(0, t.recomputed.End(), slices.Clone(t.recomputed.Hashes()))
		if err != nil {
			return err
		}
		t.stored = same
	}
	if t.stored != nil {
		if err := t.stored.Append(stored[:], nil); err != nil {
			return err
		}
	}
	return t.recomputed.Append(recomputed[:], nil)
}

func (t *tree) size() uint64 { return t.recomputed.End() }

func (t *tree) roots() (roots, error) {
	recomputed, err := rootOf(t.recomputed)
	if err != nil || t.stored == nil {
		return roots{recomputed, recomputed}, err
	}
	stored, err := rootOf(t.stored)
	return roots{recomputed, stored}, err
}

func rootOf(r *compact.Range) (hash, error) {
	if r.End() == 0 {
		return hash(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return hash{}, err
	}
	return hash(root), nil
}
