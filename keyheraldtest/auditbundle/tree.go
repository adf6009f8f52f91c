package auditbundle

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is a Merkle tree with all its nodes in memory.
type Tree struct {
	size   int64
	hashes hashes
}

type hashes []tlog.Hash

// ReadHashes is tlog.HashReader.
func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	read := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		read[i] = h[index]
	}
	return read, nil
}

// Append adds a leaf.
func (t *Tree) Append(leaf tlog.Hash) {
	t.hashes = append(t.hashes, must(tlog.StoredHashesForRecordHash(t.size, leaf, t.hashes))...)
	t.size++
}

// Root is the root of the first size leaves.
func (t *Tree) Root(size int) tlog.Hash { return must(tlog.TreeHash(int64(size), t.hashes)) }

// Proof is the C2SP tlog-proof of a leaf at a checkpoint.
func (t *Tree) Proof(index int, at Checkpoint, leaf Leaf) []byte {
	line := map[string]any{"event": string(leaf.Event)}
	if leaf.Detail != nil {
		line["salt"], line["detail"] = base64.StdEncoding.EncodeToString(leaf.Salt), string(leaf.Detail)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "c2sp.org/tlog-proof@v1\nextra %s\nindex %d\n", base64.StdEncoding.EncodeToString(must(json.Marshal(line))), index)
	for _, hash := range must(tlog.ProveRecord(int64(at.Size), int64(index), t.hashes)) {
		fmt.Fprintf(&out, "%s\n", base64.StdEncoding.EncodeToString(hash[:]))
	}
	out.WriteByte('\n')
	out.Write(at.Note)
	return out.Bytes()
}
