// Package rotation is what a rotation is: its states, how a report moves it, when it is done, which device acts, and
// what each cause of needs_attention asks of whom. It is pure: the rules are tables, and everybody else asks them.
//
// A rotation is one per (user, secret, KMS path, version) and has attempts, one per trigger sent to a device. Reports
// may come late, twice, or from an older attempt; the stage shown is the highest seen.
package rotation

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyherald/keyherald/protocol"
)

// State is where a rotation stands.
type State string

// The states of a rotation. The last five are ends: nothing moves a rotation out of them but a retry (Retryable).
const (
	Received             State = "received"
	WaitingForEnrollment State = "waiting_for_enrollment"
	Working              State = "working"
	Done                 State = "done"
	Failed               State = "failed"
	Superseded           State = "superseded"
	TimedOut             State = "timed_out"
	Cancelled            State = "cancelled"
)

// Ended reports whether nothing more will happen by itself.
func (s State) Ended() bool {
	switch s {
	case Done, Failed, Superseded, TimedOut, Cancelled:
		return true
	}
	return false
}

// transitions are the moves that exist; Allowed asks this table.
var transitions = map[State][]State{
	Received:             {WaitingForEnrollment, Working, Done, Superseded, TimedOut, Cancelled},
	WaitingForEnrollment: {Working, Done, Superseded, TimedOut, Cancelled},
	// Back to Received when its device was revoked, or somebody asks for another attempt.
	Working: {Received, WaitingForEnrollment, Done, Failed, Superseded, TimedOut, Cancelled},
	// By a retry alone.
	Failed:    {Received},
	TimedOut:  {Received},
	Cancelled: {Received},
}

// Retryable reports whether another attempt may be asked for: whatever is open or came to nothing. What is done, or
// was overtaken by a newer version, is not done again.
func (s State) Retryable() bool { return s != Done && s != Superseded }

// Allowed reports whether a rotation may move from one state to another. Staying is allowed.
func Allowed(from, to State) bool { return from == to || slices.Contains(transitions[from], to) }

// Timeout is how long a rotation stays open. Offline is not failure, so it is long.
const Timeout = 30 * 24 * time.Hour

// TriggerLife is how long a trigger may be acted on.
const TriggerLife = 30 * 24 * time.Hour

// stageOrder is the order of work. Stages beside it (rejected, needs_attention, failed, withdrawn) do not count as progress.
var stageOrder = []protocol.Stage{
	protocol.StageTriggerAccepted, protocol.StageFetched, protocol.StageBackupCreated,
	protocol.StageRecoveryCopyWritten, protocol.StageCarriedOver, protocol.StagePushed,
}

// Higher returns the later of two stages in the order of work.
func Higher(a, b protocol.Stage) protocol.Stage {
	if slices.Index(stageOrder, b) > slices.Index(stageOrder, a) {
		return b
	}
	return a
}

// Facts are what is known of a rotation from all its reports together.
type Facts struct {
	State         State
	Stage         protocol.Stage
	BackupVersion string
	RecoveryCopy  protocol.RecoveryCopy
	CarryComplete bool
	Pushed        bool
	Attention     protocol.ErrorCode
	Failure       protocol.ErrorCode
}

// Apply returns the facts after one more report. It never takes anything back, so a late or repeated report is
// harmless; an ended rotation keeps its state.
func Apply(facts Facts, report protocol.Progress) Facts {
	facts.Stage = Higher(facts.Stage, report.Stage)
	if report.Backup != nil && report.Backup.Version != "" {
		facts.BackupVersion = report.Backup.Version
	}
	if report.RecoveryCopy != "" {
		facts.RecoveryCopy = report.RecoveryCopy
	}
	if report.Carried != nil && report.Carried.Complete {
		facts.CarryComplete = true
	}
	if report.Stage == protocol.StagePushed {
		facts.Pushed = true
	}
	// A withdrawal is the echo of an end that the server caused. It may come after a retry, which it must not undo.
	if facts.State.Ended() || report.Stage == protocol.StageWithdrawn {
		return facts
	}
	if facts.State != Working {
		// Another attempt is due: what an older one reports late must not pass for its answer, unless it is the end.
		if facts.complete() {
			facts.State, facts.Attention = Done, ""
		}
		return facts
	}
	switch report.Stage {
	case protocol.StageNeedsAttention:
		facts.Attention = codeOf(report)
	case protocol.StageRejected:
		facts.Attention = codeOf(report)
	case protocol.StageFailed:
		if report.Error != nil && !report.Error.Retryable {
			facts.State, facts.Failure = Failed, codeOf(report)
		}
	default:
		// Work goes on, so whatever needed attention was mended.
		facts.Attention = ""
	}
	if facts.complete() {
		facts.State, facts.Attention = Done, ""
	}
	return facts
}

