package bench

import (
	"archive/zip"
	"bufio"
	"context"
	"crypto/sha256"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

// AuditVerify measures how many leaves a second keyherald-verify's code checks in a bundle of n leaves, beside
// parse_and_hash: the same file unpacked, each line and event decoded with the same decoder, each event hashed, and nothing
// checked, on one core. parse_and_hash_stdlib does that with encoding/json. A row of its own has all on one core. The
// last rows are the size of a proof at n leaves, beside the hashes in it, and the time to verify it, beside the
// signatures.
func AuditVerify(ctx context.Context, n, rounds int) (rows []Row, err error) {
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b, err := newBundled(filepath.Join(dir, "bundle.zip"), n)
	if err != nil {
		return nil, fmt.Errorf("preparing audit_verify/%d: %w", n, err)
	}
	name := fmt.Sprintf("audit_verify/%d", n)
	ours := Side{"verify", b.rate(b.verify)}
	parse := Side{"parse_and_hash", b.rate(b.parse(func(raw []byte, into any) error { return json.Unmarshal(raw, into) }))}
	standard := Side{"parse_and_hash_stdlib", b.rate(b.parse(stdjson.Unmarshal))}
	for _, row := range []struct {
		name   string
		ours   Side
		beside []Side
	}{
		{name, ours, []Side{parse, standard}},
		{name + " one core", onOneCore(ours), []Side{onOneCore(parse), onOneCore(standard)}},
	} {
		measured, err := Measure(ctx, row.name, "1/s", More, rounds, row.ours, row.beside...)
		if err != nil {
			return nil, err
		}
		rows = append(rows, measured)
	}
	proofs, err := b.proofs(ctx, n, rounds)
	return append(rows, proofs...), err
}

// bundled is a bundle in a file, with what an auditor has beside it.
type bundled struct {
	path    string
	log     *auditbundle.Large
	options verify.Options
}

func newBundled(path string, n int) (b *bundled, err error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buffered := bufio.NewWriterSize(file, 1<<20)
	log, err := auditbundle.WriteLarge(buffered, n, 50)
	if err != nil {
		return nil, err
	}
	if err := buffered.Flush(); err != nil {
		return nil, err
	}
	keys, err := verify.ParseKeys([]byte(log.Key.Verifier))
	if err != nil {
		return nil, err
	}
	kept := verify.SplitNotes("kept", log.Checkpoints[len(log.Checkpoints)/2].Note)
	return &bundled{path, log, verify.Options{Keys: keys, Checkpoints: kept}}, nil
}

// rate is the leaves a second of what goes through all of them.
func (b *bundled) rate(through func(context.Context) error) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		begin := time.Now()
		if err := through(ctx); err != nil {
			return 0, err
		}
		return float64(b.log.Size) / time.Since(begin).Seconds(), nil
	}
}

func onOneCore(side Side) Side {
	return Side{side.Name, func(ctx context.Context) (float64, error) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		return side.Run(ctx)
	}}
}

func (b *bundled) verify(ctx context.Context) (err error) {
	file, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	report, err := verify.Bundle(ctx, file, info.Size(), b.options)
	if err != nil {
		return err
	}
	if report.Verdict != verify.Unchanged || report.Checked.Bodies != uint64(b.log.Size) || report.Checked.Details != uint64(b.log.Size) {
		return fmt.Errorf("an untouched bundle is %s with %+v", report.Headline, report.Checked)
	}
	return nil
}

// leafLine is a line of leaves.jsonl.
type leafLine struct {
	Index    uint64 `json:"index"`
	LeafHash []byte `json:"leaf_hash"`
	Event    string `json:"event"`
	Salt     []byte `json:"salt"`
	Detail   string `json:"detail"`
}

// parse is parse_and_hash with a decoder.
func (b *bundled) parse(decode func(raw []byte, into any) error) func(context.Context) error {
	return func(context.Context) (err error) {
		archive, err := zip.OpenReader(b.path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, archive.Close()) }()
		leaves, err := archive.Open("leaves.jsonl")
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(leaves)
		lines.Buffer(make([]byte, 1<<20), 1<<20)
		read := 0
		var xor [sha256.Size]byte
		for ; lines.Scan(); read++ {
			var line leafLine
			if err := decode(lines.Bytes(), &line); err != nil {
				return err
			}
			var event auditbundle.Event
			body := []byte(line.Event)
			if err := decode(body, &event); err != nil {
				return err
			}
			for i, digit := range sha256.Sum256(append([]byte{0}, body...)) {
				xor[i] ^= digit ^ line.LeafHash[i]
			}
		}
		if err := lines.Err(); err != nil {
			return err
		}
		if read != b.log.Size || xor != [sha256.Size]byte{} {
			return fmt.Errorf("%d lines were read, or other hashes computed", read)
		}
		return nil
	}
}

// proofs measures the proofs of events all over the log.
func (b *bundled) proofs(ctx context.Context, n, rounds int) ([]Row, error) {
	const count = 200
	files := make([][]byte, count)
	var sizes, hashes []float64
	newest := b.log.Checkpoints[len(b.log.Checkpoints)-1]
	for i := range files {
		files[i] = b.log.Proof(i * (n / count))
		sizes = append(sizes, float64(len(files[i])))
		hashes = append(hashes, float64(b.log.ProofHashes(i*(n/count))*sha256.Size))
	}
	options := verify.Options{Keys: b.options.Keys, Checkpoints: verify.SplitNotes("kept", newest.Note)}
	known, err := note.NewVerifier(b.log.Key.Verifier)
	if err != nil {
		return nil, err
	}
	// The proof is verified with its checkpoint among the earlier ones, which is a second signature.
	ours := Side{"verify", each(count, func(i int) error {
		report, err := verify.Proof(files[i], options)
		if err == nil && report.Verdict != verify.Unchanged {
			err = fmt.Errorf("proof %d is %s", i, report.Headline)
		}
		return err
	})}
	signatures := Side{"two_signatures", each(count, func(int) error {
		for range 2 {
			if _, err := note.Open(newest.Note, note.VerifierList(known)); err != nil {
				return err
			}
		}
		return nil
	})}
	row, err := Measure(ctx, fmt.Sprintf("audit_proof_verify/%d", n), "ms", Less, rounds, ours, signatures)
	if err != nil {
		return nil, err
	}
	return []Row{Compare(fmt.Sprintf("audit_proof_size/%d", n), "bytes", Less, sizes, map[string][]float64{"hashes_alone": hashes}), row}, nil
}

// each is the mean time of count calls, in milliseconds.
func each(count int, call func(i int) error) func(context.Context) (float64, error) {
	return func(context.Context) (float64, error) {
		begin := time.Now()
		for i := range count {
			if err := call(i); err != nil {
				return 0, err
			}
		}
		return time.Since(begin).Seconds() * 1000 / float64(count), nil
	}
}
