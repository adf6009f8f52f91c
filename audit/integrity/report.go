// Package integrity verifies the audit log where it is: it hashes every event in the database anew, builds the tree over
// them, and holds stored hashes, nodes and checkpoints against it, and what the sinks outside remember.
//
// It is built on the code that writes the log, so a mistake in that is a mistake here. keyherald-verify has code of its own
// and is what an auditor trusts; the verdicts and exit codes are the same.
package integrity

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/keyherald/keyherald/audit/checkpoint"
)

// Verdict is what is made of a log, or of one finding in it.
type Verdict string

// The verdicts, from the best to the gravest, and Remark for a finding that changes nothing.
const (
	Remark         Verdict = "remark"
	Unchanged      Verdict = "unchanged"
	SelfConsistent Verdict = "self-consistent only"
	DeclaredGap    Verdict = "declared gap"
	RolledBack     Verdict = "rolled back"
	Altered        Verdict = "altered"
)

var gravity = []Verdict{Remark, Unchanged, SelfConsistent, DeclaredGap, RolledBack, Altered}

// ExitCode is what `keyherald audit verify` ends with; keyherald-verify's 5, an incomplete export, does not come here.
func (v Verdict) ExitCode() int {
	switch v {
	case Unchanged:
		return 0
	case SelfConsistent:
		return 3
	case DeclaredGap:
		return 4
	case RolledBack:
		return 6
	}
	return 7
}

// Closing ends every report.
const Closing = "This was computed on the machine that runs the log, by the program that writes it. What does not depend on either is " +
	"keyherald-verify, with a bundle (`keyherald audit export --format bundle`) and a checkpoint that the auditor kept."

// Finding is one thing that was found. First and Last are leaf indexes, both included, -1 where it is about no leaf.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Check   string  `json:"check"`
	First   int64   `json:"first"`
	Last    int64   `json:"last"`
	Event   string  `json:"event,omitempty"`
	Text    string  `json:"text"`
}

func (f Finding) String() string {
	switch {
	case f.First < 0:
		return f.Text
	case f.First == f.Last && f.Event != "":
		return fmt.Sprintf("event %d (%s): %s", f.First, f.Event, f.Text)
	case f.First == f.Last:
		return fmt.Sprintf("event %d: %s", f.First, f.Text)
	}
	return fmt.Sprintf("events %d to %d: %s", f.First, f.Last, f.Text)
}

// Named is a checkpoint as a report names it.
type Named struct {
	Where  string `json:"where"`
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
}

// Counts is what was checked.
type Counts struct {
	Leaves      int64 `json:"leaves"`
	Details     int64 `json:"details_checked"`
	Redacted    int64 `json:"details_redacted"`
	Nodes       int64 `json:"nodes"`
	Checkpoints int64 `json:"checkpoints"`
	// Earlier are the checkpoints from outside the database, and how many of them match.
	Earlier        int `json:"earlier_checkpoints"`
	EarlierMatched int `json:"earlier_checkpoints_matched"`
	// Unsealed are the events that no checkpoint covers yet: nothing is said of them.
	Unsealed int64 `json:"unsealed"`
}

// Report is the result.
type Report struct {
	Verdict  Verdict `json:"verdict"`
	ExitCode int     `json:"exit_code"`
	Headline string  `json:"headline"`
	Log      string  `json:"log"`
	Size     int64   `json:"size"`
	Epoch    int     `json:"epoch"`
	// Since is the newest checkpoint from outside that matches.
	Since    *Named    `json:"since,omitempty"`
	Checked  Counts    `json:"checked"`
	Findings []Finding `json:"findings"`
	Closing  string    `json:"closing"`
}

// perCheck is how many findings of a kind are kept.
const perCheck = 20

// findings keeps of each kind the first few, and a count.
type findings struct {
	list  []Finding
	count map[kind]int
}

type kind struct {
	verdict Verdict
	check   string
}

func (f *findings) add(verdict Verdict, check string, first, last int64, event, format string, args ...any) {
	if f.count == nil {
		f.count = map[kind]int{}
	}
	if of := (kind{verdict, check}); f.count[of] < perCheck {
		f.list = append(f.list, Finding{verdict, check, first, last, event, fmt.Sprintf(format, args...)})
	}
	f.count[kind{verdict, check}]++
}

func (f *findings) about(verdict Verdict, check, format string, args ...any) {
	f.add(verdict, check, -1, -1, "", format, args...)
}

// conclude fills in verdict, headline and exit code.
func (r *Report) conclude(f findings, since *Earlier) {
	for of, n := range f.count {
		if more := n - perCheck; more > 0 {
			f.list = append(f.list, Finding{of.verdict, of.check, -1, -1, "", fmt.Sprintf("and %d more findings like these (%s)", more, of.check)})
		}
	}
	slices.SortStableFunc(f.list, func(a, b Finding) int {
		return cmp.Compare(slices.Index(gravity, b.Verdict), slices.Index(gravity, a.Verdict))
	})
	r.Findings, r.Closing, r.Verdict = f.list, Closing, SelfConsistent
	if since != nil {
		r.Verdict = Unchanged
		r.Since = &Named{since.Where, checkpoint.Origin(r.Log, since.Epoch), since.Size}
	}
	if len(f.list) > 0 && slices.Index(gravity, f.list[0].Verdict) > slices.Index(gravity, r.Verdict) {
		r.Verdict = f.list[0].Verdict
	}
	switch r.Verdict {
	case Unchanged:
		r.Headline = fmt.Sprintf("unchanged since %s size %d, which %s has", r.Since.Origin, r.Since.Size, r.Since.Where)
	case SelfConsistent:
		r.Headline = "self-consistent only: no earlier checkpoint given"
	default:
		r.Headline = string(r.Verdict) + ": " + f.list[0].String()
	}
	r.ExitCode = r.Verdict.ExitCode()
}
