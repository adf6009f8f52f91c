// Package tree is the audit log's Merkle tree (RFC 6962, SHA-256) as it grows: which nodes a batch of leaves adds, and
// the root over them. It stands on golang.org/x/mod/sumdb/tlog and is pure: hashes are read through a Reader.
package tree

import (
	"context"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Node is a complete node of the tree: number N of its Level, which covers 2^Level leaves from N * 2^Level on.
// Level 0 are the leaves.
type Node struct {
	Level int
	N     int64
	Hash  tlog.Hash
}

// Reader reads the hashes of complete nodes that are stored already, in the order asked for. The Hash of what is asked
// for is ignored.
type Reader func(ctx context.Context, nodes []Node) ([]tlog.Hash, error)

// LeafHash is the hash of a leaf with these bytes.
func LeafHash(event []byte) tlog.Hash { return tlog.RecordHash(event) }

// Grown is a tree after Append: Added are the nodes that are new, the leaves among them, in the order they came to be.
// Before is the root that the tree had, computed from the nodes that were built upon.
type Grown struct {
	Size   int64
	Root   tlog.Hash
	Before tlog.Hash
	Added  []Node
}

// Append adds leaves to a tree of this size.
func Append(ctx context.Context, size int64, leaves []tlog.Hash, stored Reader) (Grown, error) {
	g := Grown{Size: size + int64(len(leaves))}
	reader := &overlay{ctx: ctx, stored: stored, known: map[int64]tlog.Hash{}}
	// Every hash that the batch and its root need of the old tree is on its right edge: they are read at once.
	if _, err := reader.ReadHashes(edge(size)); err != nil {
		return g, fmt.Errorf("reading the edge of the audit tree at %d: %w", size, err)
	}
	var err error
	if g.Before, err = tlog.TreeHash(size, reader); err != nil {
		return g, fmt.Errorf("computing the root of the audit tree at %d: %w", size, err)
	}
	for i, leaf := range leaves {
		n := size + int64(i)
		hashes, err := tlog.StoredHashesForRecordHash(n, leaf, reader)
		if err != nil {
			return g, fmt.Errorf("adding leaf %d to the audit tree: %w", n, err)
		}
		for level, hash := range hashes {
			node := Node{Level: level, N: n >> level, Hash: hash}
			reader.known[tlog.StoredHashIndex(level, node.N)] = hash
			g.Added = append(g.Added, node)
		}
	}
	if g.Root, err = tlog.TreeHash(g.Size, reader); err != nil {
		return g, fmt.Errorf("computing the root of the audit tree at %d: %w", g.Size, err)
	}
	return g, nil
}

// Root computes the root over the first size leaves of a stored tree.
func Root(ctx context.Context, size int64, stored Reader) (tlog.Hash, error) {
	root, err := tlog.TreeHash(size, &overlay{ctx: ctx, stored: stored})
	if err != nil {
		return root, fmt.Errorf("computing the root of the audit tree at %d: %w", size, err)
	}
	return root, nil
}

// Inclusion proves that the leaf is in the tree of this size.
func Inclusion(ctx context.Context, size, leaf int64, stored Reader) ([]tlog.Hash, error) {
	proof, err := tlog.ProveRecord(size, leaf, &overlay{ctx: ctx, stored: stored})
	if err != nil {
		return nil, fmt.Errorf("proving leaf %d in the audit tree of %d: %w", leaf, size, err)
	}
	return proof, nil
}

// edge are the stored indexes of the complete subtrees that a tree of this size is made of, from left to right.
func edge(size int64) []int64 {
	var indexes []int64
	for rest := size; rest > 0; {
		level := bits.Len64(uint64(rest)) - 1
		indexes = append(indexes, tlog.StoredHashIndex(level, (size-rest)>>level))
		rest -= 1 << level
	}
	return indexes
}

// overlay is a tlog.HashReader over what is stored and what is known to come.
type overlay struct {
	ctx    context.Context
	stored Reader
	known  map[int64]tlog.Hash
}

func (o *overlay) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	var missing []Node
	var at []int
	for i, index := range indexes {
		hash, ok := o.known[index]
		if !ok {
			level, n := tlog.SplitStoredHashIndex(index)
			missing, at = append(missing, Node{Level: level, N: n}), append(at, i)
			continue
		}
		hashes[i] = hash
	}
	if len(missing) == 0 {
		return hashes, nil
	}
	read, err := o.stored(o.ctx, missing)
	if err != nil {
		return nil, err
	}
	for j, i := range at {
		hashes[i] = read[j]
		if o.known != nil {
			o.known[indexes[i]] = read[j]
		}
	}
	return hashes, nil
}
