package export_test

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/export"
	"github.com/keyherald/keyherald/keyheraldtest/sealedlog"
)

var update = flag.Bool("update", false, "write the golden files")

// event makes record n of a log, n minutes after its begin.
func event(n int64, actor string, action audit.Action, subject, rotation string, outcome audit.Outcome, detail string) audit.Record {
	return sealedlog.Record(n, time.UnixMilli(1764590400000+n*60_000), actor, action, subject, rotation, outcome, detail)
}

const rotation = "01939aa0-1111-7000-8000-000000000000"

// sample is a short log: a rotation, a refusal, a command, a redaction, and an event that is not sealed.
func sample() []audit.Record {
	records := []audit.Record{
		event(0, "signer", audit.SigningKeysChanged, "example.org/keyherald", "", audit.Accepted, `{"keys":["example.org/keyherald+1+A"]}`),
		event(1, "source:corporate-kms", audit.NotificationAccepted, "@alice:example.org", rotation, audit.Accepted, `{"id":"a \u003cb\u003e","path":"keyherald/alice/backup-key","version":"2"}`),
		event(2, "source:corporate-kms", audit.NotificationRefused, "corporate-kms", "", audit.Refused, `{"count":3,"minute":1764590400000,"reason":"bad_signature"}`),
		event(3, "@alice:example.org/MANAGED", audit.ProgressReported, "@alice:example.org", rotation, audit.Reported, `{"stage":"pushed"}`),
		event(4, "local:=cmd@host", audit.DetailRedacted, "01939aa0-0000-7000-8000-000000000003", "", audit.Accepted, `{"reason":"=HYPERLINK(1)"}`),
		event(5, "local:root@host", audit.LogExported, "audit_log", "", audit.Accepted, `{"format":"csv"}`),
		event(6, "bot", audit.BotLogin, "@keyherald:example.org", "", audit.Accepted, `{}`),
		event(7, "signer", audit.SealingStopped, "example.org/keyherald", "", audit.Failed, `{"reason":"went_back"}`),
		event(8, "relay", audit.RotationDone, "@alice:example.org", rotation, audit.Accepted, `{}`),
	}
	records[3].Salt, records[3].Detail, records[3].RedactedBy = nil, nil, records[4].ID
	records[8].Index, records[8].LeafHash = audit.Unsealed, nil
	return records
}

func rows(records []audit.Record) export.Rows {
	return func(yield func(audit.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what was written (-update writes it anew):\n%s", path, got)
	}
}

func TestJSONLinesAreWritten(t *testing.T) {
	var out bytes.Buffer
	if n, err := export.Each(&out, rows(sample()), export.JSONLine); err != nil || n != 9 {
		t.Fatal(n, err)
	}
	golden(t, "log.jsonl", out.Bytes())
}

func TestCSVIsWrittenAndCanBeReadBack(t *testing.T) {
	var out bytes.Buffer
	if n, err := export.CSV(&out, rows(sample())); err != nil || n != 9 {
		t.Fatal(n, err)
	}
	golden(t, "log.csv", out.Bytes())
	table, err := csv.NewReader(&out).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	// What a program takes off gives what the log has.
	if got := strings.TrimPrefix(table[5][3], "'"); got != "local:=cmd@host" {
		t.Errorf("the actor reads as %q", got)
	}
	if got := table[2][5]; got != "'@alice:example.org" {
		t.Errorf("a user id is %q: a spreadsheet takes @ for a formula", got)
	}
}

func TestNoCellBeginsAFormulaAndEachCanBeReadBack(t *testing.T) {
	for _, dangerous := range []string{"=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0=1", "\ufeff=1", "＝1", "＋1", "－1", "＠x", "'=1"} {
		if cell := export.Cell(dangerous); cell != "'"+dangerous {
			t.Errorf("%q becomes the cell %q", dangerous, cell)
		}
	}
	for _, harmless := range []string{"", "a=1", "2025-12-01T12:00:00.000Z", `{"a":"=1"}`, "local:x@y"} {
		if cell := export.Cell(harmless); cell != harmless {
			t.Errorf("%q becomes the cell %q", harmless, cell)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		if back := strings.TrimPrefix(export.Cell(text), "'"); back != text {
			t.Fatalf("%q is read back as %q", text, back)
		}
	})
}

func TestOnlyEventsOfAPeriodAreLeft(t *testing.T) {
	at := func(n int64) time.Time { return time.UnixMilli(1764590400000 + n*60_000) }
	for _, test := range []struct {
		name         string
		since, until time.Time
		want         []int64
	}{
		{"no bound leaves all", time.Time{}, time.Time{}, []int64{0, 1, 2, 3, 4, 5, 6, 7, -1}},
		{"the begin is in and the end is not", at(2), at(4), []int64{2, 3}},
		{"a begin alone", at(7), time.Time{}, []int64{7, -1}},
		{"an end alone", time.Time{}, at(1), []int64{0}},
		{"an empty period", at(4), at(4), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []int64
			for r, err := range export.Between(rows(sample()), test.since, test.until) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, r.Index)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("it leaves %v, not %v", got, test.want)
			}
		})
	}
}

