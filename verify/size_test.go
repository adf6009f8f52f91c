package verify_test

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

func TestSizeAndCheckpointsAgree(t *testing.T) {
	cut := func(log *auditbundle.Log, size int) *auditbundle.Bundle {
		b := log.Export()
		b.Lines, b.Manifest.Size = b.Lines[:size], size
		return b
	}
	run(t, []row{
		{"the tail is cut off together with its checkpoints, to before the kept one", func(log *auditbundle.Log) scene {
			log.GoBack(900)
			return scene{}
		},
			want(verify.RolledBack, "rolled back: events 900 to 1199: missing: checkpoint kept-0"),
			want(verify.SelfConsistent, "900 events")},
		{"the tail is cut off together with its checkpoints, to after the kept one", func(log *auditbundle.Log) scene {
			log.GoBack(1500)
			return scene{}
		},
			want(verify.Unchanged, "since example.org/keyherald size 1200", "1500 events"),
			want(verify.SelfConsistent)},
		{"the tail is cut off and its checkpoints are left", func(log *auditbundle.Log) scene {
			return scene{bundle: cut(log, 1500)}
		},
			want(verify.RolledBack, "rolled back: events 1500 to 1599: missing: checkpoint checkpoints/1/00000000000000001600"),
			want(verify.RolledBack)},
		{"the tail is cut off within a batch", func(log *auditbundle.Log) scene {
			log.GoBack(1450)
			return scene{}
		},
			want(verify.IncompleteExport, "events 1400 to 1449: not covered by a signed checkpoint of the bundle"),
			want(verify.IncompleteExport)},
		{"everything is cut off", func(log *auditbundle.Log) scene {
			log.GoBack(0)
			return scene{}
		},
			want(verify.RolledBack, "events 0 to 1199: missing"),
			want(verify.SelfConsistent, "0 events")},
		{"the export ended too early", func(log *auditbundle.Log) scene {
			b := log.Export()
			b.Lines = b.Lines[:1500]
			return scene{bundle: b}
		},
			want(verify.IncompleteExport, "incomplete export: events 1500 to 1999: missing: the manifest says 2000 events, and leaves.jsonl has 1500"),
			want(verify.IncompleteExport)},
		{"the newest checkpoint is missing", func(log *auditbundle.Log) scene {
			log.Checkpoints = log.Checkpoints[:19]
			return scene{}
		},
			want(verify.IncompleteExport, "incomplete export: events 1900 to 1999: not covered by a signed checkpoint of the bundle"),
			want(verify.IncompleteExport)},
		{"leaves stand beyond the newest checkpoint", func(log *auditbundle.Log) scene {
			log.Add(3)
			return scene{}
		},
			want(verify.IncompleteExport, "events 2000 to 2002: not covered"), want(verify.IncompleteExport, "events 2000 to 2002: not covered")},
		{"there are more leaves than the manifest says", func(log *auditbundle.Log) scene {
			b := log.Export()
			b.Lines = append(b.Lines, auditbundle.Line(2000, auditbundle.Sample(2, 0)))
			return scene{bundle: b}
		},
			want(verify.Altered, "more lines than the 2000 of the manifest"), want(verify.Altered)},
		{"only the newest checkpoint is there", func(log *auditbundle.Log) scene {
			log.Checkpoints = log.Checkpoints[19:]
			return scene{}
		},
			want(verify.Unchanged), want(verify.SelfConsistent)},
		{"the manifest says another epoch", func(log *auditbundle.Log) scene {
			log.Epoch = 2
			return scene{}
		},
			want(verify.Altered, "the manifest says epoch 2"), want(verify.Altered)},
		{"the log is empty and has a checkpoint that says so", func(log *auditbundle.Log) scene {
			log.GoBack(0)
			return scene{checkpoints: []auditbundle.Checkpoint{log.Sign()}}
		},
			// A checkpoint of no events is signed and matches, and still nothing is proven by it.
			want(verify.RolledBack), want(verify.SelfConsistent, "no earlier checkpoint given that counts")},
	})
}

