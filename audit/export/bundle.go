package export

import (
	"archive/zip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// BundleFormat is what a bundle's manifest calls itself.
const BundleFormat = "keyherald-audit-bundle/1"

// Bundle is the whole sealed log, as docs/audit-log.md describes the file.
type Bundle struct {
	// Name is the log's name, Size how many leaves it has, and Epoch that of the newest leaf.
	Name       string
	Size       int64
	Epoch      int
	ExportedAt time.Time
	// Checkpoints are some of them, the newest of each epoch among them.
	Checkpoints []checkpoint.Signed
	// Keys are the verifier keys.
	Keys []string
	// Leaves are all leaves from index 0 on.
	Leaves Rows
}

type manifest struct {
	Format     string `json:"format"`
	Name       string `json:"name"`
	Size       int64  `json:"size"`
	Epoch      int    `json:"epoch"`
	ExportedAt int64  `json:"exported_at"`
}

// bundleLine is a line of leaves.jsonl: what is not there is left out, and what is there is never left out for being empty.
type bundleLine struct {
	Index    int64   `json:"index"`
	LeafHash string  `json:"leaf_hash"`
	Event    *string `json:"event,omitempty"`
	Salt     *string `json:"salt,omitempty"`
	Detail   *string `json:"detail,omitempty"`
}

// Write writes the zip file.
func (b Bundle) Write(to io.Writer) error {
	archive := zip.NewWriter(to)
	if err := b.writeFiles(archive); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	return nil
}

func (b Bundle) writeFiles(archive *zip.Writer) error {
	described, err := json.Marshal(manifest{BundleFormat, b.Name, b.Size, b.Epoch, b.ExportedAt.UnixMilli()})
	if err != nil {
		return err
	}
	if err := b.writeFile(archive, "manifest.json", string(described)+"\n"); err != nil {
		return err
	}
	for _, c := range b.Checkpoints {
		if err := b.writeFile(archive, fmt.Sprintf("checkpoints/%d/%020d", c.Epoch, c.Size), c.Note); err != nil {
			return err
		}
	}
	if err := b.writeFile(archive, "log.vkey", strings.Join(b.Keys, "\n")+"\n"); err != nil {
		return err
	}
	return b.writeLeaves(archive)
}

func (b Bundle) create(archive *zip.Writer, name string) (io.Writer, error) {
	return archive.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: b.ExportedAt.UTC()})
}

func (b Bundle) writeFile(archive *zip.Writer, name, content string) error {
	file, err := b.create(archive, name)
	if err == nil {
		_, err = io.WriteString(file, content)
	}
	return err
}

func (b Bundle) writeLeaves(archive *zip.Writer) error {
	file, err := b.create(archive, "leaves.jsonl")
	if err != nil {
		return err
	}
	for record, err := range b.Leaves {
		if err != nil {
			return err
		}
		line := bundleLine{Index: record.Index, LeafHash: base64.StdEncoding.EncodeToString(record.LeafHash), Event: text(record.Body), Detail: text(record.Detail)}
		if record.Salt != nil {
			salt := base64.StdEncoding.EncodeToString(record.Salt)
			line.Salt = &salt
		}
		if err := writeJSON(file, line); err != nil {
			return err
		}
	}
	return nil
}

func text(raw []byte) *string {
	if raw == nil {
		return nil
	}
	s := string(raw)
	return &s
}
