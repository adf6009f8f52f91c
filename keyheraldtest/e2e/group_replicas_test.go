package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/relay"
)

// Two replicas get the same users' changes in opposite orders, and many of the notifications twice.
func TestGroupsOfSeveralReplicasNeitherLockUpNorLeaveTwoRotationsOpen(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 0)
	_, second, _ := newReplica(t, room.database, 0)
	const users, versions = 6, 20
	fresh := make(chan string, 2*users*versions)
	var all sync.WaitGroup
	for u := range users {
		for v := range versions {
			for replica, arrivals := range []*relay.Arrivals{room.arrivals, second} {
				n := notification(fmt.Sprintf("%d-%d", u, v), "u"+strings.Repeat("x", u), fmt.Sprint(v+1))
				if replica == 1 {
					n = notification(fmt.Sprintf("%d-%d", users-1-u, versions-1-v), "u"+strings.Repeat("x", users-1-u), fmt.Sprint(versions-v))
				}
				all.Go(func() {
					receipt, err := arrivals.Accept(ctx, n)
					if err != nil {
						t.Errorf("%s: %v", n.ID, err)
					} else if receipt.Answer == intake.Fresh {
						fresh <- n.ID
					} else if receipt.Answer != intake.Duplicate {
						t.Errorf("%s was answered %v", n.ID, receipt.Answer)
					}
				})
			}
		}
	}
	all.Wait()
	if len(fresh) != users*versions {
		t.Errorf("%d were new, want %d", len(fresh), users*versions)
	}
	rotations, err := room.db.Rotations(ctx, "", false)
	check(t, err)
	if len(rotations) != users*versions {
		t.Errorf("%d rotations, want %d", len(rotations), users*versions)
	}
	for _, r := range rotations {
		if open := !r.Facts.State.Ended(); open != (r.KMS.Version == fmt.Sprint(versions)) {
			t.Errorf("version %s of %s is %s", r.KMS.Version, r.UserID, r.Facts.State)
		}
	}
	if counts := counted(t, room.db); counts["rotation.superseded"] != users*(versions-1) || counts["notification.accepted"] != users*versions {
		t.Errorf("the log has %v", counts)
	}
}

func TestAReplicaWaitsForAnothersGroupThatIsAboutTheSame(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		n            intake.Notification
		answer       intake.Answer
		open, events int
	}{
		{"a newer version of the same user's key", notification("2", "alice", "2"), intake.Fresh, 1, 3},
		{"the same notification", notification("1", "alice", "1"), intake.Duplicate, 1, 1},
		{"the same id for another user", notification("1", "bob", "1"), intake.Duplicate, 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			room := newIntakeRoom(t, 0)
			before := newest(t, room.db)
			_, second, _ := newReplica(t, room.database, 0)
			release := room.hold(t)
			first := arrive(ctx, room.arrivals, notification("1", "alice", "1"), "")
			room.held(t, 0)
			later := arrive(ctx, second, test.n, "")
			wait(t, "both replicas to be at a lock", func() bool {
				var blocked int
				// Whoever waits for a transaction to end does so in no database: those of other tests are told by their sessions.
				check(t, room.owner.QueryRow(ctx, `SELECT COUNT(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = current_database()`).Scan(&blocked))
				return blocked == 2
			})
			release()
			<-first.done
			<-later.done
			check(t, errors.Join(first.err, later.err))
			if later.receipt.Answer != test.answer {
				t.Errorf("answered %v, want %v", later.receipt.Answer, test.answer)
			}
			open, err := room.db.Rotations(ctx, "", true)
			check(t, err)
			events := since(t, room.db, before)
			if len(open) != test.open || len(events) != test.events {
				t.Errorf("%d rotations are open and %d events in the log, want %d and %d", len(open), len(events), test.open, test.events)
			}
		})
	}
}
