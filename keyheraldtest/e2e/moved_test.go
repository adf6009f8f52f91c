package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/todevice"
)

// heard delivers what a NOTIFY channel is told from now on.
func heard(t *testing.T, db *postgres.DB, channel string) <-chan string {
	t.Helper()
	payloads := make(chan string, 1000)
	run(t, func(ctx context.Context) error {
		return db.Listen(ctx, channel, func(payload string) { payloads <- payload })
	})
	select {
	case <-payloads: // it listens
	case <-time.After(time.Minute):
		t.Fatal("nobody listens")
	}
	return payloads
}

func hear(t *testing.T, payloads <-chan string) string {
	t.Helper()
	select {
	case payload := <-payloads:
		return payload
	case <-time.After(time.Minute):
		t.Fatal("nothing is told")
		return ""
	}
}

func TestReportsThatWereHandledTogetherAreToldToWhoWatchesInOneNotification(t *testing.T) {
	t.Parallel()
	db, _, _ := newDatabase(t)
	ctx := t.Context()
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x"})
	check(t, err)
	session := engine.Session(nil)
	var keys []uuid.UUID
	report := func(n int, report uuid.UUID, stage protocol.Stage) {
		t.Helper()
		content, err := json.Marshal(protocol.Progress{ReportID: report, RotationID: keys[n], Attempt: 1, Stage: stage})
		check(t, err)
		check(t, db.Txn(ctx, func(ctx context.Context) error {
			return session.Handle(ctx, &todevice.Message{Envelope: todevice.Envelope{Sender: id.UserID(fmt.Sprintf("@user%d:example.org", n))}, Type: protocol.TypeProgress.Type,
				Content: content, SenderKey: id.Curve25519(fmt.Sprint("i", n)), SenderSigningKey: "s"})
		}))
	}
	for n := range 3 {
		user := id.UserID(fmt.Sprintf("@user%d:example.org", n))
		check(t, db.PutDevice(ctx, postgres.Device{ID: uuid.Must(uuid.NewV7()), UserID: user, DeviceID: "DEVICE", IdentityKey: id.Curve25519(fmt.Sprint("i", n)), SigningKey: "s", MasterKey: "m", EnrolledAt: time.Now()}))
		receipt, err := engine.Accept(ctx, intake.Notification{Source: "kms", ID: fmt.Sprint(n), User: user.String(), Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "keyherald/key", Version: "1"})
		check(t, err)
		keys = append(keys, uuid.MustParse(receipt.RotationID))
	}
	moved, work := heard(t, db, relay.MovedChannel), heard(t, db, relay.WorkChannel)
	is := func(want ...uuid.UUID) {
		t.Helper()
		check(t, session.Handled(ctx))
		check(t, db.Notify(ctx, relay.MovedChannel, "the end"))
		var all []string
		for payload := ""; payload != "the end"; {
			payload = hear(t, moved)
			all = append(all, payload)
		}
		if len(want) == 0 {
			if len(all) != 1 {
				t.Errorf("it is told %q", all)
			}
			return
		}
		got := relay.Moved(all[0])
		byText := func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
		slices.SortFunc(got, byText)
		slices.SortFunc(want, byText)
		if len(all) != 2 || !slices.Equal(got, want) {
			t.Errorf("it is told %q, and not of %v at once", all, want)
		}
	}
	first := uuid.New()
	report(0, first, protocol.StageTriggerAccepted)
	report(0, uuid.New(), protocol.StageFetched)
	report(2, uuid.New(), protocol.StageTriggerAccepted)
	is(keys[0], keys[2])
	// What was reported before changes nothing.
	report(0, first, protocol.StageTriggerAccepted)
	is()
	report(1, uuid.New(), protocol.StageTriggerAccepted)
	is(keys[1])
	check(t, db.Notify(ctx, relay.WorkChannel, "the end"))
	if payload := hear(t, work); payload != "the end" {
		t.Errorf("the bot is woken by %q", payload)
	}
}

func TestWhoWatchesIsToldOfADevicesReports(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newKey(t, "1")
	w.manage(t, "managed")
	payloads := heard(t, w.db, relay.MovedChannel)
	w.notify(t, "n1", "1")
	for {
		moved := relay.Moved(hear(t, payloads))
		r := w.onlyRotation(t)
		if len(moved) != 1 || moved[0] != r.ID {
			t.Fatalf("it is told of %v", moved)
		}
		if r.Facts.State.Ended() {
			return
		}
	}
}
