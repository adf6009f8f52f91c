package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/keyheraldtest/auditbundle"
)

func TestWhereACheckpointStands(t *testing.T) {
	// Epoch 1 has 100 events, of 300 that were published. Epoch 2 went on to 200, of 250. Epoch 3 was lost as a whole.
	log := segments([]loss{
		{place: place{index: 100}, epoch: 2, rememberedEpoch: 1, rememberedSize: 300},
		{place: place{index: 200}, epoch: 4, rememberedEpoch: 3, rememberedSize: 280},
	}, 400)
	for _, test := range []struct {
		name        string
		epoch, size uint64
		want        standing
	}{
		{"no events", 1, 0, within},
		{"an event of the first epoch", 1, 1, within},
		{"all of the first epoch that is left", 1, 100, within},
		{"the first that is lost of it", 1, 101, lostDeclared},
		{"the last that is lost of it", 1, 300, lostDeclared},
		{"more than was declared lost of it", 1, 301, lostUndeclared},
		{"the second epoch before it began", 2, 100, beforeItsEpoch},
		{"the loss that begins the second epoch", 2, 101, within},
		{"all of the second epoch that is left", 2, 200, within},
		{"what is lost of it", 2, 201, lostDeclared},
		{"what is lost of it, however much, since a later epoch was remembered", 2, 9000, lostDeclared},
		{"what the epoch that is lost took over", 3, 200, within},
		{"what is lost of the epoch that is lost", 3, 280, lostDeclared},
		{"more than was declared lost of it, again", 3, 281, lostUndeclared},
		{"the last epoch before it began", 4, 200, beforeItsEpoch},
		{"all there is", 4, 400, within},
		{"more than there is", 4, 401, beyond},
		{"an epoch that has not come", 5, 10, laterEpoch},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, _ := stand(test.epoch, test.size, log); got != test.want {
				t.Errorf("epoch %d size %d: got %d, want %d", test.epoch, test.size, got, test.want)
			}
		})
	}
}

func TestASetOfIDsFindsEachThatComesTwiceInAsManyPartsAsItTakes(t *testing.T) {
	const slots, n = 4096, 20_000
	ids := make([]eventID, n)
	for i := range ids {
		var ok bool
		sample := auditbundle.Sample(3, uint64(i))
		if ids[i], ok = parseID(sample.ID()); !ok {
			t.Fatal(sample.ID())
		}
	}
	twice := []int{0, 1, 777, 19_998}
	for _, i := range twice {
		ids = append(ids, ids[i])
	}
	set := newIDSet(uint64(len(ids)), slots)
	if set.parts < 5 || len(set.slots) != slots {
		t.Fatalf("%d parts of %d slots", set.parts, len(set.slots))
	}
	var found []eventID
	for more := true; more; more = set.next() {
		for _, id := range ids {
			if set.add(id) {
				found = append(found, id)
			}
		}
	}
	for _, i := range twice {
		if !slices.Contains(found, ids[i]) {
			t.Errorf("id %d was not found", i)
		}
	}
	if len(found) != len(twice) {
		t.Errorf("%d were found, want %d", len(found), len(twice))
	}
}

