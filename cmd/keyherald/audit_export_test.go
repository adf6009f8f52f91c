package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	signed "golang.org/x/mod/sumdb/note"

	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

// bundle is a bundle as read back.
type bundle struct {
	size, epoch int
	keys        []string
	// checkpoints are opened by another implementation, by the names of their files.
	checkpoints map[string]*log.Checkpoint
	leaves      []bundleLeaf
	// roots are those of the trees over the first n leaves, recomputed from the events by another implementation.
	roots [][]byte
}

type bundleLeaf struct {
	Index    int
	LeafHash []byte `json:"leaf_hash"`
	Event    *string
	Salt     []byte
	Detail   *string
}

func openBundle(t *testing.T, path string, key string) *bundle {
	t.Helper()
	archive, err := zip.OpenReader(path)
	check(t, err)
	defer func() { _ = archive.Close() }()
	verifier, err := signed.NewVerifier(key)
	check(t, err)
	b := &bundle{checkpoints: map[string]*log.Checkpoint{}}
	for _, file := range archive.File {
		opened, err := file.Open()
		check(t, err)
		raw, err := io.ReadAll(opened)
		check(t, errors.Join(err, opened.Close()))
		switch file.Name {
		case "manifest.json":
			var m struct {
				Format, Name string
				Size, Epoch  int
			}
			check(t, json.Unmarshal(raw, &m))
			if m.Format != "keyherald-audit-bundle/1" || m.Name != sealedlog.Name {
				t.Errorf("the manifest is %s", raw)
			}
			b.size, b.epoch = m.Size, m.Epoch
		case "log.vkey":
			b.keys = strings.Fields(string(raw))
		case "leaves.jsonl":
			for line := range bytes.Lines(raw) {
				var leaf bundleLeaf
				check(t, json.Unmarshal(line, &leaf))
				b.leaves = append(b.leaves, leaf)
			}
		default:
			origin := sealedlog.Name
			if epoch := strings.Split(file.Name, "/")[1]; epoch != "1" {
				origin += "/epoch/" + epoch
			}
			c, _, _, err := log.ParseCheckpoint(raw, origin, verifier)
			if err != nil {
				t.Errorf("%s: %v", file.Name, err)
				continue
			}
			if want := fmt.Sprintf("/%020d", c.Size); !strings.HasSuffix(file.Name, want) {
				t.Errorf("%s has size %d", file.Name, c.Size)
			}
			b.checkpoints[file.Name] = c
		}
	}
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	b.roots = [][]byte{nil}
	for i, leaf := range b.leaves {
		if leaf.Index != i || leaf.Event == nil {
			t.Fatalf("leaf %d is %+v", i, leaf)
		}
		hash := rfc6962.DefaultHasher.HashLeaf([]byte(*leaf.Event))
		if !bytes.Equal(hash, leaf.LeafHash) {
			t.Errorf("leaf %d has another hash", i)
		}
		check(t, tree.Append(hash, nil))
		root, err := tree.GetRootHash(nil)
		check(t, err)
		b.roots = append(b.roots, root)
	}
	return b
}

// intact checks that the newest checkpoint covers all leaves, and that each covers what it should.
func (b *bundle) intact(t *testing.T) {
	t.Helper()
	newest := 0
	for name, c := range b.checkpoints {
		if !bytes.Equal(b.roots[c.Size], c.Hash) {
			t.Errorf("%s is not the root of the first %d events", name, c.Size)
		}
		newest = max(newest, int(c.Size))
	}
	if newest != len(b.leaves) || b.size != len(b.leaves) {
		t.Errorf("%d leaves, the manifest says %d, and the newest checkpoint covers %d", len(b.leaves), b.size, newest)
	}
}

func TestEveryFormatHasWhatIsSealed(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	r.Append(t, 2) // not sealed
	all := r.Bodies(t)
	for _, format := range []string{"jsonl", "ocsf", "csv", "bundle"} {
		path := r.path("out." + format)
		_, said, err := r.run(t, "export", "--format", format, "--out", path)
		check(t, err)
		if !strings.Contains(said, fmt.Sprintf("Exported %d events of %d", len(all), len(all))) && format == "jsonl" {
			t.Errorf("it says %s", said)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v)", path, info.Mode(), err)
		}
		if action, detail := r.told(t); action != "audit.exported" || detail["format"] != format || detail["size"] != float64(len(all)) {
			t.Errorf("the log says %s of %v", action, detail)
		}
	}
	if got := indexes(t, r.read(t, "out.jsonl")); !slices.Equal(got, upTo(0, len(all))) {
		t.Errorf("JSON Lines have the leaves %v", got)
	}
	for i, line := range lines(t, r.read(t, "out.ocsf")) {
		if line["raw_data"] != string(all[i]) {
			t.Errorf("as OCSF, leaf %d is %v", i, line)
		}
	}
	table, err := csv.NewReader(strings.NewReader(r.read(t, "out.csv"))).ReadAll()
	if err != nil || len(table) != len(all)+1 {
		t.Errorf("the CSV has %d rows (%v)", len(table), err)
	}
	b := openBundle(t, r.path("out.bundle"), r.Keys.Public[0])
	b.intact(t)
	if len(b.leaves) != len(all) || b.epoch != 1 || !slices.Equal(b.keys, r.Keys.Public) {
		t.Errorf("the bundle has %d leaves, epoch %d, the keys %v", len(b.leaves), b.epoch, b.keys)
	}
}

