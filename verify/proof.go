package verify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	tlogproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// MaxProof bounds a proof file, in bytes.
const MaxProof = 8 << 20

// extra is a proof's extra data.
type extra struct {
	Event  *string `json:"event"`
	Salt   *string `json:"salt"`
	Detail *string `json:"detail"`
}

// inclusion is a proof file, taken apart.
type inclusion struct {
	index      uint64
	hashes     [][]byte
	checkpoint []byte
	extra      extra
}

// Proof verifies a C2SP tlog-proof of one event. An error is bad usage or unreadable input: then there is no verdict. The
// proof stands on one checkpoint: the verdict is Unchanged where an earlier one that was given is that very one.
func Proof(text []byte, options Options) (*Report, error) {
	if options.TrustBundleKey {
		return nil, errors.New("a proof has no key with it: give the log's key")
	}
	if len(options.Keys) == 0 {
		return nil, errors.New("no verifier key is given")
	}
	name := options.Keys[0].name()
	p, err := parseProof(text)
	if err != nil {
		return nil, err
	}
	found := newFindings()
	report := &Report{Kind: "proof", Log: name, Checked: Counts{Leaves: 1, Checkpoints: 1, Earlier: len(options.Checkpoints), Epochs: 1}}
	c, err := parseCheckpoint(Note{Source: "the proof's checkpoint", Raw: p.checkpoint}, name)
	if err != nil {
		return nil, fmt.Errorf("the proof's checkpoint: %w", err)
	}
	report.Size, report.Epoch = c.size, c.epoch

	l := checkLeaf(line{Event: p.extra.Event, Salt: p.extra.Salt, Detail: p.extra.Detail}, false)
	id := ""
	if l.hasID {
		id = l.id.String()
	}
	for _, fault := range l.faults {
		found.at(Altered, fault.check, p.index, id, "%s", fault.text)
	}
	if l.hasHash {
		report.Checked.Bodies = 1
	}
	if l.detailChecked {
		report.Checked.Details = 1
	}
	if l.detailGone {
		found.at(remark, "detail", p.index, id, "the proof has no detail: whether it was redacted is shown by a bundle")
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.index, c.size, l.hash[:], p.hashes, c.root[:]); err != nil {
		found.at(Altered, "inclusion", p.index, id, "the proof does not lead from this event to the root of checkpoint %s: %s", c, oneLine(err))
	}

	given := earlier(options.Checkpoints, name, found)
	t := newTrust(options.Keys, nil)
	t.signatures(append([]*checkpoint{c}, given...))
	if c.wrong != nil || len(c.signers) == 0 {
		found.at(Altered, "signature", p.index, id, "%s is not signed by a key that you gave, and proves nothing", c)
	} else {
		report.Checked.CheckpointsSigned = 1
	}
	since := compareGiven(c, given, &report.Checked, found)
	why := "no earlier checkpoint given"
	if len(given) > 0 {
		why = "no earlier checkpoint given is the one that the proof stands on; a bundle can be compared with each of them"
	}
	report.conclude(found, since, why)
	return report, nil
}

// compareGiven looks for the proof's own checkpoint among the given ones.
func compareGiven(c *checkpoint, given []*checkpoint, counts *Counts, found *findings) *checkpoint {
	var since *checkpoint
	for _, g := range given {
		switch {
		case g.wrong != nil:
			found.about(remark, "signature", "checkpoint %s has a wrong signature; it proves nothing", g)
		case len(g.signers) == 0:
			found.about(remark, "signature", "checkpoint %s is not signed by a trusted key; it proves nothing", g)
		case g.epoch != c.epoch || g.size != c.size:
		case g.root != c.root:
			found.about(Altered, "two histories", "checkpoints %s and %s have the same size and different roots", c, g)
		case g.size > 0:
			counts.EarlierMatched++
			since = g
		}
	}
	return since
}

func parseProof(text []byte) (*inclusion, error) {
	if len(text) > MaxProof {
		return nil, fmt.Errorf("it is longer than %d bytes", MaxProof)
	}
	header, rest, _ := bytes.Cut(unixLines(text), []byte("\n"))
	encoded, rest, _ := bytes.Cut(rest, []byte("\n"))
	encoded, hasExtra := bytes.CutPrefix(encoded, []byte("extra "))
	if !hasExtra {
		return nil, errors.New("it is no proof of an event: a C2SP tlog-proof with the event as its extra data is expected")
	}
	// The library reads lines of up to 64 KiB, and a detail may be longer: it gets the proof without the extra data.
	var parsed tlogproof.TLogProof
	bare := bytes.Join([][]byte{header, rest}, []byte("\n"))
	if err := parsed.Unmarshal(bare); err != nil {
		return nil, errors.New(oneLine(err))
	}
	if !bytes.Equal(parsed.Marshal(), bare) {
		return nil, errors.New("it is not written as a C2SP tlog-proof is")
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(string(encoded))
	if err != nil {
		return nil, errors.New("its extra data is not base64")
	}
	p := &inclusion{index: parsed.Index, checkpoint: parsed.Checkpoint}
	if err := json.Unmarshal(decoded, &p.extra, strict); err != nil {
		return nil, fmt.Errorf("its extra data is not the JSON object of an event: %s", oneLine(err))
	}
	if p.extra.Event == nil {
		return nil, errors.New("its extra data has no event")
	}
	for i := range parsed.Hashes {
		p.hashes = append(p.hashes, parsed.Hashes[i][:])
	}
	return p, nil
}
