package main

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/follow"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// indexes are the leaf indexes of lines, in their order.
func indexes(t *testing.T, text string) (found []int) {
	t.Helper()
	for _, line := range lines(t, text) {
		found = append(found, int(line["index"].(float64)))
	}
	return found
}

func upTo(first, end int) (all []int) {
	for i := first; i < end; i++ {
		all = append(all, i)
	}
	return all
}

func TestFollowPrintsWhatIsSealedAndGoesOnFromItsState(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.Append(t, 4)
	r.Seal(t)
	r.Append(t, 1)
	args := []string{"follow", "--once", "--state", r.path("state")}
	if got := indexes(t, r.must(t, args...)); !slices.Equal(got, upTo(0, 5)) {
		t.Errorf("the leaves are %v", got)
	}
	action, detail := r.told(t)
	if action != "audit.read" || detail["command"] != "follow" || detail["format"] != "jsonl" || detail["from"] != 0.0 {
		t.Errorf("the log says %s of %v", action, detail)
	}
	if out := r.must(t, args...); out != "" {
		t.Errorf("nothing new is %s", out)
	}
	r.Seal(t)
	out := r.must(t, append(args, "--format", "ocsf")...)
	if decoded := lines(t, out); len(decoded) != 3 || decoded[0]["metadata"].(map[string]any)["sequence"] != 5.0 || decoded[1]["class_name"] != "Datastore Activity" {
		t.Errorf("as OCSF it prints %s", out)
	}
	if got := indexes(t, r.must(t, append(args, "--from", "3")...)); !slices.Equal(got, upTo(3, 8)) {
		t.Errorf("from 3 the leaves are %v", got)
	}
	if got := indexes(t, r.must(t, "follow", "--once", "--from", "0")); !slices.Equal(got, upTo(0, 8)) {
		t.Errorf("from 0 the leaves are %v", got)
	}
	if info, err := os.Stat(r.path("state")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the state has mode %v (%v)", info.Mode(), err)
	}
}

// An event that commits after a newer one was sealed and printed is printed all the same, which a follower of ids or times
// would miss.
func TestFollowDoesNotMissWhatCommitsLate(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	begun, commit := make(chan struct{}), make(chan struct{})
	var late sync.WaitGroup
	late.Go(func() {
		err := r.Writer.Txn(t.Context(), func(ctx context.Context) error {
			err := r.Writer.Append(ctx, event(audit.ByRelay(), audit.LeaseTaken, audit.OfUser("@late:example.org"), audit.Accepted, audit.Number("epoch", 1)))
			close(begun)
			<-commit
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-begun
	r.Append(t, 3)
	r.Seal(t)
	first := r.must(t, "follow", "--once", "--state", r.path("state"))
	close(commit)
	late.Wait()
	r.Seal(t)
	second := r.must(t, "follow", "--once", "--state", r.path("state"))
	if strings.Contains(first, "@late:") || !strings.Contains(second, "@late:") {
		t.Errorf("first it prints %s, then %s", first, second)
	}
	if got := append(indexes(t, first), indexes(t, second)...); !slices.Equal(got, upTo(0, 6)) {
		t.Errorf("the leaves are %v", got)
	}
}

// follow as a program of its own, killed again and again while events come: every leaf is printed, in order, and after a
// kill at most what one batch has is printed again.
func TestFollowIsKilledAndMissesNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	const events = 6000
	appending := r.grow(t, events)
	next, kills, repeated := 0, 0, 0
	for next < events {
		cmd, scanner, said := startProgram(ctx, t, "-c", r.path("config.yaml"), "audit", "follow", "--state", r.path("state"), "--interval", "10ms")
		killed := false
		for n := 0; scanner.Scan(); n++ {
			if killed && !json.Valid(scanner.Bytes()) {
				break // cut in the middle
			}
			got := indexes(t, scanner.Text())[0]
			if n == 0 {
				if got > next {
					t.Fatalf("leaf %d comes after %d", got, next-1)
				}
				repeated = max(repeated, next-got)
			} else if got != next {
				t.Fatalf("leaf %d comes after %d", got, next-1)
			}
			next = got + 1
			if !killed && (next >= events || n == 700+kills*37) {
				check(t, cmd.Process.Kill())
				killed = true
				kills++
			}
		}
		_ = cmd.Wait()
		if next < events && said.Len() > 0 {
			t.Fatalf("it says %s", said)
		}
	}
	appending.Wait()
	if kills < 5 {
		t.Errorf("it was killed %d times only", kills)
	}
	if repeated > follow.Batch {
		t.Errorf("%d events were printed again after a kill", repeated)
	}
	t.Logf("%d kills, at most %d events again", kills, repeated)
}

func seal(ctx context.Context, r *room) error {
	_, err := r.Signer.Seal(ctx)
	return err
}

func TestFollowStopsWhereTheLogIsNotTheSameAnyMore(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.Append(t, 3)
	r.Seal(t)
	dump, err := cluster.Dump(t.Context(), r.Database.Name)
	check(t, err)
	r.Append(t, 3)
	r.Seal(t)
	r.must(t, "follow", "--once", "--state", r.path("state"))
	before := r.read(t, "state")
	check(t, cluster.Restore(t.Context(), r.Database, dump))
	out, _, err := r.run(t, "follow", "--state", r.path("state"))
	wantExit(t, err, 6)
	if out != "" || r.read(t, "state") != before {
		t.Errorf("it prints %s and remembers %s", out, r.read(t, "state"))
	}
	// The loss is accepted, and as many events as before come: their leaves have the old indexes.
	_, err = r.Signer.AcceptLoss(t.Context(), "x", keyheraldtest.Admin())
	check(t, err)
	r.Append(t, 5)
	r.Seal(t)
	_, _, err = r.run(t, "follow", "--once", "--state", r.path("state"))
	wantExit(t, err, 6)
	if got := indexes(t, r.must(t, "follow", "--once", "--state", r.path("state"), "--from", "4")); got[0] != 4 {
		t.Errorf("the leaves are %v", got)
	}
	r.must(t, "follow", "--once", "--state", r.path("state"))
	r.Append(t, 1)
	r.Seal(t)
	r.Tamper(t, "UPDATE audit_event SET body = overlay(body placing 'X' from 60) WHERE id = (SELECT event_id FROM audit_leaf ORDER BY leaf_index DESC LIMIT 1)")
	_, _, err = r.run(t, "follow", "--state", r.path("state"))
	wantExit(t, err, 7)
}

func TestFollowWaitsForADatabaseThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.Append(t, 1)
	r.Seal(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd, scanner, _ := startProgram(ctx, t, "-c", r.path("config.yaml"), "audit", "follow", "--interval", "10ms")
	if !scanner.Scan() {
		t.Fatal("it prints nothing")
	}
	// Whoever is connected is thrown out, and comes again.
	_, err := r.Super.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	check(t, err)
	check(t, keyheraldtest.Until(ctx, time.Minute, func() error {
		return r.Writer.Append(ctx, event(audit.ByRelay(), audit.LeaseTaken, audit.OfUser("@after:example.org"), audit.Accepted, audit.Number("epoch", 1)))
	}))
	check(t, keyheraldtest.Until(ctx, time.Minute, func() error { return seal(ctx, r) }))
	for scanner.Scan() {
		if strings.Contains(scanner.Text(), "@after:") {
			cancel()
			_ = cmd.Wait()
			return
		}
	}
	t.Error("it ended")
}