func TestAPeriodIsExportedByTheEventsOwnTimes(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	out := r.must(t, "export", "--format", "jsonl", "--out", "-", "--from", "4h", "--to", "2h")
	if got := lines(t, out); len(got) != 1 || got[0]["action"] != "triggers.frozen" {
		t.Errorf("it is %s", out)
	}
	if _, detail := r.told(t); detail["since"] == nil || detail["until"] == nil {
		t.Errorf("the log says %v", detail)
	}
}

func TestAFileThatIsThereIsWrittenOverOnPurposeAlone(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	r.write(t, "out", "mine")
	for _, args := range [][]string{{"export", "--format", "csv"}, {"prove", "0"}, {"report", "--from", "7d", "--to", "0d"}} {
		args := append(args, "--out", r.path("out"))
		if _, _, err := r.run(t, args...); err == nil || !strings.Contains(err.Error(), "--force") || r.read(t, "out") != "mine" {
			t.Errorf("%q ends with %v, and the file is %s", args, err, r.read(t, "out"))
		}
	}
	r.must(t, "export", "--format", "csv", "--out", r.path("out"), "--force")
	if !strings.HasPrefix(r.read(t, "out"), "index,") {
		t.Errorf("the file is %s", r.read(t, "out"))
	}
	if left, err := filepath.Glob(r.path(".out*")); err != nil || len(left) > 0 {
		t.Errorf("there are %v (%v)", left, err)
	}
}

func TestAnExportThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	r.Tamper(t, "UPDATE audit_event SET body = '{' WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 3)")
	for _, format := range []string{"jsonl", "csv", "ocsf"} {
		if _, _, err := r.run(t, "export", "--format", format, "--out", r.path("out")); err == nil || !strings.Contains(err.Error(), "leaf 3, is not as keyherald wrote it") {
			t.Errorf("%s ends with %v", format, err)
		}
	}
	if left, err := filepath.Glob(r.path("*out*")); err != nil || len(left) > 0 {
		t.Errorf("there are %v (%v)", left, err)
	}
	// A bundle is for whoever looks for just that.
	r.must(t, "export", "--format", "bundle", "--out", r.path("out"))
}

