package verify_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

const (
	name = "example.org/keyherald"
	size = 2000
	// batch is how many events the test's signer seals at once.
	batch = 100
)

// newLog is a log of size events, each batch of them sealed.
func newLog() *auditbundle.Log { return baseLog().Clone() }

var baseLog = sync.OnceValue(func() *auditbundle.Log {
	log := auditbundle.New(name, 1)
	log.Grow(size, batch)
	return log
})

// scene is what an auditor has: a bundle, a key, and checkpoints that he kept.
type scene struct {
	bundle      *auditbundle.Bundle
	keys        []auditbundle.Key
	checkpoints []auditbundle.Checkpoint
	bundleKey   bool
}

func (s scene) options(t *testing.T) verify.Options {
	t.Helper()
	options := verify.Options{TrustBundleKey: s.bundleKey}
	var file []string
	for _, key := range s.keys {
		file = append(file, key.Verifier)
	}
	if len(file) > 0 {
		keys, err := verify.ParseKeys([]byte(strings.Join(file, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		options.Keys = keys
	}
	for i, c := range s.checkpoints {
		options.Checkpoints = append(options.Checkpoints, verify.SplitNotes(fmt.Sprintf("kept-%d", i), c.Note)...)
	}
	return options
}

// expectation is a verdict, and what the report says somewhere.
type expectation struct {
	verdict verify.Verdict
	says    []string
}

func want(verdict verify.Verdict, says ...string) expectation { return expectation{verdict, says} }

func check(t *testing.T, s scene, want expectation) *verify.Report {
	t.Helper()
	return checkRaw(t, s.bundle.Zip(), s, want)
}

func checkRaw(t *testing.T, raw []byte, s scene, want expectation) *verify.Report {
	t.Helper()
	report, err := verify.Bundle(t.Context(), bytes.NewReader(raw), int64(len(raw)), s.options(t))
	if err != nil {
		t.Fatal(err)
	}
	checkReport(t, report, want)
	return report
}

func checkReport(t *testing.T, report *verify.Report, want expectation) {
	t.Helper()
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if report.Verdict != want.verdict || report.ExitCode != want.verdict.ExitCode() || !strings.HasPrefix(text.String(), string(want.verdict)) {
		t.Errorf("the verdict is %q, want %q:\n%s", report.Verdict, want.verdict, &text)
	}
	for _, says := range want.says {
		if !strings.Contains(text.String(), says) {
			t.Errorf("the report does not say %q:\n%s", says, &text)
		}
	}
	if !strings.HasSuffix(text.String(), "\"sent\" in this log is not proof of use: clients do not acknowledge a push.\n") {
		t.Errorf("the report ends otherwise:\n%s", &text)
	}
}

// row is a case of a table: what is done to a log, what the auditor kept, and what must come out.
type row struct {
	name string
	// make gets a log of size events. The auditor kept its checkpoint of the events before 1200.
	make func(log *auditbundle.Log) scene
	// with is with the kept checkpoint, without is without any.
	with, without expectation
}

const kept = 1200

func run(t *testing.T, rows []row) {
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			log := newLog()
			checkpoint := log.Checkpoints[kept/batch-1]
			s := scene{keys: log.Keys}
			made := row.make(log)
			if made.keys != nil {
				s.keys = made.keys
			}
			if s.bundleKey = made.bundleKey; s.bundleKey {
				s.keys = nil
			}
			if s.bundle = made.bundle; s.bundle == nil {
				s.bundle = log.Export()
			}
			raw := s.bundle.Zip()
			t.Run("with an earlier checkpoint", func(t *testing.T) {
				s.checkpoints = append(made.checkpoints[:len(made.checkpoints):len(made.checkpoints)], checkpoint)
				checkRaw(t, raw, s, row.with)
			})
			t.Run("without", func(t *testing.T) {
				s.checkpoints = made.checkpoints
				checkRaw(t, raw, s, row.without)
			})
		})
	}
}

func replaceIn(line []byte, old, new string) []byte {
	if bytes.Count(line, []byte(old)) != 1 {
		panic(fmt.Sprintf("%q is not in %s once", old, line))
	}
	return bytes.Replace(line, []byte(old), []byte(new), 1)
}

