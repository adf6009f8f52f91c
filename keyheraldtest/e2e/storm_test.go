package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

func TestUsersBeyondTheStormLimitAreHeldUntilTheyAreReleased(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, database := newDatabase(t)
	clock := &keyheraldtest.Clock{}
	engine, err := relay.New(relay.Config{DB: db, Now: clock.Now, BotUserID: "@keyherald:example.org", BotMasterKey: "x",
		Storm: rotation.StormLimit{Percent: 2, Users: 3}})
	check(t, err)
	change := func(user, version string) uuid.UUID {
		t.Helper()
		receipt, err := engine.Accept(ctx, intake.Notification{Source: "dev", ID: user + version, User: "@" + user + ":example.org",
			Secret: protocol.SecretMegolmBackup, KMS: "dev", Path: "keyherald/" + user, Version: version})
		check(t, err)
		return uuid.MustParse(receipt.RotationID)
	}
	held := func(key uuid.UUID) bool {
		t.Helper()
		r, ok, err := db.Rotation(ctx, key)
		check(t, err)
		if !ok {
			t.Fatal("the rotation is not there")
		}
		return r.Held
	}
	due := func() int {
		t.Helper()
		rotations, err := db.DueRotations(ctx, clock.Now(), rotation.AckTimeout, uuid.Nil, 100)
		check(t, err)
		return len(rotations)
	}
	for i := range 3 {
		if held(change(fmt.Sprintf("user%d", i), "1")) {
			t.Errorf("user %d of three is held", i)
		}
	}
	fourth, fifth := change("user3", "1"), change("user4", "1")
	if !held(fourth) || !held(fifth) {
		t.Error("a user beyond the limit was let through")
	}
	if held(change("user0", "2")) {
		t.Error("another version for a user who was let through is held")
	}
	if n := due(); n != 3 {
		t.Errorf("%d rotations are due, want those of three users", n)
	}
	if err := engine.Retry(ctx, fourth, keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("retrying a held rotation gave %v", err)
	}
	if n, err := engine.Release(ctx, []uuid.UUID{fourth}, keyheraldtest.Admin()); err != nil || n != 1 || held(fourth) || !held(fifth) {
		t.Errorf("releasing one: %d, %v", n, err)
	}
	if _, err := engine.Release(ctx, []uuid.UUID{fourth}, keyheraldtest.Admin()); !errors.Is(err, relay.ErrNotPossible) {
		t.Errorf("releasing it again gave %v", err)
	}
	if held(change("user3", "2")) {
		t.Error("another version for a user who was released is held")
	}
	newer := change("user4", "2")
	if old, _, err := db.Rotation(ctx, fifth); err != nil || old.Facts.State != rotation.Superseded || !held(newer) {
		t.Errorf("a newer version of a held one: %s, %v", old.Facts.State, err)
	}
	if n, err := engine.Release(ctx, nil, keyheraldtest.Admin()); err != nil || n != 1 || due() != 5 {
		t.Errorf("releasing all: %d, %v, %d due", n, err, due())
	}
	clock.Advance(rotation.StormWindow + time.Minute)
	if held(change("user9", "1")) {
		t.Error("after the window a user is held")
	}
	(&world{database: database}).checkDerived(t)
	counts := countedByOutcome(t, db)
	if counts["rotation.held accepted"] != 3 || counts["rotation.released accepted"] != 2 || counts["rotation.released refused"] != 1 {
		t.Errorf("the audit log has %v, want 3 held, 2 released and one release refused", counts)
	}
}
