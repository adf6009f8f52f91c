package protocol

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

func TestAStatusIsTakenOnlyWithActsThatHoldNothingButWords(t *testing.T) {
	good := Act{Kind: ActSecretRequestRefused, Secret: SecretMegolmBackup, DeviceID: "DEVICE", Reason: "device_excluded"}
	tests := []struct {
		name   string
		change func(*Act)
		ok     bool
	}{
		{"an act", func(*Act) {}, true},
		{"one of a kind that is not known yet", func(a *Act) { a.Kind = "something_new" }, true},
		{"one of a secret that has no word", func(a *Act) { a.Secret = SecretOther }, true},
		{"one with a key's id", func(a *Act) { a.KeyID = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" }, true},
		{"one without a kind", func(a *Act) { a.Kind = "" }, false},
		{"one that names a secret of somebody's own", func(a *Act) { a.Secret = "com.example.diary" }, false},
		{"one whose reason is a sentence", func(a *Act) { a.Reason = "because I say so" }, false},
		{"one whose reason is a recovery key", func(a *Act) { a.Reason = "EsTc LW2K PGiF wKEA 3As5 g5c4" }, false},
		{"one whose key id is a recovery key", func(a *Act) { a.KeyID = "EsTc LW2K PGiF wKEA 3As5 g5c4" }, false},
		{"one with an endless device", func(a *Act) { a.DeviceID = id.DeviceID(strings.Repeat("x", 256)) }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			act := good
			test.change(&act)
			if err := (Status{ReportID: uuid.New(), Acts: []Act{act}}).Validate(); (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := (Status{ReportID: uuid.New(), Acts: make([]Act, MaxActs+1)}).Validate(); err == nil {
		t.Error("more acts than a status may have are taken")
	}
	for name, want := range map[string]string{SecretMegolmBackup: SecretMegolmBackup, SecretMaster: SecretMaster, "com.example.diary": SecretOther, "": SecretOther} {
		if got := KnownSecret(name); got != want {
			t.Errorf("%q is called %q", name, got)
		}
	}
}