func TestWhatIsDoneToEvents(t *testing.T) {
	line := func(change func(log *auditbundle.Log, lines [][]byte)) func(*auditbundle.Log) scene {
		return func(log *auditbundle.Log) scene {
			b := log.Export()
			change(log, b.Lines)
			return scene{bundle: b}
		}
	}
	forge := func(log *auditbundle.Log) {
		log.Leaves[57].Event = bytes.Replace(log.Leaves[57].Event, []byte("@first.lastname.9:"), []byte("@first.lastname.8:"), 1)
		log.Rebuild()
	}
	run(t, []row{
		{"an untouched log is unchanged", func(*auditbundle.Log) scene { return scene{} },
			want(verify.Unchanged, "unchanged since example.org/keyherald size 1200\n", "Events rehashed: 2000. Details checked: 2000.", "Events 1200 to 1999 came later"),
			want(verify.SelfConsistent, "self-consistent only: no earlier checkpoint given\n")},
		{"one byte of a body is changed", line(func(_ *auditbundle.Log, lines [][]byte) {
			lines[57] = replaceIn(lines[57], "@first.lastname.9:", "@first.lastname.8:")
		}),
			want(verify.Altered, "altered: event 57 (", "covers the stored leaf hash: the event's bytes were altered", "events 0 to 1199: not what checkpoint kept-0"),
			want(verify.Altered, "altered: event 57 (", "covers the stored leaf hash: the event's bytes were altered", "events 0 to 99: not what checkpoint checkpoints/1/00000000000000000100")},
		{"the time of an event after the kept checkpoint is changed", line(func(_ *auditbundle.Log, lines [][]byte) {
			lines[1234] = replaceIn(lines[1234], `\"time\":17587`, `\"time\":17586`)
		}),
			want(verify.Altered, "altered: event 1234 (", "events 1200 to 1299: not what checkpoint checkpoints/1/00000000000000001300", "the first 1200 events are what an earlier checkpoint covers"),
			want(verify.Altered, "altered: event 1234 (", "events 1200 to 1299:", "unless the signing key was misused")},
		{"one byte of a detail is changed", line(func(_ *auditbundle.Log, lines [][]byte) {
			lines[57] = replaceIn(lines[57], "stage", "stagf")
		}),
			want(verify.Altered, "altered: event 57 (", "detail and salt are not those that the event commits to"),
			want(verify.Altered, "altered: event 57 (")},
		{"one byte of a salt is changed", line(func(log *auditbundle.Log, lines [][]byte) {
			leaf := log.Leaves[57]
			leaf.Salt = slices.Concat([]byte{leaf.Salt[0] ^ 1}, leaf.Salt[1:])
			lines[57] = auditbundle.Line(57, leaf)
		}),
			want(verify.Altered, "altered: event 57 (", "detail and salt are not those that the event commits to"), want(verify.Altered)},
		{"a salt has a zero behind it, which HMAC takes for the same", line(func(log *auditbundle.Log, lines [][]byte) {
			leaf := log.Leaves[57]
			leaf.Salt = append(slices.Clone(leaf.Salt), 0)
			lines[57] = auditbundle.Line(57, leaf)
		}),
			want(verify.Altered, "altered: event 57 (", "its salt is not the base64 of 32 bytes"), want(verify.Altered)},
		{"one byte of a leaf hash is changed", line(func(log *auditbundle.Log, lines [][]byte) {
			leaf := log.Leaves[57]
			leaf.Hash[0] ^= 1
			lines[57] = auditbundle.Line(57, leaf)
		}),
			want(verify.Altered, "altered: event 57 (", "covers the event's bytes: the stored leaf hash was altered"), want(verify.Altered, "event 57 (")},
		{"a body and its leaf hash are changed together", line(func(log *auditbundle.Log, lines [][]byte) {
			forge(log)
			lines[57] = auditbundle.Line(57, log.Leaves[57])
		}),
			want(verify.Altered, "altered: events 0 to 1199: not what checkpoint kept-0", "events 0 to 99: not what checkpoint checkpoints/1/00000000000000000100"),
			want(verify.Altered, "events 0 to 99:", "19 further checkpoints of larger size do not match either")},
		{"an event is deleted and its leaf hash is left", line(func(log *auditbundle.Log, lines [][]byte) {
			lines[57] = auditbundle.Line(57, auditbundle.Leaf{Hash: log.Leaves[57].Hash})
		}),
			want(verify.Altered, "altered: event 57: the event is missing; checkpoint checkpoints/1/00000000000000000100", "covers the leaf hash that stands for it"), want(verify.Altered, "event 57")},
		{"an event and its detail are deleted and their salt is left", line(func(log *auditbundle.Log, lines [][]byte) {
			lines[57] = auditbundle.Line(57, auditbundle.Leaf{Hash: log.Leaves[57].Hash, Salt: log.Leaves[57].Salt})
		}),
			want(verify.Altered, "event 57"), want(verify.Altered, "event 57")},
		{"a line is deleted", func(log *auditbundle.Log) scene {
			b := log.Export()
			b.Lines = slices.Delete(b.Lines, 57, 58)
			return scene{bundle: b}
		},
			want(verify.Altered, "event 57: missing: the line that should have index 57 has 58"), want(verify.Altered, "event 57: missing")},
		{"a line is deleted and all after it are renumbered", func(log *auditbundle.Log) scene {
			log.Leaves = slices.Delete(log.Leaves, 57, 58)
			return scene{}
		},
			want(verify.Altered, "events 0 to 1199: not what checkpoint kept-0"), want(verify.Altered, "events 0 to 99:")},
		{"an event is inserted", func(log *auditbundle.Log) scene {
			log.Leaves = slices.Insert(log.Leaves, 57, auditbundle.Sample(2, 57))
			return scene{}
		},
			want(verify.Altered, "events 0 to 1199: not what checkpoint kept-0"), want(verify.Altered, "events 0 to 99:")},
		{"a line is there twice", func(log *auditbundle.Log) scene {
			b := log.Export()
			b.Lines = slices.Insert(b.Lines, 57, b.Lines[56])
			return scene{bundle: b}
		},
			want(verify.Altered, "event 56: out of order: its line stands where index 57 should be", "event 57 (", "event 56 has the same id"), want(verify.Altered, "has the same id")},
		{"two events are swapped", func(log *auditbundle.Log) scene {
			log.Leaves[57], log.Leaves[58] = log.Leaves[58], log.Leaves[57]
			return scene{}
		},
			want(verify.Altered, "events 0 to 1199: not what checkpoint kept-0"), want(verify.Altered, "events 0 to 99:")},
		{"two lines are swapped with their indexes", line(func(_ *auditbundle.Log, lines [][]byte) {
			lines[57], lines[58] = lines[58], lines[57]
		}),
			want(verify.Altered, "event 57: missing", "event 57: out of order"), want(verify.Altered, "event 57: out of order")},
		{"the whole tree is recomputed and signed with another key", func(log *auditbundle.Log) scene {
			forge(log)
			real := log.Keys
			log.Keys = []auditbundle.Key{auditbundle.NewKey(name)}
			log.Resign(log.Keys...)
			return scene{keys: real}
		},
			want(verify.Altered, "altered: events 0 to 1199: not what checkpoint kept-0", "not signed by a trusted key; it proves nothing", "the signing key was replaced"),
			want(verify.Altered, "altered: events 0 to 1999: not covered by a checkpoint of the bundle that a trusted key signed")},
		{"the whole tree is recomputed and its checkpoints are removed", func(log *auditbundle.Log) scene {
			forge(log)
			log.Checkpoints = nil
			return scene{}
		},
			want(verify.Altered, "altered: events 0 to 1199: not what checkpoint kept-0"),
			want(verify.IncompleteExport, "incomplete export: events 0 to 1999: not covered by a signed checkpoint of the bundle")},
		{"the whole tree is recomputed and signed with the log's own key", func(log *auditbundle.Log) scene {
			forge(log)
			log.Resign(log.Keys...)
			return scene{}
		},
			// The forged checkpoints must not narrow down where the fault is.
			want(verify.Altered, "altered: events 0 to 1199: not what checkpoint kept-0", "have different roots"),
			want(verify.SelfConsistent, "self-consistent only: no earlier checkpoint given\n")},
		{"one of the bundle's checkpoints is signed again over an altered event, and the later ones are left", func(log *auditbundle.Log) scene {
			forge(log)
			log.Checkpoints[0] = log.SignAs(1, 100, log.Root(100), log.Keys...)
			return scene{}
		},
			want(verify.Altered, "altered: events 0 to 1199: not what checkpoint kept-0"),
			want(verify.Altered, "events 100 to 199:", "unless the signing key was misused")},
		{"a checkpoint's signature is altered", func(log *auditbundle.Log) scene {
			raw := slices.Clone(log.Checkpoints[3].Note)
			if raw[len(raw)-10]++; raw[len(raw)-10] > 'z' {
				raw[len(raw)-10] = 'A'
			}
			log.Checkpoints[3].Note = raw
			return scene{}
		},
			want(verify.Altered, "checkpoints/1/00000000000000000400"), want(verify.Altered)},
		{"a checkpoint has the name of another size", func(log *auditbundle.Log) scene {
			log.Checkpoints[3].Size++
			return scene{}
		},
			want(verify.Altered, "checkpoints/1/00000000000000000401 of the bundle is of epoch 1 and size 400, which its name does not say"), want(verify.Altered)},
		{"a checkpoint has a fourth line", func(log *auditbundle.Log) scene {
			log.Checkpoints[3].Note = bytes.Replace(log.Checkpoints[3].Note, []byte("\n\n"), []byte("\nmore\n\n"), 1)
			return scene{}
		},
			want(verify.Altered, "not a checkpoint of three lines"), want(verify.Altered)},
		{"two checkpoints of one size are signed with different roots", func(log *auditbundle.Log) scene {
			other := log.SignAs(1, 600, log.Root(599), log.Keys...)
			return scene{checkpoints: []auditbundle.Checkpoint{other}}
		},
			want(verify.Altered, "both signed by a trusted key and have different roots"), want(verify.Altered, "have different roots")},
	})
}
