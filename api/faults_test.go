package api_test

import (
	"database/sql"
	"fmt"
	"net/http"
	"testing"

	"github.com/lib/pq"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/keyheraldtest/faults"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// A write with an idempotency key is done once and answered with the same, whichever write of it fails: who hears of a failure
// makes it again with the same key, and it may have been done.
func TestAWriteIsDoneOnceWhicheverWriteFails(t *testing.T) {
	recorder := &faults.Recorder{}
	s := newServer(t)
	connector, err := pq.NewConnector(s.database.WriterURL)
	check(t, err)
	faulty, err := postgres.OpenWith(t.Context(), sql.OpenDB(recorder.Connector("PostgreSQL", connector)), s.database.WriterURL)
	check(t, err)
	t.Cleanup(func() { _ = faulty.Close() })
	engine, err := relay.New(relay.Config{DB: faulty, BotUserID: "@keyherald:example.org", BotMasterKey: "bWFzdGVyIGtleSBvZiB0aGUgYm90IGluIHRlc3RzLi4", Now: s.clock.Now})
	check(t, err)
	through := s.on(faulty, engine)
	turn := 0
	do := func(t *testing.T) (failures int) {
		t.Helper()
		turn++
		user := id.NewUserID(fmt.Sprintf("user%d", turn), "example.org")
		body := fmt.Sprintf(`{"user_id":%q,"kms":"corporate","path":"keyherald/%d"}`, user, turn)
		var view api.Rotation
		for {
			got := through.as("admin", http.MethodPost, "/rotations", body, "Idempotency-Key", fmt.Sprint(turn))
			if got.status == http.StatusCreated {
				view = into[api.Rotation](t, got, http.StatusCreated)
				break
			}
			if failures++; failures == 3 || got.status < 500 {
				t.Fatalf("it goes on failing with %d: %s", got.status, got.body)
			}
		}
		rotations, err := s.db.Rotations(t.Context(), user, false)
		check(t, err)
		if len(rotations) != 1 || rotations[0].ID != view.ID {
			t.Errorf("there are %d rotations, and the answer has %s", len(rotations), view.ID)
		}
		told := 0
		for _, line := range s.log("rotation.asked", "accepted") {
			if line.Subject == user.String() {
				told++
			}
		}
		if told != 1 {
			t.Errorf("it is told %d times", told)
		}
		return failures
	}
	var dry [2][]faults.Point
	through.as("admin", http.MethodGet, "/whoami", nil) // the token's first use is a write
	for i := range dry {
		recorder.Begin()
		if do(t) != 0 {
			t.Error("it failed without a fault")
		}
		dry[i] = recorder.Points()
	}
	table := faults.Table(dry[:]...)
	// One statement in the middle, and the commit, before and after.
	if len(table) < 3 {
		t.Fatalf("few writes were found: %v", table)
	}
	for _, fault := range table {
		t.Run(fault.String(), func(t *testing.T) {
			recorder.Arm(fault, nil)
			if n := do(t); n != 1 || !recorder.Fired() {
				t.Errorf("it failed %d times (the fault fired: %t)", n, recorder.Fired())
			}
		})
	}
}
