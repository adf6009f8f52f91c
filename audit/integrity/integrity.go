package integrity

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/tree"
)

// Database is what is verified, read page by page. All that it returns must be of one moment.
type Database interface {
	// LeavesBetween are the leaves with indexes from first to before end, in their order.
	LeavesBetween(ctx context.Context, first, end int64) ([]audit.Record, error)
	// NodesBetween are the nodes above the leaves that one of these leaves completes.
	NodesBetween(ctx context.Context, first, end int64) ([]tree.Node, error)
	// CheckpointsBetween are those of sizes above after, up to and including last, in the order of sizes.
	CheckpointsBetween(ctx context.Context, after, last int64) ([]checkpoint.Signed, error)
	CountNodes(ctx context.Context) (int64, error)
	CountUnsealed(ctx context.Context) (int64, error)
	// UnsealedRedactions are the events whose detail is gone, while the event that says so is not sealed yet.
	UnsealedRedactions(ctx context.Context) ([]uuid.UUID, error)
	Event(ctx context.Context, key uuid.UUID) (audit.Record, bool, error)
}

// Earlier is a checkpoint from outside the database, whose signature was checked, and where it was found.
type Earlier struct {
	checkpoint.Checkpoint
	Where string
}

// Options is what the database is held against.
type Options struct {
	// Name is the log's name, and Size how many leaves the database has.
	Name string
	Size int64
	// Keys are the verifier keys that sign now.
	Keys    []string
	Earlier []Earlier
	// Unreadable says which places outside could not be read.
	Unreadable []string
}

// page is how many leaves are looked at at once.
const page = 2000

// Check verifies the whole log. An error is that of reading it; what is wrong with it is in the report.
func Check(ctx context.Context, db Database, options Options) (Report, error) {
	w := &walk{db: db, options: options, edge: map[tree.Node]tlog.Hash{}, missing: map[uuid.UUID]int64{}, redacted: map[uuid.UUID]place{}, roots: map[int64]tlog.Hash{}}
	for _, e := range options.Earlier {
		w.wanted = append(w.wanted, e.Size)
	}
	if err := w.addKeys(options.Keys, true); err != nil {
		return Report{}, err
	}
	for first := int64(0); first < options.Size; first += page {
		if err := w.page(ctx, first, min(first+page, options.Size)); err != nil {
			return Report{}, err
		}
	}
	beyond, err := db.CheckpointsBetween(ctx, options.Size, math.MaxInt64)
	if err != nil {
		return Report{}, err
	}
	if len(beyond) > 0 {
		w.beyond = true
		newest := beyond[len(beyond)-1]
		w.found.add(RolledBack, "checkpoint", options.Size, newest.Size-1, "", "missing: the database itself has a checkpoint of %d events", newest.Size)
	}
	if err := w.judgeRest(ctx); err != nil {
		return Report{}, err
	}
	report := Report{Log: options.Name, Size: options.Size, Epoch: w.epochAt(options.Size), Checked: w.counts}
	report.conclude(w.found, w.judgeEarlier(&report.Checked))
	return report, nil
}

// place is an event and the index of its leaf.
type place struct {
	index int64
	id    uuid.UUID
}

// walk goes through the leaves once, with memory that grows with redactions and losses alone.
type walk struct {
	db      Database
	options Options
	found   findings
	counts  Counts

	// edge are the recomputed complete subtrees that the leaves so far consist of, by node without its hash.
	edge map[tree.Node]tlog.Hash
	// changed is how many leaves are not what their stored hash says.
	changed int
	// wanted are sizes whose roots are needed.
	wanted []int64
	roots  map[int64]tlog.Hash
	// covered is the size of the largest checkpoint in the database that is signed by a known key and matches.
	covered int64
	// mismatched is how many checkpoints of the database do not match.
	mismatched int
	// beyond says that the database has a checkpoint of more leaves than there are.
	beyond bool

	// present are the keys that sign now, known those too that the log named.
	present, known verifiers

	missing  map[uuid.UUID]int64
	redacted map[uuid.UUID]place
	losses   []loss
}

// verifiers implements note.Verifiers.
type verifiers []note.Verifier

func (v verifiers) Verifier(name string, hash uint32) (note.Verifier, error) {
	for _, verifier := range v {
		if verifier.Name() == name && verifier.KeyHash() == hash {
			return verifier, nil
		}
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

func (w *walk) addKeys(keys []string, present bool) error {
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return fmt.Errorf("reading a verifier key of the audit log: %w", err)
		}
		if present {
			w.present = append(w.present, verifier)
		}
		w.known = append(w.known, verifier)
	}
	return nil
}