func TestEarlierCheckpointsThatProveNothing(t *testing.T) {
	other := auditbundle.New("example.org/other", 1)
	other.Grow(100, 100)
	for _, test := range []struct {
		name string
		kept func(log *auditbundle.Log) auditbundle.Checkpoint
		says string
	}{
		{"one of another log", func(*auditbundle.Log) auditbundle.Checkpoint { return other.Checkpoints[0] }, "kept-0 proves nothing: it is of another log, example.org/other"},
		{"one signed by another key", func(log *auditbundle.Log) auditbundle.Checkpoint {
			return log.SignAs(1, 100, log.Root(100), auditbundle.NewKey(name))
		}, "is not signed by a trusted key; it proves nothing"},
		{"one whose size was changed", func(log *auditbundle.Log) auditbundle.Checkpoint {
			c := log.Checkpoints[0]
			c.Note = bytes.Replace(c.Note, []byte("\n100\n"), []byte("\n200\n"), 1)
			return c
		}, "has a wrong signature; it proves nothing"},
		{"one that is no note", func(*auditbundle.Log) auditbundle.Checkpoint {
			return auditbundle.Checkpoint{Note: []byte("Dear auditor\n")}
		}, "kept-0 proves nothing: it is not a signed note"},
		{"one of no events", func(log *auditbundle.Log) auditbundle.Checkpoint { return log.SignAs(1, 0, log.Root(0), log.Keys...) }, "no earlier checkpoint given that counts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := newLog()
			check(t, scene{bundle: log.Export(), keys: log.Keys, checkpoints: []auditbundle.Checkpoint{test.kept(log)}}, want(verify.SelfConsistent, test.says))
		})
	}
}

func TestWhatIsNoBundleHasNoVerdict(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(b *auditbundle.Bundle)
		says   string
	}{
		{"two files of leaves", func(b *auditbundle.Bundle) {
			b.More = append(b.More, auditbundle.File{Name: "leaves.jsonl", Body: b.Lines[0]})
		}, "it has two files named leaves.jsonl"},
		{"two manifests", func(b *auditbundle.Bundle) {
			b.More = append(b.More, auditbundle.File{Name: "manifest.json", Body: []byte("{}")})
		}, "it has two files named manifest.json"},
		{"a checkpoint twice", func(b *auditbundle.Bundle) { b.Checkpoints = append(b.Checkpoints, b.Checkpoints[0]) }, "it has two files named checkpoints/1/"},
		{"a file of another kind", func(b *auditbundle.Bundle) {
			b.More = append(b.More, auditbundle.File{Name: "../README\n.txt", Body: []byte("all is well")})
		}, `it has a file named "../README\n.txt", which is none of a bundle`},
		{"a line without an end", func(b *auditbundle.Bundle) { b.Lines[57] = bytes.Repeat([]byte(" "), 5<<20) }, "reading leaves.jsonl: line 58 is longer than"},
		{"a checkpoint of a mebibyte", func(b *auditbundle.Bundle) { b.Checkpoints[0].Note = make([]byte, 1<<20) }, "is longer than 16384 bytes"},
		{"a manifest of another format", func(b *auditbundle.Bundle) { b.Manifest.Format = "keyherald-audit-bundle/2" }, "this program reads keyherald-audit-bundle/1"},
		{"a manifest of another log", func(b *auditbundle.Bundle) { b.Manifest.Name = "example.org/other" }, "the bundle is of the log example.org/other, and the key of example.org/keyherald"},
		{"a manifest that claims more than there can be", func(b *auditbundle.Bundle) { b.Manifest.Size = 1 << 60 }, "missing or impossible"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := newLog()
			s := scene{bundle: log.Export(), keys: log.Keys}
			test.change(s.bundle)
			raw := s.bundle.Zip()
			report, err := verify.Bundle(t.Context(), bytes.NewReader(raw), int64(len(raw)), s.options(t))
			if err == nil {
				t.Fatalf("there is a verdict: %s", report.Headline)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("the error does not say %q: %v", test.says, err)
			}
		})
	}
}

func TestADamagedZipFileHasNoVerdict(t *testing.T) {
	log := newLog()
	s := scene{bundle: log.Export(), keys: log.Keys, checkpoints: log.Checkpoints[:3]}
	whole := s.bundle.Zip()
	middle := slices.Clone(whole)
	middle[len(middle)/2] ^= 1
	for name, raw := range map[string][]byte{"cut": whole[:len(whole)-100], "a bit turned": middle, "empty": nil, "no zip": base64.StdEncoding.AppendEncode(nil, whole)} {
		if report, err := verify.Bundle(t.Context(), bytes.NewReader(raw), int64(len(raw)), s.options(t)); err == nil {
			t.Errorf("%s: there is a verdict: %s", name, report.Headline)
		}
	}
}