// Each export is of one moment, while events come and are sealed all the time.
func TestExportsUnderConcurrentAppendsAreEachOfOneMoment(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.Append(t, 1)
	r.Seal(t)
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	for range 2 {
		working.Go(func() {
			// A log that grows as fast as the disk allows is never read to its end.
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				if err := r.Writer.Append(ctx, leaseTaken()); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				<-pace.C
			}
		})
	}
	working.Go(func() {
		for ctx.Err() == nil {
			if err := seal(ctx, r); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	sizes := map[int]bool{}
	for i := range 8 {
		name := strconv.Itoa(i)
		r.must(t, "export", "--format", "bundle", "--out", r.path(name))
		b := openBundle(t, r.path(name), r.Keys.Public[0])
		b.intact(t)
		sizes[len(b.leaves)] = true
		got := indexes(t, r.must(t, "export", "--format", "jsonl", "--out", "-"))
		if !slices.Equal(got, upTo(0, len(got))) {
			t.Errorf("the leaves are %v", got)
		}
	}
	cancel()
	working.Wait()
	if len(sizes) < 5 {
		t.Errorf("the log did not grow meanwhile: %v", sizes)
	}
}

func TestARedactedDetailIsInNoExport(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	line := lines(t, r.must(t, "list", "--json", "--refused"))[0]
	key, index := line["id"].(string), int(line["index"].(float64))
	r.must(t, "redact", key, "--reason", "a name")
	// The bundle waits until the redaction is sealed, or who verifies would call the log altered.
	var sealing sync.WaitGroup
	sealing.Go(func() {
		time.Sleep(500 * time.Millisecond)
		if err := seal(t.Context(), r); err != nil {
			t.Error(err)
		}
	})
	r.must(t, "export", "--format", "bundle", "--out", r.path("bundle"))
	sealing.Wait()
	b := openBundle(t, r.path("bundle"), r.Keys.Public[0])
	b.intact(t)
	leaf := b.leaves[index]
	if leaf.Detail != nil || leaf.Salt != nil {
		t.Errorf("the bundle has %+v", leaf)
	}
	redactions := 0
	for _, leaf := range b.leaves {
		if strings.Contains(*leaf.Event, `"action":"audit.redacted","subject":"`+key+`"`) && leaf.Detail != nil {
			redactions++
		}
	}
	if redactions != 1 {
		t.Errorf("the bundle has %d redactions", redactions)
	}
	for _, format := range []string{"jsonl", "csv", "ocsf"} {
		out := r.must(t, "export", "--format", format, "--out", "-")
		if strings.Contains(out, "wrong_code") || !strings.Contains(out, key) {
			t.Errorf("%s has %s", format, out)
		}
	}
}

func TestABundleDoesNotWaitForeverForARedactionToBeSealed(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	r.must(t, "redact", lines(t, r.must(t, "list", "--json", "--refused"))[0]["id"].(string), "--reason", "a name")
	_, _, err := r.run(t, "export", "--format", "bundle", "--out", r.path("bundle"))
	if !errors.Is(err, reader.ErrRedactionUnsealed) {
		t.Error(err)
	}
}

// A verifier that has the former key alone must find a checkpoint that the former key signed over the change, however many
// checkpoints there are; and the newest one of each epoch.
func TestABundleHasTheCheckpointsThatAVerifierNeeds(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	old := r.Keys
	grow := func(n int) {
		t.Helper()
		for range n {
			r.Append(t, 1)
			r.Seal(t)
		}
	}
	grow(20)
	_, fresh := sealedlog.NewKey(t)
	both := fresh
	both.Signers, both.Public = append(both.Signers, old.Signers...), append(both.Public, old.Public...)
	both.Verifiers = either{fresh.Verifiers, old.Verifiers}
	r.Keys = both
	r.Signer = r.NewSigner(t)
	grow(20)
	r.Keys = fresh
	r.Keys.Verifiers = both.Verifiers
	r.Signer = r.NewSigner(t)
	grow(20)
	dump, err := cluster.Dump(ctx, r.Database.Name)
	check(t, err)
	grow(5)
	check(t, cluster.Restore(ctx, r.Database, dump))
	_, err = r.Signer.AcceptLoss(ctx, "x", keyheraldtest.Admin())
	check(t, err)
	r.Seal(t)
	grow(20)
	changes := []int{}
	rows, err := r.Super.Query(ctx, `SELECT leaf_index FROM audit_signing_keys JOIN audit_leaf USING (event_id) ORDER BY 1`)
	check(t, err)
	for rows.Next() {
		var index int
		check(t, rows.Scan(&index))
		changes = append(changes, index)
	}
	check(t, rows.Err())
	for _, about := range []int{1, 5, 1000} {
		some, err := r.Super.SomeCheckpoints(ctx, about)
		check(t, err)
		has := map[[2]int]bool{}
		for _, c := range some {
			has[[2]int{c.Epoch, int(c.Size)}] = true
		}
		var newest [3]int
		all, err := r.Super.CheckpointsBetween(ctx, 0, 1<<40)
		check(t, err)
		for _, c := range all {
			newest[c.Epoch] = max(newest[c.Epoch], int(c.Size))
		}
		for epoch := 1; epoch <= 2; epoch++ {
			if !has[[2]int{epoch, newest[epoch]}] {
				t.Errorf("of about %d the newest of epoch %d, of size %d, is missing", about, epoch, newest[epoch])
			}
		}
		for _, index := range changes {
			covering, _, err := r.Super.CheckpointCovering(ctx, int64(index))
			check(t, err)
			if !has[[2]int{covering.Epoch, int(covering.Size)}] {
				t.Errorf("of about %d the first that covers the change of keys at %d is missing", about, index)
			}
			before := 0
			for _, c := range all {
				if int(c.Size) <= index {
					before = max(before, int(c.Size))
				}
			}
			if before > 0 && !has[[2]int{1, before}] {
				t.Errorf("of about %d the last before the change of keys at %d is missing", about, index)
			}
		}
		if about == 1000 && len(some) != len(all) {
			t.Errorf("%d of %d", len(some), len(all))
		}
		if about == 5 && len(some) > 2*6+2*2+2*3 {
			t.Errorf("%d instead of about 5 an epoch", len(some))
		}
	}
	keys, err := r.Super.AllSigningKeys(ctx)
	check(t, err)
	if !slices.Equal(keys, []string{fresh.Public[0], old.Public[0]}) {
		t.Errorf("the keys are %v", keys)
	}
	if epoch, err := r.Super.SealedEpoch(ctx); err != nil || epoch != 2 {
		t.Errorf("the epoch is %d (%v)", epoch, err)
	}
}

// either knows the keys of both.
type either [2]signed.Verifiers

func (e either) Verifier(name string, hash uint32) (signed.Verifier, error) {
	if v, err := e[0].Verifier(name, hash); err == nil {
		return v, nil
	}
	return e[1].Verifier(name, hash)
}