func TestAnEventThatSomebodyChangedIsNamedAndNotWritten(t *testing.T) {
	for name, change := range map[string]func(*audit.Record){
		"a body that is no JSON":   func(r *audit.Record) { r.Body = []byte("{") },
		"a body that is gone":      func(r *audit.Record) { r.Body = nil },
		"a detail that is no JSON": func(r *audit.Record) { r.Detail = []byte("{x") },
	} {
		t.Run(name, func(t *testing.T) {
			records := sample()
			change(&records[2])
			for _, write := range []func(io.Writer, export.Rows) (int64, error){
				func(to io.Writer, rows export.Rows) (int64, error) {
					return export.Each(to, rows, export.JSONLine)
				},
				func(to io.Writer, rows export.Rows) (int64, error) {
					return export.Each(to, rows, export.OCSF("x"))
				},
				export.CSV,
			} {
				n, err := write(io.Discard, rows(records))
				if n != 2 || err == nil || !strings.Contains(err.Error(), records[2].ID.String()+", leaf 2") {
					t.Errorf("after %d events it says %v", n, err)
				}
			}
		})
	}
}

func TestAnErrorOfTheRowsAndOfTheWriterIsReturned(t *testing.T) {
	broken := errors.New("the database went away")
	failing := func(yield func(audit.Record, error) bool) {
		if yield(sample()[0], nil) {
			yield(audit.Record{}, broken)
		}
	}
	bundle := export.Bundle{Leaves: failing}
	if _, err := export.CSV(io.Discard, failing); !errors.Is(err, broken) {
		t.Errorf("CSV: %v", err)
	}
	if n, err := export.Each(io.Discard, failing, export.JSONLine); n != 1 || !errors.Is(err, broken) {
		t.Errorf("JSON Lines: %d, %v", n, err)
	}
	if err := bundle.Write(io.Discard); !errors.Is(err, broken) {
		t.Errorf("the bundle: %v", err)
	}
	bundle.Leaves = rows(sample())
	for _, room := range []int{0, 10, 300} {
		if err := bundle.Write(&full{room}); !errors.Is(err, errFull) {
			t.Errorf("a bundle on a disk with room for %d bytes: %v", room, err)
		}
	}
}

var errFull = errors.New("no space left")

// full is a disk with room for so many bytes.
type full struct{ room int }

