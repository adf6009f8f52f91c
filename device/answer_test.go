package device

import (
	"testing"
	"time"

	"github.com/keyherald/keyherald/protocol"
)

func TestARequestForASecretIsAnsweredOnlyWhereEverythingHolds(t *testing.T) {
	good := secretRequest{Known: true, CrossSigned: true, Name: protocol.SecretMegolmBackup, Recent: 2}
	config := Answer{Names: []string{protocol.SecretMegolmBackup}, PerHour: 3}
	tests := []struct {
		name   string
		change func(*secretRequest)
		want   string
	}{
		{"a cross-signed device asks for the backup key", func(*secretRequest) {}, ""},
		{"the hour's last request was the one before", func(r *secretRequest) { r.Recent = 3 }, "too_many_requests"},
		{"a device that the homeserver does not present", func(r *secretRequest) { *r = secretRequest{Name: r.Name} }, "device_unknown"},
		{"a device that nobody signed", func(r *secretRequest) { r.CrossSigned = false }, "device_not_cross_signed"},
		{"a dehydrated device, which runs nowhere", func(r *secretRequest) { r.Dehydrated = true }, "dehydrated_device"},
		{"an excluded device", func(r *secretRequest) { r.Excluded = true }, "device_excluded"},
		{"a cross-signing key that the config does not name", func(r *secretRequest) { r.Name = protocol.SecretMaster }, "secret_not_allowed"},
		{"a secret nobody knows", func(r *secretRequest) { r.Name = "com.example.diary" }, "secret_not_allowed"},
		{"an empty name", func(r *secretRequest) { r.Name = "" }, "secret_not_allowed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			request := good
			test.change(&request)
			if got := judgeRequest(request, config); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if got := judgeRequest(good, Answer{PerHour: 3}); got != "secret_not_allowed" {
		t.Errorf("with no names it is %q", got)
	}
}

func TestEachFurtherRequestForASecretWaitsLongerUpToHalfADay(t *testing.T) {
	previous := time.Duration(0)
	for requests := 1; requests < 40; requests++ {
		wait := askAgain(requests)
		if wait < previous || wait < 5*time.Minute || wait > 12*time.Hour {
			t.Fatalf("after %d requests it waits %s, and before that %s", requests, wait, previous)
		}
		previous = wait
	}
	if askAgain(1) != 5*time.Minute || askAgain(2) != 10*time.Minute || previous != 12*time.Hour {
		t.Errorf("it waits %s, %s, … %s", askAgain(1), askAgain(2), previous)
	}
}
