package protocol

import (
	"reflect"
	"testing"

	"github.com/google/uuid"
)

// Every field of a status is news when it changes, but for these: they move all the time, or are told elsewhere.
func TestAStatusSaysTheSameUnlessSomethingIsNews(t *testing.T) {
	noNews := map[string]bool{"ReportID": true, "Count": true, "ETag": true, "LastRotation": true, "LastStage": true, "HighestSequence": true, "Acts": true, "Store": true, "At": true}
	changes := map[string]func(*Status){
		"ReportID": func(s *Status) { s.ReportID = uuid.New() }, "BackupVersion": func(s *Status) { s.BackupVersion = "2" }, "PublicKey": func(s *Status) { s.PublicKey = "other" },
		"HoldsKey": func(s *Status) { s.HoldsKey = false }, "Count": func(s *Status) { s.Count++ }, "ETag": func(s *Status) { s.ETag = "2" },
		"TargetsVerified": func(s *Status) { s.TargetsVerified++ }, "TargetsUnverified": func(s *Status) { s.TargetsUnverified++ },
		"LastRotation": func(s *Status) { r := uuid.New(); s.LastRotation = &r }, "LastStage": func(s *Status) { s.LastStage = StagePushed },
		"HighestSequence": func(s *Status) { s.HighestSequence++ }, "Drifted": func(s *Status) { s.Drifted = &DriftReport{Kind: DriftKMS} },
		"OldBackups": func(s *Status) { s.OldBackups = []OldBackup{{Version: "1", State: OldBackupKept}} }, "Acts": func(s *Status) { s.Acts = []Act{{Kind: ActSecretKept}} },
		"SoftwareVersion": func(s *Status) { s.SoftwareVersion = "2" }, "Store": func(s *Status) { s.Store = &StoreMark{Run: uuid.New(), Count: 1} }, "At": func(s *Status) { s.At++ },
	}
	fields := reflect.TypeFor[Status]()
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		t.Run(name, func(t *testing.T) {
			before := Status{ReportID: uuid.New(), BackupVersion: "1", PublicKey: "key", HoldsKey: true, SoftwareVersion: "1"}
			after := before
			change, ok := changes[name]
			if !ok {
				t.Fatal("is it news when this changes?")
			}
			change(&after)
			if reflect.DeepEqual(before, after) {
				t.Fatal("nothing changed")
			}
			if before.SaysTheSame(after) != noNews[name] || after.SaysTheSame(before) != noNews[name] {
				t.Errorf("that it changed is news: %v", !before.SaysTheSame(after))
			}
		})
	}
	one, other := Status{Drifted: &DriftReport{Kind: DriftKMS, Message: "a"}}, Status{Drifted: &DriftReport{Kind: DriftKMS, Message: "b"}}
	if !one.SaysTheSame(other) {
		t.Error("the same drift in other words is news")
	}
}
