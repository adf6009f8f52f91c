package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest/senders"
)

// TestSendersOnTheRealDatabase lets every honest sender and a part of the attacks speak to the real recorder:
// what it keeps and audits is what the senders were answered.
func TestSendersOnTheRealDatabase(t *testing.T) {
	t.Parallel()
	_, _, database := newDatabase(t)
	db, arrivals, _ := newReplica(t, database, 0)
	w := senders.New(t)
	handler, err := intake.New(w.Config(), w.Deps(arrivals))
	check(t, err)
	web := echo.New()
	handler.Register(web)
	want := map[audit.Action]int{}
	for _, s := range w.Senders() {
		if status, result := s.Send(s.Event("honest", "alice-"+s.Source, "7")).Answer(web); status != 202 || result != "accepted" {
			t.Errorf("%s: got %d %q", s.Source, status, result)
		}
		want[audit.NotificationAccepted]++
	}
	for _, r := range []senders.Request{w.Confirmation(), w.Validation()} {
		if status, _ := r.Answer(web); status != 200 {
			t.Errorf("%s: got %d", r.Source, status)
		}
		want[audit.HandshakeAccepted]++
	}
	// Azure's versions have no order: the one that comes last is the one that is relayed.
	if status, _ := w.Batch(20).Answer(web); status != 202 {
		t.Errorf("the batch: got %d", status)
	}
	want[audit.NotificationAccepted] += 20
	rotations, err := db.Rotations(t.Context(), "", true)
	check(t, err)
	open := 0
	for _, r := range rotations {
		if r.Source == "azure-header" && r.KMS.Path == "keyherald-alice" {
			open++
			if r.KMS.Version != senders.BatchVersion(19) {
				t.Errorf("of the batch, the version %s is relayed, want %s", r.KMS.Version, senders.BatchVersion(19))
			}
		}
	}
	if open != 1 {
		t.Errorf("%d rotations of the batch are open, want 1", open)
	}
	for i, attack := range w.Attacks() {
		// A fifth of them, and all that come after something: the others are tried without a database.
		follows := attack.Before != nil || strings.Contains(attack.Name, "again") || strings.Contains(attack.Name, "the same id")
		if i%5 != 0 && !follows {
			continue
		}
		w.Pass(61 * time.Second)
		if attack.Before != nil {
			for _, honest := range attack.Before() {
				if status, result := honest.Answer(web); status != 202 || result != "accepted" {
					t.Errorf("%s: the honest request before it: got %d %q", attack.Name, status, result)
				}
				want[audit.NotificationAccepted]++
			}
		}
		status, result := attack.Request().Answer(web)
		if status != attack.Status || result != attack.Result {
			t.Errorf("%s: got %d %q, want %d %q", attack.Name, status, result, attack.Status, attack.Result)
		}
		switch status {
		case 422:
			want[audit.NotificationUnusable]++
		case 400, 401, 403, 404, 408, 409, 413, 415:
			if result != "" { // and else it came to no handler of ours
				want[audit.NotificationRefused]++
			}
		}
	}
	want[audit.NotificationAccepted]++ // a batch of two before the attack on it
	want[audit.NotificationRefused]++  // both events of that batch say another time in the attack, a minute later
	counts := counted(t, db)
	for action, count := range want {
		if got := counts[string(action)]; got != count {
			t.Errorf("%d events %s, want %d", got, action, count)
		}
	}
	if foreign := w.Foreign(); len(foreign) > 0 {
		t.Errorf("%v were to be reached", foreign)
	}
}
