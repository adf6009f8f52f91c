package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/filemeta"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// A change whose notification was lost is found and comes to its end, and the first look relays nothing.
func TestAChangeThatNobodyNotifiedOfIsFoundAndRotated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	w.newKey(t, "1")
	w.manage(t, "managed")
	metadata, err := filemeta.New(filemeta.Config{Dir: w.dir + "/kms"})
	check(t, err)
	r, err := w.engine.NewReconciler(relay.Reconciliation{KMS: "dev", Metadata: metadata, Path: "keyherald/{user}", Interval: time.Hour}, nil)
	check(t, err)
	check(t, r.Pass(ctx, 0))
	if open, err := w.db.Rotations(ctx, "", false); err != nil || len(open) != 0 {
		t.Fatalf("the baseline opened %d rotations: %v", len(open), err)
	}
	w.newKey(t, "2")
	check(t, r.Pass(ctx, 0))
	w.waitDone(t)
	got := w.onlyRotation(t)
	if got.Source != "reconcile" || got.KMS.Version != "2" {
		t.Errorf("the rotation is of %s, version %s", got.Source, got.KMS.Version)
	}
	if !w.logHas(t, "change.found", `"version": "2"`) {
		t.Error("the log does not say that a change was found")
	}
	// What a notification told is not found again, and the notification of what was found is a second word about it.
	w.newKey(t, "3")
	w.notify(t, "n3", "3")
	w.waitDone(t)
	check(t, r.Pass(ctx, 0))
	w.notify(t, "n2", "2")
	if all, err := w.db.Rotations(ctx, "", false); err != nil || len(all) != 2 {
		t.Errorf("there are %d rotations: %v", len(all), err)
	}
}

// system is a KMS's metadata as a test says it.
type system struct {
	mu       sync.Mutex // guards the rest
	versions map[string]string
	errs     map[string]error
	asked    int
}

func (s *system) Current(_ context.Context, path string) (kms.Description, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if err := s.errs[path]; err != nil {
		return kms.Description{}, err
	}
	version, ok := s.versions[path]
	if !ok {
		return kms.Description{}, kms.ErrNotFound
	}
	return kms.Description{Path: path, Version: version}, nil
}

func (s *system) CanReadSecret(context.Context, string) (bool, error) { return false, nil }

func TestEveryEnrolledUserIsLookedAtAndOneThatFailsStopsNobody(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, _, _ := newDatabase(t)
	engine, err := relay.New(relay.Config{DB: db, BotUserID: "@keyherald:example.org", BotMasterKey: "x", Storm: rotation.StormLimit{Percent: 100}})
	check(t, err)
	const users = 450 // more than two pages
	s := &system{versions: map[string]string{}, errs: map[string]error{}}
	for i := range users {
		user := id.UserID(fmt.Sprintf("@user%d:example.org", i))
		check(t, db.PutDevice(ctx, postgres.Device{ID: uuid.New(), UserID: user, DeviceID: "A", IdentityKey: id.Curve25519(fmt.Sprint("i", i)), SigningKey: "s", MasterKey: "m", EnrolledAt: time.Now()}))
		s.versions[fmt.Sprintf("keys/user%d", i)] = "1"
	}
	r, err := engine.NewReconciler(relay.Reconciliation{KMS: "corporate", Metadata: s, Path: "keys/{user}", Interval: time.Hour, MostPerSecond: 100_000}, nil)
	check(t, err)
	changed := func() map[string]string {
		t.Helper()
		rotations, err := db.Rotations(ctx, "", false)
		check(t, err)
		got := map[string]string{}
		for _, r := range rotations {
			got[r.KMS.Path] += r.KMS.Version
		}
		return got
	}
	delete(s.versions, "keys/user7") // has no key yet
	s.errs["keys/user8"] = kms.ErrUnavailable
	if err := r.Pass(ctx, 0); !errors.Is(err, kms.ErrUnavailable) || !strings.Contains(err.Error(), "1 users") {
		t.Errorf("the pass says %v", err)
	}
	if s.asked != users || len(changed()) != 0 {
		t.Errorf("%d were asked for, and the baseline opened %v", s.asked, changed())
	}
	// user8's baseline comes with the first answer, so its change is not told; user7's first key is its baseline.
	delete(s.errs, "keys/user8")
	for _, path := range []string{"keys/user3", "keys/user8", "keys/user449"} {
		s.versions[path] = "2"
	}
	s.versions["keys/user7"] = "1"
	check(t, r.Pass(ctx, 0))
	want := map[string]string{"keys/user3": "2", "keys/user449": "2"}
	if got := changed(); !maps.Equal(got, want) {
		t.Errorf("rotations were opened for %v", got)
	}
	check(t, r.Pass(ctx, 0))
	if got := changed(); !maps.Equal(got, want) {
		t.Errorf("after another pass there are %v", got)
	}
	// Where a version was relayed before the first look at its place, a change that was lost in between is found, and by no
	// later look again; what a sender did not name says nothing about what was there.
	for user, version := range map[string]string{"user1": "7", "user2": rotation.UnnamedVersion("x")} {
		_, err = engine.Accept(ctx, intake.Notification{Source: "s", ID: user, User: "@" + user + ":example.org", Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "lost/" + user, Version: version})
		check(t, err)
		s.versions["lost/"+user] = "8"
		want["lost/"+user] = version
	}
	want["lost/user1"] = "87"
	for range 2 {
		check(t, r.Pass(ctx, 0))
		if got := changed(); !maps.Equal(got, want) {
			t.Errorf("after a look there are %v, want %v", got, want)
		}
	}
	// Where a user's rotations were is where his key is looked for, whatever the template says.
	_, err = engine.Accept(ctx, intake.Notification{Source: "s", ID: "1", User: "@user5:example.org", Secret: protocol.SecretMegolmBackup, KMS: "corporate", Path: "elsewhere/5", Version: "1"})
	check(t, err)
	s.versions["elsewhere/5"] = "1"
	check(t, r.Pass(ctx, 0))
	s.versions["elsewhere/5"], s.versions["keys/user5"] = "2", "9"
	check(t, r.Pass(ctx, 0))
	want["elsewhere/5"] = "21"
	if got := changed(); !maps.Equal(got, want) {
		t.Errorf("in the end there are %v", got)
	}
}
