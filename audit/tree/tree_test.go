package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// memory is a stored tree.
type memory map[Node]tlog.Hash

func (m memory) read(_ context.Context, nodes []Node) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(nodes))
	for i, n := range nodes {
		hash, ok := m[Node{Level: n.Level, N: n.N}]
		if !ok {
			return nil, fmt.Errorf("node %d of level %d is not stored", n.N, n.Level)
		}
		hashes[i] = hash
	}
	return hashes, nil
}

func (m memory) keep(added []Node) error {
	for _, n := range added {
		if _, there := m[Node{Level: n.Level, N: n.N}]; there {
			return fmt.Errorf("node %d of level %d was added twice", n.N, n.Level)
		}
		m[Node{Level: n.Level, N: n.N}] = n.Hash
	}
	return nil
}

// rfc6962 is the definition of RFC 6962, 2.1, written as it stands there.
func rfc6962(leaves []string) tlog.Hash {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, leaves[0]...))
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		left, right := rfc6962(leaves[:k]), rfc6962(leaves[k:])
		return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
	}
}

func TestATreeThatGrowsInBatchesHasTheRootOfRFC6962AndProvesEveryLeaf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		stored, size := memory{}, int64(0)
		var leaves []string
		for range rapid.IntRange(1, 12).Draw(t, "batches") {
			var hashes []tlog.Hash
			for range rapid.IntRange(0, 40).Draw(t, "leaves") {
				leaves = append(leaves, fmt.Sprint("event ", len(leaves)))
				hashes = append(hashes, LeafHash([]byte(leaves[len(leaves)-1])))
			}
			before := rfc6962(leaves[:size])
			grown, err := Append(ctx, size, hashes, stored.read)
			if err == nil {
				err = stored.keep(grown.Added)
			}
			if size > 0 && grown.Before != before {
				t.Fatalf("the root before, of %d leaves, is another", size)
			}
			if err != nil {
				t.Fatal(err)
			}
			if size = grown.Size; size != int64(len(leaves)) || (size > 0 && grown.Root != rfc6962(leaves)) {
				t.Fatalf("the tree of %d leaves has size %d and another root", len(leaves), size)
			}
		}
		if size == 0 {
			return
		}
		at := rapid.Int64Range(1, size).Draw(t, "size")
		root, err := Root(ctx, at, stored.read)
		if err != nil || root != rfc6962(leaves[:at]) {
			t.Fatalf("the root at %d is another: %v", at, err)
		}
		leaf := rapid.Int64Range(0, at-1).Draw(t, "leaf")
		proof, err := Inclusion(ctx, at, leaf, stored.read)
		if err == nil {
			err = tlog.CheckRecord(proof, at, root, leaf, LeafHash([]byte(leaves[leaf])))
		}
		if err != nil {
			t.Fatalf("leaf %d of %d: %v", leaf, at, err)
		}
	})
}

func TestOnlyTheEdgeOfTheOldTreeIsRead(t *testing.T) {
	ctx := context.Background()
	stored := memory{}
	grown, err := Append(ctx, 0, make([]tlog.Hash, 1000), stored.read)
	if err != nil || stored.keep(grown.Added) != nil {
		t.Fatal(err)
	}
	reads := 0
	_, err = Append(ctx, 1000, make([]tlog.Hash, 500), func(ctx context.Context, nodes []Node) ([]tlog.Hash, error) {
		if reads++; reads > 1 {
			return nil, errors.New("it was read a second time")
		}
		if len(nodes) != 6 { // 1000 = 512 + 256 + 128 + 64 + 32 + 8
			t.Errorf("%d nodes were read", len(nodes))
		}
		return stored.read(ctx, nodes)
	})
	if err != nil {
		t.Error(err)
	}
}
