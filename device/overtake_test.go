package device

import (
	"errors"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/protocol"
)

func TestWorkThatWasOvertakenDoesNotWriteTheJournal(t *testing.T) {
	ctx := t.Context()
	now := time.Now()
	for _, test := range []struct {
		name    string
		meddle  func(row *job)
		refused bool
	}{
		{"nobody came between", func(*job) {}, false},
		{"a newer trigger or a cancel ended it", func(row *job) { row.Ended, row.LastError = true, "superseded" }, true},
		{"a new attempt took it over", func(row *job) { row.Attempt, row.Trigger.Attempt, row.Trigger.Sequence = 2, 2, 20 }, true},
		{"ended, and a new attempt opened it again", func(row *job) { row.Attempt, row.Trigger.Sequence, row.Ended = 3, 30, false }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := openStore(ctx, filepath.Join(t.TempDir(), "store.db"), make([]byte, 32), openSQLite)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.close() })
			working := &job{Rotation: uuid.New(), Attempt: 1, Trigger: protocol.Trigger{Attempt: 1, Sequence: 10}, Stage: protocol.StageFetched, NextTry: time.UnixMilli(0)}
			row := working.clone()
			test.meddle(row)
			if err := s.putJob(ctx, row, now); err != nil {
				t.Fatal(err)
			}
			working.Stage = protocol.StagePushed
			if err := s.keepJob(ctx, working, now); errors.Is(err, errOvertaken) != test.refused || !test.refused && err != nil {
				t.Errorf("got %v", err)
			}
			jobs, err := s.jobs(ctx, false)
			if err != nil {
				t.Fatal(err)
			}
			want := working
			if test.refused {
				want = row
			}
			if len(jobs) != 1 || !reflect.DeepEqual(jobs[0], want) {
				t.Errorf("the journal has %+v, want %+v", jobs, want)
			}
		})
	}
}

func TestATargetIsSupersededOnlyIfNothingOfItsPushWasTaken(t *testing.T) {
	delivery := protocol.Delivery{DeviceID: "TARGET", Forms: []string{"a", "b"}, Round: 1}
	for _, test := range []struct {
		name   string
		states []string
		want   protocol.Outcome
		forms  []string
	}{
		{"every form was withdrawn", []string{"withdrawn", "withdrawn"}, protocol.OutcomeSuperseded, nil},
		{"one form was sent", []string{"withdrawn", "sent"}, protocol.OutcomeSent, []string{"b"}},
		{"both were sent", []string{"sent", "sent"}, protocol.OutcomeSent, []string{"a", "b"}},
		{"one was refused for good", []string{"refused", "withdrawn"}, protocol.OutcomeFailed, []string{"a", "b"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := withdrawn(delivery, test.states)
			if got.Outcome != test.want || !reflect.DeepEqual(got.Forms, test.forms) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestWhichPushesOfAnOlderRotationStay(t *testing.T) {
	for _, test := range []struct {
		name             string
		fetched, trigger string
		stay             bool
	}{
		{"the older version's are withdrawn", "1", "2", false},
		{"those of the trigger's own version stay: it was current when the older rotation fetched", "2", "2", true},
		{"those of a version newer than the trigger's stay", "3", "2", true},
		{"what fetched nothing has pushed nothing", "", "2", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if stay := sameKey(&job{KMSVersion: test.fetched}, protocol.Trigger{KMS: protocol.KMSRef{Version: test.trigger}}); stay != test.stay {
				t.Errorf("stay is %t, want %t", stay, test.stay)
			}
		})
	}
}
