package protocol

import (
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

var first, second, third = uuid.UUID{1}, uuid.UUID{2}, uuid.UUID{3}

func TestMarksForkOnlyIfEachRunWentOnFromBeforeTheOther(t *testing.T) {
	for _, test := range []struct {
		name string
		a, b StoreMark
		want bool
	}{
		{"two reports of one run", StoreMark{first, 0, 1}, StoreMark{first, 0, 9}, false},
		{"a run and the next", StoreMark{first, 0, 5}, StoreMark{second, 5, 6}, false},
		{"the last reports of a run were never sent", StoreMark{first, 0, 3}, StoreMark{second, 5, 6}, false},
		{"a late report of the run before", StoreMark{second, 5, 9}, StoreMark{first, 0, 2}, false},
		{"a run that goes on from within another", StoreMark{first, 0, 5}, StoreMark{second, 4, 5}, true},
		{"a run that goes on from before another began", StoreMark{second, 5, 9}, StoreMark{third, 2, 6}, true},
		{"two runs from the same state", StoreMark{first, 0, 1}, StoreMark{second, 0, 1}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.a.Forks(test.b) != test.want || test.b.Forks(test.a) != test.want {
				t.Errorf("Forks is not %v both ways", test.want)
			}
		})
	}
}

func TestAStoreIsBehindIfMoreWasReportedThanItKnows(t *testing.T) {
	for _, test := range []struct {
		name          string
		own, reported StoreMark
		want          bool
	}{
		{"everything this run reported came", StoreMark{first, 0, 4}, StoreMark{first, 0, 4}, false},
		{"some of it is under way", StoreMark{first, 0, 4}, StoreMark{first, 0, 2}, false},
		{"nothing of this run came yet", StoreMark{second, 4, 4}, StoreMark{first, 0, 4}, false},
		{"the server's database is older", StoreMark{second, 4, 9}, StoreMark{first, 0, 1}, false},
		{"a run this store does not know went further", StoreMark{third, 2, 2}, StoreMark{second, 2, 3}, true},
		{"and this one has counted as far since", StoreMark{third, 2, 50}, StoreMark{second, 2, 3}, true},
		{"this run itself went further, in the memory of a machine that was put back", StoreMark{first, 0, 4}, StoreMark{first, 0, 5}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.own.Behind(test.reported); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// history draws what a device reports from a state of its store on: runs of any length, with restarts between.
func history(t *rapid.T, label string, from int64) (marks []StoreMark) {
	for range rapid.IntRange(1, 4).Draw(t, label+" runs") {
		base, run := from, uuid.New()
		for range rapid.IntRange(0, 5).Draw(t, label+" reports") {
			from++
			marks = append(marks, StoreMark{run, base, from})
		}
	}
	return marks
}

// arrive is what comes to the server of it: in any order, some twice, some never.
func arrive(t *rapid.T, label string, sent []StoreMark) []StoreMark {
	if len(sent) == 0 {
		return nil
	}
	return rapid.SliceOfN(rapid.SampledFrom(sent), 0, 2*len(sent)).Draw(t, label)
}

// judge is what the server does: each report is compared with what came before.
func judge(arrived []StoreMark) bool {
	for i, mark := range arrived {
		if slices.ContainsFunc(arrived[:i], mark.Forks) {
			return true
		}
	}
	return false
}

func TestAStoreThatOnlyWentOnIsNeverSuspected(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := history(t, "whole", 0)
		if arrived := arrive(t, "arrived", sent); judge(arrived) {
			t.Fatalf("one history, and %v were taken for two", arrived)
		}
		// And whatever of it the server tells the device, at any later moment, is nothing new to it.
		for i, own := range sent {
			for _, reported := range sent[:i+1] {
				if own.Behind(reported) {
					t.Fatalf("%v is taken to be behind %v", own, reported)
				}
			}
		}
	})
}

func TestAStoreThatWentBackIsFoundWhereItsBranchesOverlapAndSeesItselfAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := history(t, "before", 0)
		from := int64(len(before))
		lost, restored := history(t, "lost", from), history(t, "restored", from)
		if len(lost) == 0 || len(restored) == 0 {
			return
		}
		// The run of the first report after the snapshot may have begun before it.
		if len(before) > 0 && rapid.Bool().Draw(t, "the machine ran on after the snapshot") {
			last, run := before[len(before)-1], lost[0].Run
			for i := range lost {
				if lost[i].Run == run {
					lost[i].Run, lost[i].Base = last.Run, last.Base
				}
			}
		}
		a, b := rapid.SampledFrom(lost).Draw(t, "lost"), rapid.SampledFrom(restored).Draw(t, "restored")
		arrived := append(arrive(t, "arrived", before), a, b)
		// A later run of one branch may follow the other's first as its own would: that proves nothing yet. The device,
		// told of either, knows.
		overlap := a.Count > b.Base && b.Count > a.Base
		if judge(arrived) != overlap {
			t.Fatalf("%v and %v: found is %v", a, b, !overlap)
		}
		if present := (StoreMark{restored[0].Run, from, restored[0].Count}); !present.Behind(a) {
			t.Fatalf("%v is not seen to be behind %v", present, a)
		}
	})
}
