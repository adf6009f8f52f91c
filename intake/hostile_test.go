package intake_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// The hosts that may be asked, and what of them.
var pages = []string{
	"login.microsoftonline.com:443/11111111-2222-3333-4444-555555555555/discovery/v2.0/keys", "www.googleapis.com:443/oauth2/v3/certs",
	"idp.example.org:443/keys", "sns.eu-central-1.amazonaws.com:443/SimpleNotificationService-",
}

func TestHonestSendersAreHeard(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	for i, s := range w.Senders() {
		if status, result := s.Send(s.Event("honest", "alice", "7")).Answer(web); status != 202 || result != "accepted" {
			t.Errorf("%s: got %d %q", s.Source, status, result)
		}
		if memory.Count() != i+1 {
			t.Fatalf("%s: %d notifications are accepted, want %d", s.Source, memory.Count(), i+1)
		}
		if n := memory.Accepted[i]; n.User != "@alice:example.org" || n.Version == "" || n.KeyID == "" || n.Source != s.Source {
			t.Errorf("%s: recorded %+v", s.Source, n)
		}
	}
}

// TestNoHostileNotificationIsAccepted sends every attack, in one world, in order.
func TestNoHostileNotificationIsAccepted(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	attacks, names := w.Attacks(), map[string]bool{}
	for _, attack := range attacks {
		if names[attack.Name] {
			t.Errorf("%q is there twice", attack.Name)
		}
		names[attack.Name] = true
		t.Run(attack.Name, func(t *testing.T) {
			w.Pass(61 * time.Second) // what is bounded by the minute does not make one row depend on another
			if attack.Before != nil {
				for _, honest := range attack.Before() {
					if status, result := honest.Answer(web); status != 202 || result != "accepted" {
						t.Fatalf("the honest request before it: got %d %q", status, result)
					}
				}
			}
			accepted, handshakes := memory.Count(), len(memory.Handshakes)
			status, result := attack.Request().Answer(web)
			if status != attack.Status || result != attack.Result {
				t.Errorf("got %d %q\nwant %d %q", status, result, attack.Status, attack.Result)
			}
			if memory.Count() != accepted || len(memory.Handshakes) != handshakes {
				t.Error("it was accepted")
			}
		})
	}
	t.Logf("%d hostile notifications", len(attacks))
	if len(attacks) < 200 {
		t.Errorf("there are only %d", len(attacks))
	}
	if foreign := w.Foreign(); len(foreign) > 0 {
		t.Errorf("%v were to be reached", foreign)
	}
	for _, page := range w.Asked() {
		known := false
		for _, prefix := range pages {
			known = known || strings.HasPrefix(page, prefix)
		}
		if !known {
			t.Errorf("%s was asked for", page)
		}
	}
	if len(w.Asked()) == 0 {
		t.Error("nothing was asked for, so nothing was verified")
	}
	for _, reason := range []string{"kms not_signed", "kms wrong_signature", "kms stale", "fortress wrong_address", "fortress wrong_certificate", "azure wrong_token", "azure wrong_claims",
		"bridge-basic wrong_credentials", "bridge-basic no_credentials", "sns wrong_topic", "sns wrong_certificate", "azure wrong_origin", "kms too_large"} {
		if memory.Refusals[reason] == 0 {
			t.Errorf("no refusal %q was audited", reason)
		}
	}
}

// Ten thousand hostile requests leave nothing behind, whatever they were.
func TestHostileNotificationsLeaveNothingBehind(t *testing.T) {
	w, memory := senders.New(t), senders.NewMemory()
	web := newWeb(t, w, memory)
	var requests []senders.Request
	for _, attack := range w.Attacks() {
		if attack.Before == nil && !strings.Contains(attack.Name, "later") && !strings.Contains(attack.Name, "again") && !strings.Contains(attack.Name, "the same id") {
			requests = append(requests, attack.Request())
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	send := func() {
		for _, r := range requests {
			_, _ = r.Answer(web)
		}
	}
	send()
	before := heap()
	for range 10_000/len(requests) + 1 {
		send()
	}
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if asked := len(w.Asked()); asked > 60 {
		t.Errorf("in one moment %d pages were asked for", asked)
	}
}