func (f *full) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// The bundle is read back as docs/audit-log.md describes it, and its root is computed by another implementation.
func TestABundleHasWhatTheFormatSays(t *testing.T) {
	records := sample()[:8]
	records[6].Body, records[6].Salt, records[6].Detail = nil, nil, nil // deleted from the database
	records[5].Detail = []byte{}                                        // there, and empty
	var tree compact.Range
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	tree = *factory.NewEmptyRange(0)
	for _, r := range records {
		if err := tree.Append(r.LeafHash, nil); err != nil {
			t.Fatal(err)
		}
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	point := checkpoint.Signed{Checkpoint: checkpoint.Checkpoint{Epoch: 1, Size: 8, Root: [32]byte(root)}, Note: "the note\n"}
	var out bytes.Buffer
	err = export.Bundle{Name: "example.org/keyherald", Size: 8, Epoch: 1, ExportedAt: time.UnixMilli(1764590400123), Checkpoints: []checkpoint.Signed{point},
		Keys: []string{"key one", "key two"}, Leaves: rows(records)}.Write(&out)
	if err != nil {
		t.Fatal(err)
	}
	files := unzip(t, out.Bytes())
	if got, want := files["manifest.json"], `{"format":"keyherald-audit-bundle/1","name":"example.org/keyherald","size":8,"epoch":1,"exported_at":1764590400123}`+"\n"; got != want {
		t.Errorf("the manifest is %s", got)
	}
	if files["checkpoints/1/00000000000000000008"] != "the note\n" || files["log.vkey"] != "key one\nkey two\n" || len(files) != 4 {
		t.Errorf("the files are %q", files)
	}
	read := *factory.NewEmptyRange(0)
	n := 0
	for text := range strings.Lines(files["leaves.jsonl"]) {
		var line struct {
			Index               *int64
			LeafHash            []byte `json:"leaf_hash"`
			Event, Salt, Detail *string
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil || line.Index == nil || *line.Index != int64(n) {
			t.Fatalf("line %d is %s: %v", n, text, err)
		}
		r := records[n]
		if (line.Event == nil) != (r.Body == nil) || (line.Detail == nil) != (r.Detail == nil) || (line.Salt == nil) != (r.Salt == nil) {
			t.Errorf("line %d has more or less than the database: %s", n, text)
		}
		if line.Event != nil && *line.Event != string(r.Body) || line.Detail != nil && *line.Detail != string(r.Detail) ||
			line.Salt != nil && *line.Salt != base64.StdEncoding.EncodeToString(r.Salt) {
			t.Errorf("line %d has other bytes than the database: %s", n, text)
		}
		hash := line.LeafHash
		if line.Event != nil {
			hash = rfc6962.DefaultHasher.HashLeaf([]byte(*line.Event))
		}
		if err := read.Append(hash, nil); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if again, err := read.GetRootHash(nil); err != nil || n != 8 || !bytes.Equal(again, root) {
		t.Errorf("the root over %d lines is another one (%v)", n, err)
	}
}

// What is in memory must not grow with the log.
func TestALongLogIsWrittenWithoutKeepingIt(t *testing.T) {
	record := sample()[1]
	const leaves, look = 40_000, 4_000
	var low, high uint64
	long := func(yield func(audit.Record, error) bool) {
		for n := range int64(leaves) {
			if n%look == look-1 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				if low == 0 {
					low = m.HeapAlloc
				}
				high = max(high, m.HeapAlloc)
			}
			r := record
			r.Index, r.Body = n, bytes.Clone(record.Body)
			if !yield(r, nil) {
				return
			}
		}
	}
	for name, write := range map[string]func() error{
		"bundle": func() error { return export.Bundle{Size: leaves, Leaves: long}.Write(io.Discard) },
		"CSV":    func() error { _, err := export.CSV(io.Discard, long); return err },
		"OCSF":   func() error { _, err := export.Each(io.Discard, long, export.OCSF("x")); return err },
	} {
		low, high = 0, 0
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if high == 0 || high > low+4<<20 {
			t.Errorf("%s: %d bytes in memory after %d events, and up to %d later", name, low, look, high)
		}
	}
}

func unzip(t *testing.T, raw []byte) map[string]string {
	t.Helper()
	archive, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, file := range archive.File {
		opened, err := file.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(opened)
		if err = errors.Join(err, opened.Close()); err != nil {
			t.Fatal(err)
		}
		files[file.Name] = string(content)
	}
	return files
}
