package verify

import (
	"cmp"
	"fmt"
	"slices"
)

// Verdict is what is made of a log, or of one finding in it.
type Verdict string

// The verdicts, from the best to the gravest. docs/verifying.md says what each one means for an auditor.
const (
	Unchanged        Verdict = "unchanged"
	SelfConsistent   Verdict = "self-consistent only"
	DeclaredGap      Verdict = "declared gap"
	IncompleteExport Verdict = "incomplete export"
	RolledBack       Verdict = "rolled back"
	Altered          Verdict = "altered"
)

// remark is the verdict of a finding that changes nothing.
const remark Verdict = "remark"

var gravity = []Verdict{remark, Unchanged, SelfConsistent, DeclaredGap, IncompleteExport, RolledBack, Altered}

// ExitCode is what the program ends with: 0 for Unchanged, 3 to 7 for the others. 1 and 2 are not verdicts: 2 is bad
// usage or unreadable input.
func (v Verdict) ExitCode() int {
	switch v {
	case Unchanged:
		return 0
	case SelfConsistent:
		return 3
	case DeclaredGap:
		return 4
	case IncompleteExport:
		return 5
	case RolledBack:
		return 6
	}
	return 7
}

func (v Verdict) graverThan(other Verdict) bool {
	return slices.Index(gravity, v) > slices.Index(gravity, other)
}

// notProofOfUse ends every output.
const notProofOfUse = `"sent" in this log is not proof of use: clients do not acknowledge a push.`

// Finding is one thing that was found, with its place. Foreign text in it is quoted, so that it is one line and cannot
// pass for the verifier's own.
type Finding struct {
	// Verdict is what this finding alone would make of the log; "remark" where it changes nothing.
	Verdict Verdict `json:"verdict"`
	// Check names what was looked at, in one word or two.
	Check string `json:"check"`
	// First and Last are the leaf indexes that the finding is about, both included.
	First *uint64 `json:"first,omitempty"`
	Last  *uint64 `json:"last,omitempty"`
	// Event is the id of the event at First, where it is one event.
	Event string `json:"event,omitempty"`
	Text  string `json:"text"`
}

func (f Finding) String() string {
	place := ""
	switch {
	case f.First == nil:
	case *f.First == *f.Last && f.Event != "":
		place = fmt.Sprintf("event %d (%s): ", *f.First, f.Event)
	case *f.First == *f.Last:
		place = fmt.Sprintf("event %d: ", *f.First)
	default:
		place = fmt.Sprintf("events %d to %d: ", *f.First, *f.Last)
	}
	return place + f.Text
}

// Named is a checkpoint, as a report names it.
type Named struct {
	// Source is the file it is from.
	Source string `json:"source"`
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	// Root is base64.
	Root string `json:"root"`
}

// Counts is what was checked.
type Counts struct {
	Leaves   uint64 `json:"leaves"`
	Bodies   uint64 `json:"bodies_rehashed"`
	Details  uint64 `json:"details_checked"`
	Redacted uint64 `json:"details_redacted"`
	// Checkpoints are those of the bundle (or the one of the proof), and how many of them a trusted key signed.
	Checkpoints       int `json:"checkpoints"`
	CheckpointsSigned int `json:"checkpoints_signed_by_trusted_key"`
	// Earlier are the checkpoints that were given, and how many of them are signed by a trusted key and match.
	Earlier        int `json:"earlier_checkpoints"`
	EarlierMatched int `json:"earlier_checkpoints_matched"`
	Epochs         int `json:"epochs"`
	KeyChanges     int `json:"signing_key_changes"`
}

// Report is the result of a verification.
type Report struct {
	Verdict  Verdict `json:"verdict"`
	ExitCode int     `json:"exit_code"`
	// Headline is the verdict with its place, one line.
	Headline string `json:"headline"`
	// Kind is "bundle" or "proof".
	Kind string `json:"kind"`
	// Log is the log's name, Size and Epoch are where it ends in what was given.
	Log   string `json:"log"`
	Size  uint64 `json:"size"`
	Epoch uint64 `json:"epoch"`
	// Since is the newest of the earlier checkpoints that match.
	Since    *Named    `json:"since,omitempty"`
	Checked  Counts    `json:"checked"`
	Findings []Finding `json:"findings"`
	Closing  string    `json:"closing"`
}

// findings keeps what was found, in memory that does not grow with the log: of each check the first few, and a count.
type findings struct {
	list  []Finding
	count map[string]int
}

const perCheck = 20

func newFindings() *findings { return &findings{count: map[string]int{}} }

func (f *findings) add(found Finding) {
	key := string(found.Verdict) + found.Check
	if f.count[key]++; f.count[key] <= perCheck {
		f.list = append(f.list, found)
	}
}

// at adds a finding about one leaf.
func (f *findings) at(verdict Verdict, check string, index uint64, event, format string, args ...any) {
	f.add(Finding{Verdict: verdict, Check: check, First: &index, Last: &index, Event: event, Text: fmt.Sprintf(format, args...)})
}

// between adds a finding about the leaves from first to last.
func (f *findings) between(verdict Verdict, check string, first, last uint64, format string, args ...any) {
	f.add(Finding{Verdict: verdict, Check: check, First: &first, Last: &last, Text: fmt.Sprintf(format, args...)})
}

// about adds a finding about no leaf.
func (f *findings) about(verdict Verdict, check, format string, args ...any) {
	f.add(Finding{Verdict: verdict, Check: check, Text: fmt.Sprintf(format, args...)})
}

// sorted is the list with the gravest first, and for each check a word on what was left out.
func (f *findings) sorted() []Finding {
	list := append([]Finding{}, f.list...)
	for i := len(list) - 1; i >= 0; i-- {
		key := string(list[i].Verdict) + list[i].Check
		if more := f.count[key] - perCheck; more > 0 {
			f.count[key] = 0
			list = slices.Insert(list, i+1, Finding{Verdict: list[i].Verdict, Check: list[i].Check, Text: fmt.Sprintf("and %d more findings like these", more)})
		}
	}
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Compare(slices.Index(gravity, b.Verdict), slices.Index(gravity, a.Verdict))
	})
	return list
}

// conclude fills in verdict, headline and exit code. since is nil where no earlier checkpoint counts, and why says why.
func (r *Report) conclude(found *findings, since *checkpoint, why string) {
	r.Findings = found.sorted()
	r.Closing = notProofOfUse
	r.Verdict = SelfConsistent
	if since != nil {
		r.Verdict, r.Since = Unchanged, since.named()
	}
	if len(r.Findings) > 0 && r.Findings[0].Verdict.graverThan(r.Verdict) {
		r.Verdict = r.Findings[0].Verdict
	}
	switch r.Verdict {
	case Unchanged:
		r.Headline = fmt.Sprintf("unchanged since %s size %d", quoted(since.origin), since.size)
	case SelfConsistent:
		r.Headline = "self-consistent only: " + why
	default:
		r.Headline = string(r.Verdict) + ": " + r.Findings[0].String()
	}
	r.ExitCode = r.Verdict.ExitCode()
}
