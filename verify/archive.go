package verify

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
)

// format is the manifest's format.
const format = "keyherald-audit-bundle/1"

const (
	maxManifest = 64 << 10
	maxKeyFile  = 64 << 10
	// maxEntries bounds the files of a bundle, nearly all of which are checkpoints.
	maxEntries = 200_000
	// maxLeaves bounds what a manifest may claim.
	maxLeaves = 1 << 48
)

// manifest is manifest.json.
type manifest struct {
	Format     string `json:"format"`
	Name       string `json:"name"`
	Size       uint64 `json:"size"`
	Epoch      uint64 `json:"epoch"`
	ExportedAt int64  `json:"exported_at"`
}

func parseManifest(raw []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(raw, &m, strict); err != nil {
		return m, fmt.Errorf("reading manifest.json: %s", oneLine(err))
	}
	if m.Format != format {
		return m, fmt.Errorf("manifest.json: the format is %s, and this program reads %s", quoted(m.Format), format)
	}
	if m.Name == "" || m.Epoch == 0 || m.Size > maxLeaves {
		return m, errors.New("manifest.json: name, epoch or size is missing or impossible")
	}
	return m, nil
}

// archive is an opened bundle: nothing of it is read but the manifest and the names.
type archive struct {
	manifest    manifest
	leaves      *zip.File
	keys        *zip.File
	checkpoints []*zip.File
}

// openArchive refuses what the exporter does not write, two files of one name above all: programs do not agree on which
// of them they read.
func openArchive(from io.ReaderAt, size int64) (*archive, error) {
	reader, err := zip.NewReader(from, size)
	if err != nil {
		return nil, fmt.Errorf("it is no whole zip file: %w", err)
	}
	if len(reader.File) > maxEntries {
		return nil, fmt.Errorf("it has more than %d files", maxEntries)
	}
	a := &archive{}
	files := map[string]*zip.File{}
	for _, file := range reader.File {
		if files[file.Name] != nil {
			return nil, fmt.Errorf("it has two files named %s", quoted(file.Name))
		}
		files[file.Name] = file
		switch {
		case file.Name == "leaves.jsonl":
			a.leaves = file
		case file.Name == "log.vkey":
			a.keys = file
		case file.Name == "manifest.json":
		case strings.HasPrefix(file.Name, "checkpoints/") && checkpointPath.MatchString(file.Name):
			a.checkpoints = append(a.checkpoints, file)
		case strings.HasSuffix(file.Name, "/") && file.UncompressedSize64 == 0:
		default:
			return nil, fmt.Errorf("it has a file named %s, which is none of a bundle", quoted(file.Name))
		}
	}
	if files["manifest.json"] == nil || a.leaves == nil {
		return nil, errors.New("it is no bundle: manifest.json or leaves.jsonl is missing")
	}
	raw, err := readAll(files["manifest.json"], maxManifest)
	if err != nil {
		return nil, err
	}
	if a.manifest, err = parseManifest(raw); err != nil {
		return nil, err
	}
	return a, nil
}

var checkpointPath = regexp.MustCompile(`^checkpoints/([1-9][0-9]{0,18})/([0-9]{20})$`)

// pathOf takes epoch and size out of the name of a checkpoint's file.
func pathOf(name string) (epoch, size uint64, ok bool) {
	parts := checkpointPath.FindStringSubmatch(name)
	if parts == nil {
		return 0, 0, false
	}
	epoch, err1 := strconv.ParseUint(parts[1], 10, 64)
	size, err2 := strconv.ParseUint(parts[2], 10, 64)
	return epoch, size, err1 == nil && err2 == nil
}

// readAll reads a small file of the bundle. What its header says of its size is not believed.
func readAll(file *zip.File, most int64) ([]byte, error) {
	opened, err := file.Open()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", file.Name, err)
	}
	defer func() { _ = opened.Close() }()
	raw, err := io.ReadAll(io.LimitReader(opened, most+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file.Name, err)
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%s is longer than %d bytes", file.Name, most)
	}
	return raw, nil
}
