package verify_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
	"github.com/keyherald/keyherald/verify"
)

func TestProofs(t *testing.T) {
	log := newLog()
	at := log.Checkpoints[12]
	good := log.Proof(57, at)
	// rewrite changes what is in a proof's extra data.
	rewrite := func(change func(map[string]string)) []byte {
		lines := strings.SplitN(string(good), "\n", 3)
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
		if err != nil {
			t.Fatal(err)
		}
		fields := map[string]string{}
		if err := json.Unmarshal(raw, &fields); err != nil {
			t.Fatal(err)
		}
		change(fields)
		if raw, err = json.Marshal(fields); err != nil {
			t.Fatal(err)
		}
		return []byte(lines[0] + "\nextra " + base64.StdEncoding.EncodeToString(raw) + "\n" + lines[2])
	}
	other := auditbundle.NewKey(name)
	forged := newLog()
	forged.Leaves[57] = auditbundle.Sample(9, 9)
	forged.Rebuild()

	for _, test := range []struct {
		name  string
		proof []byte
		keys  []auditbundle.Key
		kept  []auditbundle.Checkpoint
		want  expectation
	}{
		{"a proof at the kept checkpoint", good, log.Keys, []auditbundle.Checkpoint{at}, want(verify.Unchanged, "unchanged since example.org/keyherald size 1300\n")},
		{"a proof without a kept checkpoint", good, log.Keys, nil, want(verify.SelfConsistent, "no earlier checkpoint given\n")},
		{"a proof at another size than the kept one", good, log.Keys, log.Checkpoints[:2], want(verify.SelfConsistent, "is the one that the proof stands on")},
		{"a proof at the kept checkpoint as Windows wrote it", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), log.Keys, []auditbundle.Checkpoint{at}, want(verify.Unchanged)},
		{"a proof from another history, signed with the log's key", forged.Proof(57, log.SignAs(1, 1300, forged.Root(1300), log.Keys...)), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "have the same size and different roots")},
		{"a proof whose checkpoint another key signed", log.Proof(57, log.SignAs(1, 1300, log.Root(1300), other)), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "is not signed by a key that you gave, and proves nothing")},
		{"another event than the proof is for", rewrite(func(f map[string]string) { f["event"] = string(log.Leaves[63].Event) }), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "does not lead from this event to the root", "detail and salt are not those")},
		{"a changed event", rewrite(func(f map[string]string) { f["event"] = strings.Replace(f["event"], "lastname.9", "lastname.8", 1) }), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "altered: event 57 (", "does not lead from this event to the root")},
		{"a changed detail", rewrite(func(f map[string]string) { f["detail"] = strings.Replace(f["detail"], "stage", "stagf", 1) }), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "detail and salt are not those that the event commits to")},
		{"a detail without its salt", rewrite(func(f map[string]string) { delete(f, "salt") }), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "it has a salt or a detail without the other")},
		{"no detail", rewrite(func(f map[string]string) { delete(f, "salt"); delete(f, "detail") }), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Unchanged, "remark: event 57 (", "whether it was redacted is shown by a bundle")},
		{"another index", bytes.Replace(good, []byte("\nindex 57\n"), []byte("\nindex 56\n"), 1), log.Keys, []auditbundle.Checkpoint{at},
			want(verify.Altered, "does not lead from this event to the root")},
		{"an index beyond the log", bytes.Replace(good, []byte("\nindex 57\n"), []byte("\nindex 5700\n"), 1), log.Keys, []auditbundle.Checkpoint{at}, want(verify.Altered)},
	} {
		t.Run(test.name, func(t *testing.T) {
			report, err := verify.Proof(test.proof, scene{keys: test.keys, checkpoints: test.kept}.options(t))
			if err != nil {
				t.Fatal(err)
			}
			checkReport(t, report, test.want)
		})
	}

	for name, text := range map[string][]byte{
		"empty":                    nil,
		"no proof":                 []byte("Dear auditor\n"),
		"cut":                      good[:len(good)/2],
		"without extra data":       append([]byte("c2sp.org/tlog-proof@v1\n"), good[bytes.Index(good, []byte("index")):]...),
		"an index with zeros":      bytes.Replace(good, []byte("\nindex 57\n"), []byte("\nindex 057\n"), 1),
		"of another log":           bytes.ReplaceAll(good, []byte("\nexample.org/keyherald\n"), []byte("\nexample.org/other\n")),
		"extra data of no event":   rewrite(func(f map[string]string) { delete(f, "event") }),
		"extra data with a field":  rewrite(func(f map[string]string) { f["note"] = "x" }),
		"larger than a proof is":   append(bytes.Clone(good), make([]byte, verify.MaxProof)...),
		"a hash that is too short": bytes.Replace(good, []byte("=\n\n"), []byte("\n\n"), 1),
	} {
		if report, err := verify.Proof(text, scene{keys: log.Keys}.options(t)); err == nil {
			t.Errorf("%s: there is a verdict: %s", name, report.Headline)
		}
	}
}

// A detail may be longer than the lines that the library for proofs reads.
func TestAProofOfAnEventWithALongDetail(t *testing.T) {
	log := auditbundle.New(name, 1)
	log.Add(5)
	index := log.Say("delivery.reported", "@alice:example.org", "reported_by_device", map[string]any{"devices": strings.Repeat("ABCDEFGHIJ ", 20_000)})
	at := log.Sign()
	report, err := verify.Proof(log.Proof(index, at), scene{keys: log.Keys, checkpoints: []auditbundle.Checkpoint{at}}.options(t))
	if err != nil {
		t.Fatal(err)
	}
	checkReport(t, report, want(verify.Unchanged))
}

func TestEveryEventOfATreeOfEverySizeCanBeProved(t *testing.T) {
	for size := 1; size <= 33; size++ {
		log := auditbundle.New(name, uint64(size))
		log.Add(size)
		at := log.Sign()
		for index := range size {
			report, err := verify.Proof(log.Proof(index, at), scene{keys: log.Keys, checkpoints: log.Checkpoints}.options(t))
			if err != nil || report.Verdict != verify.Unchanged {
				t.Fatal(fmt.Sprintf("event %d of %d", index, size), report, err)
			}
		}
	}
}