// page looks at the leaves from first to before end.
func (w *walk) page(ctx context.Context, first, end int64) error {
	records, err := w.db.LeavesBetween(ctx, first, end)
	if err != nil {
		return err
	}
	hashes := make([]tlog.Hash, 0, end-first)
	for _, record := range records {
		at := first + int64(len(hashes))
		if record.Index > at {
			w.found.add(Altered, "index", at, record.Index-1, "", "missing: there is no leaf")
			w.changed++
			hashes = append(hashes, make([]tlog.Hash, record.Index-at)...)
		}
		hashes = append(hashes, w.leaf(record))
	}
	if at := first + int64(len(hashes)); at < end {
		w.found.add(Altered, "index", at, end-1, "", "missing: there is no leaf")
		w.changed++
		hashes = append(hashes, make([]tlog.Hash, end-at)...)
	}
	grown, err := tree.Append(ctx, first, hashes, w.read)
	if err != nil {
		return err
	}
	for _, node := range grown.Added {
		w.edge[tree.Node{Level: node.Level, N: node.N}] = node.Hash
	}
	if err := w.nodes(ctx, first, end, grown.Added); err != nil {
		return err
	}
	if err := w.checkpoints(ctx, first, end); err != nil {
		return err
	}
	for _, size := range w.wanted {
		if size > first && size <= end {
			if w.roots[size], err = tree.Root(ctx, size, w.read); err != nil {
				return err
			}
		}
	}
	w.forget(end)
	return nil
}

// read is a tree.Reader of what was computed here.
func (w *walk) read(_ context.Context, nodes []tree.Node) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(nodes))
	for i, node := range nodes {
		hash, ok := w.edge[tree.Node{Level: node.Level, N: node.N}]
		if !ok {
			return nil, fmt.Errorf("node %d of level %d was not computed", node.N, node.Level)
		}
		hashes[i] = hash
	}
	return hashes, nil
}

// forget keeps of the computed nodes those on the right edge of a tree of this size: all that a larger one is built on.
func (w *walk) forget(size int64) {
	edge := map[tree.Node]tlog.Hash{}
	for level, rest := 0, size; rest > 0; level, rest = level+1, rest>>1 {
		if rest&1 == 1 {
			node := tree.Node{Level: level, N: rest - 1}
			edge[node] = w.edge[node]
		}
	}
	w.edge = edge
}

// nodes compares what is stored above the leaves. Where leaves were changed the nodes over them differ with them.
func (w *walk) nodes(ctx context.Context, first, end int64, computed []tree.Node) error {
	stored, err := w.db.NodesBetween(ctx, first, end)
	if err != nil {
		return err
	}
	hashes := make(map[tree.Node]tlog.Hash, len(stored))
	for _, node := range stored {
		hashes[tree.Node{Level: node.Level, N: node.N}] = node.Hash
	}
	for _, node := range computed {
		if node.Level == 0 {
			continue
		}
		w.counts.Nodes++
		from, to := node.N<<node.Level, (node.N+1)<<node.Level-1
		if hash, ok := hashes[tree.Node{Level: node.Level, N: node.N}]; !ok {
			w.found.add(Altered, "node", from, to, "", "node %d of level %d of the tree is missing", node.N, node.Level)
		} else if hash != node.Hash && w.changed == 0 {
			w.found.add(Altered, "node", from, to, "", "node %d of level %d of the tree is not what the events hash to", node.N, node.Level)
		}
	}
	return nil
}

// checkpoints looks at the database's own of sizes above first, up to end.
func (w *walk) checkpoints(ctx context.Context, first, end int64) error {
	stored, err := w.db.CheckpointsBetween(ctx, first, end)
	if err != nil {
		return err
	}
	for _, c := range stored {
		w.counts.Checkpoints++
		name := fmt.Sprintf("%s size %d", checkpoint.Origin(w.options.Name, c.Epoch), c.Size)
		signed, err := checkpoint.Open(w.options.Name, c.Note, w.known)
		if err != nil {
			w.found.about(Altered, "signature", "the checkpoint %s in the database has no good signature of a key that the log named: %v", name, err)
			continue
		}
		if signed != c.Checkpoint {
			w.found.about(Altered, "checkpoint", "the checkpoint %s in the database is not what its signed note says", name)
			continue
		}
		root, err := tree.Root(ctx, signed.Size, w.read)
		if err != nil {
			return err
		}
		if epoch := w.epochAt(signed.Size); epoch != signed.Epoch {
			w.found.about(Altered, "epoch", "the checkpoint %s in the database is of another epoch than %d, that of its newest event", name, epoch)
		}
		if root == signed.Root {
			w.covered = max(w.covered, signed.Size)
		} else if w.mismatched++; w.mismatched == 1 {
			w.found.add(Altered, "checkpoint", w.covered, signed.Size-1, "", "not what the checkpoint %s in the database covers; those before match", name)
		}
	}
	w.newestSigned(stored, end)
	return nil
}

// newestSigned demands that a key which signs now has signed the newest checkpoint.
func (w *walk) newestSigned(stored []checkpoint.Signed, end int64) {
	if end < w.options.Size || len(stored) == 0 {
		return
	}
	newest := stored[len(stored)-1]
	var unknown *note.UnverifiedNoteError
	if _, err := checkpoint.Open(w.options.Name, newest.Note, w.present); errors.As(err, &unknown) {
		w.found.about(Altered, "signature", "the newest checkpoint in the database is signed by none of the configured keys")
	}
}
