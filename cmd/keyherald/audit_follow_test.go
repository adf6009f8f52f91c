package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyherald/keyherald/audit"
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
			err := r.Writer.Append(ctx, event("relay", audit.TriggerSent, "late", audit.Accepted))
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
	if strings.Contains(first, "late") || !strings.Contains(second, "late") {
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
	var appending sync.WaitGroup
	appending.Go(func() {
		for range events / 100 {
			var some []audit.Event
			for range 100 {
				some = append(some, event("relay", audit.TriggerSent, "x", audit.Accepted))
			}
			if err := errors.Join(r.Writer.Append(ctx, some...), seal(ctx, r)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	program, err := os.Executable()
	check(t, err)
	next, kills, repeated := 0, 0, 0
	for next < events {
		cmd := exec.CommandContext(ctx, program, "-c", r.path("config.yaml"), "audit", "follow", "--state", r.path("state"), "--interval", "10ms")
		cmd.Env = append(os.Environ(), runAsProgram+"=1")
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		scanner := bufio.NewScanner(out)
		scanner.Buffer(nil, 1<<20)
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
			t.Fatalf("it says %s", &said)
		}
	}
	appending.Wait()
	if kills < 5 {
		t.Errorf("it was killed %d times only", kills)
	}
	if repeated > followBatch {
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
	_, err = r.Signer.AcceptLoss(t.Context(), "x", "local:test")
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
	program, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(ctx, program, "-c", r.path("config.yaml"), "audit", "follow", "--interval", "10ms")
	cmd.Env = append(os.Environ(), runAsProgram+"=1")
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	scanner := bufio.NewScanner(out)
	if !scanner.Scan() {
		t.Fatal("it prints nothing")
	}
	// Whoever is connected is thrown out, and comes again.
	_, err = r.Super.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	check(t, err)
	check(t, keyheraldtest.Until(ctx, 20*time.Second, func() error {
		return r.Writer.Append(ctx, event("relay", audit.TriggerSent, "after", audit.Accepted))
	}))
	check(t, keyheraldtest.Until(ctx, 20*time.Second, func() error { return seal(ctx, r) }))
	for scanner.Scan() {
		if strings.Contains(scanner.Text(), "after") {
			cancel()
			_ = cmd.Wait()
			return
		}
	}
	t.Error("it ended")
}

func TestAStateThatIsNoneIsNotGuessedAt(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.Append(t, 1)
	r.Seal(t)
	for _, state := range []string{"", "x", "{}", `{"format":"keyherald-audit-follow/2","log":"example.org/keyherald","next":0}`, `{"format":"keyherald-audit-follow/1","log":"example.org/other","next":0}`,
		`{"format":"keyherald-audit-follow/1","log":"example.org/keyherald","next":1}`, `{"format":"keyherald-audit-follow/1","log":"example.org/keyherald","next":-1}`,
		`{"format":"keyherald-audit-follow/1","log":"example.org/keyherald","next":0} {}`} {
		r.write(t, "state", state)
		if out, _, err := r.run(t, "follow", "--once", "--state", r.path("state")); err == nil || out != "" || !strings.Contains(err.Error(), "--from") {
			t.Errorf("%q: it prints %s and ends with %v", state, out, err)
		}
	}
}

func FuzzFollowState(f *testing.F) {
	f.Add([]byte(`{"format":"keyherald-audit-follow/1","log":"l","next":1,"last_leaf_hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Add([]byte(`{"format":"keyherald-audit-follow/1","log":"l","next":0}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseFollowState(raw, "l")
		if err != nil {
			return
		}
		if s.Next < 0 || s.Log != "l" || (s.Next == 0) != (s.LastLeafHash == "") {
			t.Errorf("%s is taken for %+v", raw, s)
		}
	})
}

func TestTimesAreReadAsPeopleWriteThem(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]struct{ begin, end string }{
		"2026-11-01":                {"2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"},
		"2026-11-01T08:30:00Z":      {"2026-11-01T08:30:00Z", "2026-11-01T08:30:00Z"},
		"2026-11-01T08:30:00+02:00": {"2026-11-01T06:30:00Z", "2026-11-01T06:30:00Z"},
		"24h":                       {"2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z"},
		"90m":                       {"2026-11-25T10:30:00Z", "2026-11-25T10:30:00Z"},
		"7d":                        {"2026-11-18T12:00:00Z", "2026-11-18T12:00:00Z"},
		"0d":                        {"2026-11-25T12:00:00Z", "2026-11-25T12:00:00Z"},
	} {
		for end, want := range map[bool]string{false: want.begin, true: want.end} {
			if got, err := instant(text, now, end); err != nil || got.Format(time.RFC3339) != want {
				t.Errorf("%s as an end (%v) is %v (%v), not %s", text, end, got, err, want)
			}
		}
	}
	for _, text := range []string{"", "yesterday", "-24h", "-1d", "1.5d", "2026-13-01", "2026-11-31", "01.11.2026", "0001-01-01", "9999-01-01T00:00:00Z", "65535d", "9999999999h"} {
		if got, err := instant(text, now, false); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func FuzzInstant(f *testing.F) {
	for _, text := range []string{"2026-11-01", "2026-11-01T08:30:00Z", "24h", "7d", "1e9h", "-1d"} {
		f.Add(text, true)
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string, end bool) {
		got, err := instant(text, now, end)
		if err != nil {
			return
		}
		if got.Year() < 1970 || got.Year() > 9001 || got.Location() != time.UTC {
			t.Errorf("%q is taken for %v", text, got)
		}
		if again, err := instant(got.Format(time.RFC3339Nano), now, end); err != nil || !again.Equal(got) {
			t.Errorf("%v is read back as %v (%v)", got, again, err)
		}
	})
}
