package rotation

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyherald/keyherald/protocol"
)

func whole() []protocol.Progress {
	return []protocol.Progress{
		{Stage: protocol.StageTriggerAccepted},
		{Stage: protocol.StageFetched},
		{Stage: protocol.StageBackupCreated, Backup: &protocol.BackupReport{Version: "7"}},
		{Stage: protocol.StageRecoveryCopyWritten, RecoveryCopy: protocol.RecoveryCopyWritten},
		{Stage: protocol.StageCarriedOver, Carried: &protocol.CarriedReport{Complete: true}},
		{Stage: protocol.StagePushed},
	}
}

// Reports may come late, twice and in any order: once each came at least once, the rotation is done, and never before.
func TestARotationIsDoneWhenEveryReportCameInWhateverOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reports := rapid.Permutation(append(whole(), whole()...)).Draw(t, "reports")
		facts := Facts{State: Working}
		seen := map[protocol.Stage]bool{}
		for _, report := range reports {
			before := facts
			facts = Apply(facts, report)
			seen[report.Stage] = true
			need := seen[protocol.StageBackupCreated] && seen[protocol.StageRecoveryCopyWritten] && seen[protocol.StageCarriedOver] && seen[protocol.StagePushed]
			if (facts.State == Done) != need {
				t.Fatalf("after %v the state is %s", seen, facts.State)
			}
			if Higher(before.Stage, facts.Stage) != facts.Stage {
				t.Fatalf("the stage fell from %s to %s", before.Stage, facts.Stage)
			}
			if !Allowed(before.State, facts.State) {
				t.Fatalf("%s may not become %s", before.State, facts.State)
			}
		}
	})
}

func TestApply(t *testing.T) {
	attention := protocol.Progress{Stage: protocol.StageNeedsAttention, Error: &protocol.ErrorReport{Code: protocol.AttentionOldKeyMissing}}
	tests := []struct {
		name   string
		before Facts
		report protocol.Progress
		want   Facts
	}{
		{"needs_attention names its cause and ends nothing", Facts{State: Working}, attention, Facts{State: Working, Attention: protocol.AttentionOldKeyMissing}},
		{"work that goes on lowers the flag", Facts{State: Working, Attention: protocol.AttentionOldKeyMissing}, protocol.Progress{Stage: protocol.StageFetched}, Facts{State: Working, Stage: protocol.StageFetched}},
		{"a retryable failure changes nothing", Facts{State: Working}, protocol.Progress{Stage: protocol.StageFailed, Error: &protocol.ErrorReport{Code: protocol.FaultInternal, Retryable: true}}, Facts{State: Working}},
		{"a failure for good ends the rotation", Facts{State: Working}, protocol.Progress{Stage: protocol.StageFailed, Error: &protocol.ErrorReport{Code: protocol.FaultInternal}}, Facts{State: Failed, Failure: protocol.FaultInternal}},
		{"a report after the end does not bring it back", Facts{State: Superseded}, attention, Facts{State: Superseded}},
		{"a withdrawal after the end changes nothing", Facts{State: Superseded, Stage: protocol.StageFetched}, protocol.Progress{Stage: protocol.StageWithdrawn}, Facts{State: Superseded, Stage: protocol.StageFetched}},
		{"a withdrawal that comes after a retry does not undo it", Facts{State: Received}, protocol.Progress{Stage: protocol.StageWithdrawn}, Facts{State: Received}},
		{"a late report of an older attempt does not pass for the retry's answer", Facts{State: Received}, protocol.Progress{Stage: protocol.StageFetched}, Facts{State: Received, Stage: protocol.StageFetched}},
		{"nor does its trouble", Facts{State: Received}, attention, Facts{State: Received}},
		{"but the end is the end", Facts{State: Received, BackupVersion: "2", RecoveryCopy: protocol.RecoveryCopyWritten, CarryComplete: true},
			protocol.Progress{Stage: protocol.StagePushed}, Facts{State: Done, Stage: protocol.StagePushed, BackupVersion: "2", RecoveryCopy: protocol.RecoveryCopyWritten, CarryComplete: true, Pushed: true}},
		{"a withdrawal mends nothing", Facts{State: Working, Attention: protocol.RejectedKMS}, protocol.Progress{Stage: protocol.StageWithdrawn}, Facts{State: Working, Attention: protocol.RejectedKMS}},
		{"a rejection needs somebody", Facts{State: Working}, protocol.Progress{Stage: protocol.StageRejected, Error: &protocol.ErrorReport{Code: protocol.RejectedKMS}}, Facts{State: Working, Attention: protocol.RejectedKMS}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Apply(test.before, test.report); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestNewer(t *testing.T) {
	for _, test := range []struct {
		version, than string
		want          bool
	}{{"2", "1", true}, {"1", "2", false}, {"10", "9", true}, {"3", "3", false}, {"b", "a", true}, {"a", "a", false}} {
		if got := Newer(test.version, test.than); got != test.want {
			t.Errorf("Newer(%s, %s) = %v", test.version, test.than, got)
		}
	}
}

func TestChooseTakesTheLeastTriedThenTheOneHeardOfLast(t *testing.T) {
	now := time.Now()
	chosen, ok := Choose([]Candidate{{ID: "tried", LastSeen: now, Tried: 1}, {ID: "quiet", LastSeen: now.Add(-time.Hour)}, {ID: "lively", LastSeen: now}})
	if !ok || chosen.ID != "lively" {
		t.Errorf("chose %+v", chosen)
	}
	if _, ok := Choose(nil); ok {
		t.Error("chose among none")
	}
}

func TestTheSequenceOnlyGrows(t *testing.T) {
	now := time.UnixMicro(1_000_000)
	if got := NextSequence(0, now); got != 1_000_000 {
		t.Errorf("got %d", got)
	}
	if got := NextSequence(2_000_000, now); got != 2_000_001 {
		t.Errorf("a clock that went back gives %d", got)
	}
}

func TestEveryCauseSaysWhoDoesWhat(t *testing.T) {
	for _, a := range Attentions() {
		if a.Who == "" || a.NextAction == "" {
			t.Errorf("%s says nothing", a.Cause)
		}
	}
}
