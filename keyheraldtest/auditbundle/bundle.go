package auditbundle

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"
)

// Manifest is manifest.json.
type Manifest struct {
	Format     string `json:"format"`
	Name       string `json:"name"`
	Size       int    `json:"size"`
	Epoch      int    `json:"epoch"`
	ExportedAt int64  `json:"exported_at"`
}

// File is a file of a bundle.
type File struct {
	Name string
	Body []byte
}

// Bundle is an export that is not packed yet: tests change it before.
type Bundle struct {
	Manifest    Manifest
	Lines       [][]byte // with their line ends
	Checkpoints []Checkpoint
	Keys        []byte
	// More are further files, and may have the names of the others.
	More []File
}

// Export makes the bundle of a log.
func (l *Log) Export() *Bundle {
	b := &Bundle{Manifest: Manifest{"keyherald-audit-bundle/1", l.Name, len(l.Leaves), l.Epoch, 1758800000000}, Keys: l.Verifiers()}
	b.Checkpoints = append(b.Checkpoints, l.Checkpoints...)
	for i, leaf := range l.Leaves {
		b.Lines = append(b.Lines, Line(i, leaf))
	}
	return b
}

// Line is a line of leaves.jsonl.
func Line(index int, leaf Leaf) []byte {
	line := struct {
		Index    int     `json:"index"`
		LeafHash []byte  `json:"leaf_hash"`
		Event    *string `json:"event,omitempty"`
		Salt     []byte  `json:"salt,omitempty"`
		Detail   *string `json:"detail,omitempty"`
	}{Index: index, LeafHash: leaf.Hash[:], Salt: leaf.Salt}
	if leaf.Event != nil {
		line.Event = new(string(leaf.Event))
	}
	if leaf.Detail != nil {
		line.Detail = new(string(leaf.Detail))
	}
	return append(must(json.Marshal(line)), '\n')
}

// Path is the name of a checkpoint's file.
func (c Checkpoint) Path() string { return fmt.Sprintf("checkpoints/%d/%020d", c.Epoch, c.Size) }

// Zip packs the bundle.
func (b *Bundle) Zip() []byte {
	var out bytes.Buffer
	b.Write(&out)
	return out.Bytes()
}

// Write packs the bundle.
func (b *Bundle) Write(out io.Writer) {
	archive := zip.NewWriter(out)
	put := func(name string, parts ...[]byte) {
		file := must(archive.Create(name))
		for _, part := range parts {
			must(file.Write(part))
		}
	}
	put("manifest.json", must(json.Marshal(b.Manifest)))
	put("leaves.jsonl", b.Lines...)
	for _, c := range b.Checkpoints {
		put(c.Path(), c.Note)
	}
	put("log.vkey", b.Keys)
	for _, file := range b.More {
		put(file.Name, file.Body)
	}
	if err := archive.Close(); err != nil {
		panic(err)
	}
}

// Large is a log whose leaves were written and not kept.
type Large struct {
	Key         Key
	Size        int
	Checkpoints []Checkpoint
	tree        Tree
}

const largeSeed = 1

// WriteLarge writes the bundle of a log of sample events without holding them, with a checkpoint after each of some
// batches of equal length.
func WriteLarge(out io.Writer, size, batches int) (*Large, error) {
	log := New("example.org/keyherald", 0)
	large := &Large{Key: log.Keys[0], Size: size}
	archive := zip.NewWriter(out)
	leaves, err := archive.Create("leaves.jsonl")
	if err != nil {
		return nil, err
	}
	for i := range size {
		leaf := Sample(largeSeed, uint64(i))
		large.tree.Append(leaf.Hash)
		if _, err := leaves.Write(Line(i, leaf)); err != nil {
			return nil, err
		}
		if n := i + 1; n == size || n%(size/batches) == 0 {
			large.Checkpoints = append(large.Checkpoints, log.SignAs(1, n, large.tree.Root(n), large.Key))
		}
	}
	files := []File{{"log.vkey", log.Verifiers()}, {"manifest.json", must(json.Marshal(Manifest{"keyherald-audit-bundle/1", log.Name, size, 1, 1758800000000}))}}
	for _, c := range large.Checkpoints {
		files = append(files, File{c.Path(), c.Note})
	}
	for _, f := range files {
		file, err := archive.Create(f.Name)
		if err != nil {
			return nil, err
		}
		if _, err := file.Write(f.Body); err != nil {
			return nil, err
		}
	}
	return large, archive.Close()
}

// Proof is the proof of an event at the newest checkpoint.
func (l *Large) Proof(index int) []byte {
	return l.tree.Proof(index, l.Checkpoints[len(l.Checkpoints)-1], Sample(largeSeed, uint64(index)))
}

// ProofHashes is how many hashes such a proof has.
func (l *Large) ProofHashes(index int) int {
	return len(must(tlog.ProveRecord(int64(l.Size), int64(index), l.tree.hashes)))
}
