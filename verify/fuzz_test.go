package verify

import (
	"bytes"
	"encoding/json"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
)

// A line that has no fault is the hash of its event, and the event is one that encoding/json writes the same way.
func FuzzLeafLine(f *testing.F) {
	for i := range uint64(6) {
		f.Add(auditbundle.Line(int(i), auditbundle.Sample(1, i)))
	}
	redacted := auditbundle.Sample(1, 7)
	redacted.Salt, redacted.Detail = nil, nil
	f.Add(auditbundle.Line(7, redacted))
	f.Add([]byte(`{"index":1,"index":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l := readLeaf(raw, false)
		if len(l.faults) > 0 || !l.hasHash {
			return
		}
		var read struct{ Event string }
		if err := json.Unmarshal(raw, &read); err != nil {
			t.Fatalf("encoding/json does not read it: %v", err)
		}
		if l.hash != hash(tlog.RecordHash([]byte(read.Event))) {
			t.Fatal("another hash")
		}
		var e auditbundle.Event
		if err := json.Unmarshal([]byte(read.Event), &e); err != nil {
			t.Fatalf("encoding/json does not read the event: %v", err)
		}
		if again := e.Bytes(); !bytes.Equal(again, []byte(read.Event)) && !bytes.Contains([]byte(read.Event), []byte(`\ufffd`)) {
			t.Fatalf("%s is written as %s", read.Event, again)
		}
		if other := readLeaf(raw, true); other.id != l.id || other.detailGone != l.detailGone {
			t.Fatal("another id when only ids are read")
		}
	})
}

// A note that is read as a checkpoint has the one form of its origin, size and root.
func FuzzCheckpoint(f *testing.F) {
	log := auditbundle.New("example.org/keyherald", 1)
	log.Grow(3, 1)
	for _, c := range log.Checkpoints {
		f.Add(c.Note)
	}
	f.Add(log.SignAs(2, 1<<40, log.Root(3), log.Keys...).Note)
	keys, err := ParseKeys(log.Verifiers())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, in := range SplitNotes("fuzz", raw) {
			c, err := parseCheckpoint(in, "example.org/keyherald")
			if err != nil {
				continue
			}
			text := (auditbundle.Checkpoint{Epoch: int(c.epoch), Size: int(c.size), Root: tlog.Hash(c.root)}).Text("example.org/keyherald")
			if c.size < 1<<62 && c.epoch < 1<<62 && !bytes.HasPrefix(c.raw, []byte(text+"\n")) {
				t.Fatalf("%q was read as %q", c.raw, text)
			}
			if signed, _ := keys[0].signed(c.raw); signed && c.size > 3 && c.size != 1<<40 {
				t.Fatal("a signature was made up")
			}
		}
	})
}

// A proof that verifies is of an event that is in the tree.
func FuzzProof(f *testing.F) {
	log := auditbundle.New("example.org/keyherald", 1)
	log.Grow(13, 13)
	for i := range 13 {
		f.Add(log.Proof(i, log.Checkpoints[0]))
	}
	keys, err := ParseKeys(log.Verifiers())
	if err != nil {
		f.Fatal(err)
	}
	kept := SplitNotes("kept", log.Checkpoints[0].Note)
	f.Fuzz(func(t *testing.T, raw []byte) {
		report, err := Proof(raw, Options{Keys: keys, Checkpoints: kept})
		if err != nil || report.Verdict != Unchanged {
			return
		}
		p, err := parseProof(raw)
		if err != nil {
			t.Fatal(err)
		}
		if p.index > 12 || *p.extra.Event != string(log.Leaves[p.index].Event) {
			t.Fatal("an event was proved that is not there")
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"format":"keyherald-audit-bundle/1","name":"example.org/keyherald","size":3,"epoch":1,"exported_at":1758800000000}`))
	f.Add([]byte(`{"format":"keyherald-audit-bundle/1","name":"a","name":"b","size":3,"epoch":1,"exported_at":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseManifest(raw)
		if err != nil {
			return
		}
		var other manifest
		if err := json.Unmarshal(raw, &other); err != nil || other != m {
			t.Fatalf("encoding/json reads %+v, %v; got %+v", other, err, m)
		}
		if m.Size > maxLeaves || m.Epoch == 0 || m.Name == "" {
			t.Fatalf("got %+v", m)
		}
	})
}

// Whatever a zip file holds, what is read of it beside the leaves is bounded and is what a bundle has.
func FuzzArchive(f *testing.F) {
	log := auditbundle.New("example.org/keyherald", 1)
	log.Grow(1, 1)
	small := log.Export()
	small.Lines = nil
	f.Add(small.Zip())
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := openArchive(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, file := range append(a.checkpoints, a.leaves) {
			if names[file.Name] {
				t.Fatalf("%s is there twice", file.Name)
			}
			names[file.Name] = true
		}
		_, _ = a.ownKeys()
		found := newFindings()
		checkpoints, err := a.readCheckpoints(found)
		if err == nil && len(checkpoints)+len(found.list) < len(a.checkpoints) && len(a.checkpoints) < perCheck {
			t.Fatal("a checkpoint was passed over")
		}
	})
}