// complete is the definition of done: version current, recovery copy true or allowed stale, carry-over complete or
// nothing to carry, and every target has an outcome (a report of pushed names them all).
func (f Facts) complete() bool {
	return f.BackupVersion != "" && f.RecoveryCopy != "" && f.CarryComplete && f.Pushed
}

func codeOf(report protocol.Progress) protocol.ErrorCode {
	if report.Error == nil || report.Error.Code == "" {
		return protocol.FaultInternal
	}
	return report.Error.Code
}

// Newer reports whether a KMS version is newer than another. Decimal versions compare as numbers; others, which name
// no order, count as newer when they differ: the later notification wins.
func Newer(version, than string) bool {
	a, errA := strconv.ParseUint(version, 10, 64)
	b, errB := strconv.ParseUint(than, 10, 64)
	if errA != nil || errB != nil {
		return version != than
	}
	return a > b
}

// unnamed begins the version of a change whose sender names none.
const unnamed = "unversioned-"

// UnnamedVersion is the version of a change whose sender names none, made of what names the event. It is not decimal, so it
// has no order, and a device takes what the KMS says is current.
func UnnamedVersion(event string) string {
	sum := sha256.Sum256([]byte(event))
	return unnamed + hex.EncodeToString(sum[:16])
}

// IsUnnamed reports whether a version says nothing about what the KMS has.
func IsUnnamed(version string) bool { return strings.HasPrefix(version, unnamed) }

// Attempt is one trigger of a rotation, as the rules see it. Sent is zero while the homeserver has not taken it.
type Attempt struct {
	Device string
	Stage  protocol.Stage
	Sent   time.Time
}

// Unanswered reports whether the last attempt got no word from its device for so long that another device should be
// tried. An attempt the homeserver has not taken is not the device's fault, and any report at all is an answer.
func Unanswered(attempts []Attempt, now time.Time, ackTimeout time.Duration) bool {
	if len(attempts) == 0 {
		return false
	}
	last := attempts[len(attempts)-1]
	return last.Stage == "" && !last.Sent.IsZero() && now.Sub(last.Sent) >= ackTimeout
}

// Due reports whether a rotation needs a trigger now, and whether only a device that was not tried yet will do: a
// device that is merely offline has its trigger waiting for it, and gains nothing by a second one.
func Due(state State, attempts []Attempt, now time.Time, ackTimeout time.Duration) (due, untriedOnly bool) {
	switch state {
	case Received, WaitingForEnrollment:
		return true, false
	case Working:
		return Unanswered(attempts, now, ackTimeout), true
	}
	return false, false
}

// AckTimeout is how long a device may take to accept a trigger before another device of the user is tried.
const AckTimeout = 10 * time.Minute

// Candidate is an enrolled device of the user, as the choice sees it.
type Candidate struct {
	ID       string
	LastSeen time.Time
	Tried    int
}

// Choose picks the device to trigger: of those tried least, the one heard of last.
func Choose(candidates []Candidate) (Candidate, bool) {
	if len(candidates) == 0 {
		return Candidate{}, false
	}
	return slices.MinFunc(candidates, func(a, b Candidate) int {
		if a.Tried != b.Tried {
			return a.Tried - b.Tried
		}
		return b.LastSeen.Compare(a.LastSeen)
	}), true
}

// NextSequence is the sequence of the next trigger of a user and secret: above every earlier one, and far above any a
// lost database can have given out, since it follows the clock (Unix microseconds).
func NextSequence(last int64, now time.Time) int64 { return max(last+1, now.UnixMicro()) }
