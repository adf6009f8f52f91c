package verify_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

// Whatever is done to the bytes of the leaves that a kept checkpoint covers, the log is not unchanged. What may change
// is what JSON does not see: the same leaf in other bytes.
func TestNoChangeToTheLeavesPassesForUnchanged(t *testing.T) {
	log := auditbundle.New(name, 7)
	log.Grow(60, 20)
	log.Redact(11)
	log.Sign()
	whole := log.Export()
	options := scene{keys: log.Keys, checkpoints: log.Checkpoints[len(log.Checkpoints)-1:]}.options(t)
	text := bytes.Join(whole.Lines, nil)
	rapid.Check(t, func(t *rapid.T) {
		changed := mutate(t, text)
		b := *whole
		b.Lines = [][]byte{changed}
		raw := b.Zip()
		report, err := verify.Bundle(t.Context(), bytes.NewReader(raw), int64(len(raw)), options)
		if err != nil {
			t.Fatal(err)
		}
		if report.Verdict == verify.Altered || report.Verdict == verify.IncompleteExport {
			return
		}
		if report.Verdict != verify.Unchanged || !reflect.DeepEqual(meaning(t, changed), meaning(t, text)) {
			t.Fatalf("%s, though these lines were changed:\n%s", report.Headline, difference(text, changed))
		}
	})
}

// mutate makes one change: a byte, a bit, a piece that is dropped, doubled, moved, or put in.
func mutate(t *rapid.T, text []byte) []byte {
	changed := bytes.Clone(text)
	at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
	to := min(at+rapid.IntRange(1, 900).Draw(t, "length"), len(text))
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0:
		changed[at] = rapid.Byte().Draw(t, "byte")
	case 1:
		changed[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	case 2:
		changed = slices.Delete(changed, at, to)
	case 3:
		changed = slices.Insert(changed, at, bytes.Clone(changed[at:to])...)
	case 4:
		piece := bytes.Clone(changed[at:to])
		changed = slices.Delete(changed, at, to)
		changed = slices.Insert(changed, rapid.IntRange(0, len(changed)).Draw(t, "where"), piece...)
	case 5:
		changed = slices.Insert(changed, at, rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "bytes")...)
	}
	return changed
}

// meaning is what the lines say to encoding/json, which is not what the verifier reads them with.
func meaning(t *rapid.T, text []byte) []map[string]any {
	var lines []map[string]any
	for line := range bytes.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("unchanged with a line that is no JSON: %v", err)
		}
		lines = append(lines, fields)
	}
	return lines
}

func difference(old, new []byte) string {
	a, b := strings.SplitAfter(string(old), "\n"), strings.SplitAfter(string(new), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return a[i] + b[i]
		}
	}
	return "the number of lines"
}

// The programs share docs/audit-log.md and no code: what the server seals is in the form that the verifier demands.
func TestWhatTheServerSealsVerifies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := auditbundle.New(name, 1)
		for range rapid.IntRange(1, 20).Draw(t, "events") {
			sealed, err := audit.Event{
				Time:     time.UnixMilli(rapid.Int64Range(1, 1<<42).Draw(t, "ms")),
				Actor:    audit.BySource(audit.SourceName(rapid.StringN(1, 40, 200).Draw(t, "source"))),
				Action:   audit.NotificationAccepted,
				Subject:  audit.OfUser(id.UserID("@" + rapid.String().Draw(t, "user") + ":example.org")),
				Rotation: uuid.New(),
				Outcome:  audit.Accepted,
				Detail:   audit.Detail{audit.ID("path", audit.KMSPath(rapid.String().Draw(t, "path"))), audit.ID("version", audit.KMSVersion(rapid.String().Draw(t, "version")))},
			}.Seal()
			if err != nil {
				t.Fatal(err)
			}
			log.Take(auditbundle.Leaf{Event: sealed.Body, Salt: sealed.Salt, Detail: sealed.Detail})
		}
		at := log.Sign()
		raw := log.Export().Zip()
		keys, err := verify.ParseKeys(log.Verifiers())
		if err != nil {
			t.Fatal(err)
		}
		report, err := verify.Bundle(t.Context(), bytes.NewReader(raw), int64(len(raw)), verify.Options{Keys: keys, Checkpoints: []verify.Note{{Source: "kept", Raw: at.Note}}})
		if err != nil || report.Verdict != verify.Unchanged {
			t.Fatal(report, err)
		}
	})
}