func TestALogTooLargeForTheSetOfIDsIsGoneThroughAgain(t *testing.T) {
	log := auditbundle.New("example.org/keyherald", 1)
	log.Grow(9000, 9000)
	log.Leaves[8999] = log.Leaves[57]
	log.Rebuild()
	log.Resign(log.Keys...)
	raw := log.Export().Zip()
	keys, err := ParseKeys(log.Verifiers())
	if err != nil {
		t.Fatal(err)
	}
	report, err := bundle(t.Context(), bytes.NewReader(raw), int64(len(raw)), Options{Keys: keys}, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if report.Verdict != Altered || len(report.Findings) != 1 || *report.Findings[0].First != 8999 {
		t.Errorf("got %+v", report)
	}
}

func TestLeavesComeInTheirOrderHoweverTheyAreRead(t *testing.T) {
	var text bytes.Buffer
	const n = 5000
	for i := range n {
		fmt.Fprintf(&text, `{"index":%d,"leaf_hash":"%s"}`+"\n", i, strings.Repeat("x", i%900))
	}
	whole := bytes.TrimSuffix(text.Bytes(), []byte("\n"))
	for name, reader := range map[string]io.Reader{
		"at once": bytes.NewReader(whole), "by halves": iotest.HalfReader(bytes.NewReader(whole)), "with the error at the end": iotest.DataErrReader(bytes.NewReader(whole)),
	} {
		next := uint64(0)
		err := eachLeaf(t.Context(), reader, false, func(l *leaf) error {
			if l.index != next {
				t.Fatalf("%s: got %d, want %d", name, l.index, next)
			}
			next++
			return nil
		})
		if err != nil || next != n {
			t.Errorf("%s: %d leaves, %v", name, next, err)
		}
	}
}

func TestReadingEndsWhereItFails(t *testing.T) {
	full := errors.New("the disk is gone")
	line := []byte(`{"index":0,"leaf_hash":""}` + "\n")
	for _, test := range []struct {
		name string
		from io.Reader
		take func(*leaf) error
		want error
	}{
		{"in the reader", io.MultiReader(bytes.NewReader(line), iotest.ErrReader(full)), func(*leaf) error { return nil }, full},
		{"in what takes the leaves", bytes.NewReader(bytes.Repeat(line, 100_000)), func(*leaf) error { return full }, full},
	} {
		if err := eachLeaf(t.Context(), test.from, false, test.take); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := eachLeaf(ctx, bytes.NewReader(bytes.Repeat(line, 100_000)), false, func(*leaf) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// The strict form is exactly what encoding/json writes: what is accepted is written the same way again, and what it
// writes is accepted.
func TestTheCanonicalFormIsWhatEncodingJSONWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := event{V: 1, ID: "01997ab0-5300-73cf-94ef-cfd0682e2097", Time: rapid.Int64Min(1).Draw(t, "time"), Actor: rapid.StringN(1, -1, -1).Draw(t, "actor"),
			Action: "notification.accepted", Subject: string(rapid.SliceOf(rapid.Byte()).Draw(t, "subject")), Outcome: "accepted",
			Commitment: strings.Repeat("A", 43)}
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		// One byte that is no UTF-8 beside the character that stands for such is the one mixture that is not told apart.
		if strings.Contains(text, `\ufffd`) && strings.Contains(text, "\ufffd") {
			t.Skip("a mixture")
		}
		if l := checkLeaf(line{Event: &text}, false); len(l.faults) > 0 {
			t.Fatalf("%s: %v", text, l.faults)
		}
	})
}

func TestNotesAreTakenApart(t *testing.T) {
	log := auditbundle.New("example.org/keyherald", 1)
	log.Grow(3, 1)
	a, b, c := string(log.Checkpoints[0].Note), string(log.Checkpoints[1].Note), string(log.Checkpoints[2].Note)
	for name, text := range map[string]string{
		"one behind the other": a + b + c, "with empty lines between": "\n" + a + "\n" + b + "\n\n\n" + c + "\n",
		"with the line ends of Windows": "\ufeff" + strings.ReplaceAll(a+"\n"+b+"\n"+c, "\n", "\r\n"), "without an end": strings.TrimSuffix(a+b+c, "\n"),
	} {
		notes := SplitNotes("file", []byte(text))
		if len(notes) != 3 || string(notes[0].Raw) != a || string(notes[1].Raw) != b || string(notes[2].Raw) != c || notes[1].Source != "file, note 2" {
			t.Errorf("%s: got %q", name, notes)
		}
	}
	if notes := SplitNotes("f\x1bile", []byte(a)); len(notes) != 1 || notes[0].Source != "f?ile" || string(notes[0].Raw) != a {
		t.Errorf("alone: got %q", notes)
	}
	if notes := SplitNotes("file", []byte("\n\n")); len(notes) != 0 {
		t.Errorf("none: got %q", notes)
	}
}

func TestKeyFiles(t *testing.T) {
	one, two, other := auditbundle.NewKey("example.org/keyherald"), auditbundle.NewKey("example.org/keyherald"), auditbundle.NewKey("example.org/other")
	for _, test := range []struct {
		name, text string
		keys       int
		says       string
	}{
		{"one key", one.Verifier + "\n", 1, ""},
		{"two keys, a comment, and the line ends of Windows", "\ufeff# handed over in May\r\n" + one.Verifier + "\r\n\r\n" + two.Verifier + "\r\n", 2, ""},
		{"no key", "\n# none\n", 0, "there is no verifier key in it"},
		{"keys of two logs", one.Verifier + "\n" + other.Verifier + "\n", 0, `line 2: the key is of the log "example.org/other"`},
		{"a private key", "PRIVATE+KEY+example.org/keyherald+0+0\n", 0, "private signing key"},
		{"something else", "hello\n", 0, "line 1: this is no verifier key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(test.text))
			if len(keys) != test.keys || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %d keys, %v", len(keys), err)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("the error repeats the key: %v", err)
			}
		})
	}
}

func TestOrigins(t *testing.T) {
	for _, test := range []struct {
		origin string
		epoch  uint64
		ok     bool
	}{
		{"a", 1, true}, {"a/epoch/2", 2, true}, {"a/epoch/18446744073709551615", 1<<64 - 1, true},
		{"a/epoch/1", 0, false}, {"a/epoch/0", 0, false}, {"a/epoch/02", 0, false}, {"a/epoch/+2", 0, false}, {"a/epoch/", 0, false},
		{"a/epoch/18446744073709551616", 0, false}, {"b", 0, false}, {"a/epoch/2/epoch/2", 0, false}, {"", 0, false},
	} {
		epoch, ok := epochOf(test.origin, "a")
		if ok != test.ok || ok && (epoch != test.epoch || originOf("a", epoch) != test.origin) {
			t.Errorf("%s: got %d, %v", test.origin, epoch, ok)
		}
	}
}

// The gravest finding decides, and every verdict has a code of its own.
func TestGravity(t *testing.T) {
	codes := map[int]Verdict{}
	for i, v := range gravity[1:] {
		if other, taken := codes[v.ExitCode()]; taken || v.ExitCode() == 1 || v.ExitCode() == 2 {
			t.Errorf("%s and %s have code %d", v, other, v.ExitCode())
		}
		codes[v.ExitCode()] = v
		for _, less := range gravity[:i+1] {
			found := newFindings()
			found.about(less, "a", "less")
			found.at(v, "b", 7, "", "more")
			found.about(less, "c", "less")
			var r Report
			r.conclude(found, &checkpoint{size: 1}, "")
			if r.Verdict != v || r.ExitCode != v.ExitCode() {
				t.Errorf("%s beside %s: %s", v, less, r.Headline)
			}
		}
	}
}
