package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// hold keeps every group at its audit events, until release: nothing commits meanwhile.
func (room *intakeRoom) hold(t *testing.T) (release func()) {
	t.Helper()
	tx, err := room.owner.RawDB.BeginTx(t.Context(), nil)
	check(t, err)
	t.Cleanup(func() { _ = tx.Rollback() })
	_, err = tx.ExecContext(t.Context(), `LOCK TABLE audit_event IN EXCLUSIVE MODE`)
	check(t, err)
	return func() { check(t, tx.Rollback()) }
}

// held waits until a group is at the lock, and so many more notifications wait behind it.
func (room *intakeRoom) held(t *testing.T, waiting int) {
	t.Helper()
	wait(t, fmt.Sprintf("a group at the lock and %d behind it", waiting), func() bool {
		var blocked int
		check(t, room.owner.QueryRow(t.Context(), `SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'audit_event'::regclass
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&blocked))
		return blocked == 1 && room.arrivals.Waiting() == waiting
	})
}

// transactions counts those that kept the notifications there are.
func (room *intakeRoom) transactions(t *testing.T) (notifications, transactions int) {
	t.Helper()
	check(t, room.db.QueryRow(t.Context(), `SELECT COUNT(*), COUNT(DISTINCT xmin::text) FROM notification`).Scan(&notifications, &transactions))
	return notifications, transactions
}

// outcome is what a call of the recorder came to, once done is closed.
type outcome struct {
	receipt intake.Receipt
	err     error
	done    chan struct{}
}

func (o *outcome) answered() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// arrive sends a notification, or an unusable one where there is a problem, and does not wait for its answer.
func arrive(ctx context.Context, arrivals *relay.Arrivals, n intake.Notification, problem string) *outcome {
	o := &outcome{done: make(chan struct{})}
	go func() {
		defer close(o.done)
		if problem == "" {
			o.receipt, o.err = arrivals.Accept(ctx, n)
		} else {
			o.receipt, o.err = arrivals.Unusable(ctx, n, intake.Problem{Why: audit.RefusedNoUsableVersion, Text: problem})
		}
	}()
	return o
}

func notification(id, user, version string) intake.Notification {
	return intake.Notification{Source: "kms", ID: id, KeyID: "k", BodySHA256: [32]byte{1}, User: "@" + user + ":example.org",
		Secret: "m.megolm_backup.v1", KMS: "dev", Path: "keyherald/" + user, Version: version}
}

func TestNotificationsThatArriveTogetherAreAnsweredAfterOneCommit(t *testing.T) {
	t.Parallel()
	room := newIntakeRoom(t, 0)
	release := room.hold(t)
	const more = 40
	answers := make(chan *httptest.ResponseRecorder, more+1)
	post := func(i int) {
		go func() {
			answers <- send(t, room.web, post{body: cloudEvent(fmt.Sprint(i), "keyherald/"+strings.Repeat("a", i+1)+"/backup-key", "1")})
		}()
	}
	post(0)
	room.held(t, 0)
	for i := range more {
		post(i + 1)
	}
	room.held(t, more)
	if kept, _ := room.transactions(t); kept != 0 || len(answers) != 0 {
		t.Fatalf("before the commit %d are kept and %d answered", kept, len(answers))
	}
	release()
	for range more + 1 {
		if answer := <-answers; answer.Code != http.StatusAccepted || !strings.Contains(answer.Body.String(), "rotation_id") {
			t.Errorf("got %d %s", answer.Code, answer.Body)
		}
	}
	if kept, transactions := room.transactions(t); kept != more+1 || transactions != 2 {
		t.Errorf("%d are kept by %d transactions, want %d by 2", kept, transactions, more+1)
	}
	if counts := counted(t, room.db); counts["notification.accepted"] != more+1 {
		t.Errorf("the log has %v", counts)
	}
}

func TestInAGroupEachIsTreatedAsIfItHadComeAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 0)
	release := room.hold(t)
	first := arrive(ctx, room.arrivals, notification("first", "zoe", "1"), "")
	room.held(t, 0)

	other := notification("1", "alice", "7")
	other.BodySHA256 = [32]byte{2}
	tests := []struct {
		name    string
		n       intake.Notification
		problem string
		answer  intake.Answer
		as      int // the test whose rotation it is, -1 for none
		state   rotation.State
	}{
		{"a version", notification("1", "alice", "1"), "", intake.Fresh, 0, rotation.Superseded},
		{"the same notification again", notification("1", "alice", "1"), "", intake.Duplicate, 0, rotation.Superseded},
		{"its id with another body", other, "", intake.Conflict, 0, rotation.Superseded},
		{"a newer version", notification("2", "alice", "3"), "", intake.Fresh, 3, rotation.Received},
		{"a version between that comes late", notification("3", "alice", "2"), "", intake.Fresh, 4, rotation.Superseded},
		{"the newest version in another notification", notification("4", "alice", "3"), "", intake.Fresh, 3, rotation.Received},
		{"a version without an order", notification("5", "bob", "red"), "", intake.Fresh, 6, rotation.Superseded},
		{"another one of these, which wins by being later", notification("6", "bob", "blue"), "", intake.Fresh, 7, rotation.Received},
		{"an unusable one", notification("7", "carol", ""), "no version", intake.Fresh, -1, ""},
		{"the unusable one again", notification("7", "carol", ""), "no version", intake.Duplicate, -1, ""},
		{"a newer version than one that is kept already", notification("8", "zoe", "2"), "", intake.Fresh, 10, rotation.Received},
	}
	outcomes := make([]*outcome, len(tests))
	for i, test := range tests {
		outcomes[i] = arrive(ctx, room.arrivals, test.n, test.problem)
		room.held(t, i+1)
	}
	release()
	<-first.done
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			<-outcomes[i].done
			check(t, outcomes[i].err)
			got := outcomes[i].receipt
			if got.Answer != test.answer {
				t.Errorf("answered %v, want %v", got.Answer, test.answer)
			}
			if test.as < 0 {
				if got.RotationID != "" {
					t.Errorf("it opened %s", got.RotationID)
				}
				return
			}
			<-outcomes[test.as].done
			if want := outcomes[test.as].receipt.RotationID; got.RotationID == "" || got.RotationID != want {
				t.Errorf("its rotation is %q, want %q", got.RotationID, want)
			}
			if state := room.state(t, got.RotationID); state != test.state {
				t.Errorf("its rotation is %s, want %s", state, test.state)
			}
		})
	}
	if state := room.state(t, first.receipt.RotationID); state != rotation.Superseded {
		t.Errorf("the rotation of the group before is %s", state)
	}
	if _, transactions := room.transactions(t); transactions != 2 {
		t.Errorf("it took %d transactions", transactions)
	}
	counts := counted(t, room.db)
	for action, want := range map[string]int{"notification.accepted": 8, "notification.unusable": 1, "rotation.superseded": 4} {
		if counts[action] != want {
			t.Errorf("%d events %s, want %d", counts[action], action, want)
		}
	}
}

func (room *intakeRoom) state(t *testing.T, id string) (state rotation.State) {
	t.Helper()
	check(t, room.db.QueryRow(t.Context(), `SELECT state FROM rotation WHERE id = $1::uuid AND (ended_at IS NOT NULL) = (state = 'superseded')`, id).Scan(&state))
	return state
}

func TestWhatTheDatabaseRefusesFailsAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 0)
	release := room.hold(t)
	first := arrive(ctx, room.arrivals, notification("first", "zoe", "1"), "")
	room.held(t, 0)
	raw := make([]byte, 10000) // no index takes this as an id
	_, err := rand.Read(raw)
	check(t, err)
	const bad = 5
	outcomes := make([]*outcome, 12)
	for i := range outcomes {
		id := fmt.Sprint(i)
		if i == bad {
			id = hex.EncodeToString(raw)
		}
		outcomes[i] = arrive(ctx, room.arrivals, notification(id, "alice", fmt.Sprint(i+1)), "")
		room.held(t, i+1)
	}
	release()
	<-first.done
	for i, o := range outcomes {
		<-o.done
		if i == bad {
			if o.err == nil || errors.Is(o.err, intake.ErrBusy) {
				t.Errorf("the bad one got %v", o.err)
			}
		} else if o.err != nil || o.receipt.Answer != intake.Fresh {
			t.Errorf("number %d got %v, %v", i, o.receipt, o.err)
		}
	}
	if kept, _ := room.transactions(t); kept != len(outcomes) {
		t.Errorf("%d are kept, want %d", kept, len(outcomes))
	}
	if counts := counted(t, room.db); counts["notification.accepted"] != len(outcomes) || counts["rotation.superseded"] != len(outcomes)-2 {
		t.Errorf("the log has %v", counts)
	}
}

func TestADatabaseThatGoesAwayKeepsNothingAndAsksToComeAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 0)
	super, err := postgres.Open(ctx, strings.Replace(room.database.SuperURL, "/"+room.database.Name, "/postgres", 1))
	check(t, err)
	t.Cleanup(func() { _ = super.Close() })
	room.hold(t)
	answers := make(chan *httptest.ResponseRecorder, 10)
	post := func(i int) {
		go func() {
			answers <- send(t, room.web, post{body: cloudEvent(fmt.Sprint(i), "keyherald/alice/backup-key", fmt.Sprint(i))})
		}()
	}
	post(1)
	room.held(t, 0)
	for i := range 9 {
		post(i + 2)
	}
	room.held(t, 9)
	_, err = super.Exec(ctx, `ALTER DATABASE `+room.database.Name+` ALLOW_CONNECTIONS false`)
	check(t, err)
	_, err = super.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, room.database.Writer)
	check(t, err)
	for range 10 {
		if answer := <-answers; answer.Code != http.StatusServiceUnavailable || answer.Header().Get("Retry-After") == "" {
			t.Errorf("got %d with Retry-After %q", answer.Code, answer.Header().Get("Retry-After"))
		}
	}
	_, err = super.Exec(ctx, `ALTER DATABASE `+room.database.Name+` ALLOW_CONNECTIONS true`)
	check(t, err)
	if kept, _ := room.transactions(t); kept != 0 || counted(t, room.db)["notification.accepted"] != 0 {
		t.Errorf("%d are kept, with %v in the log", kept, counted(t, room.db))
	}
}

func TestAFullQueueAsksToComeAgainAndLosesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 2)
	release := room.hold(t)
	outcomes := []*outcome{arrive(ctx, room.arrivals, notification("0", "zoe", "1"), "")}
	room.held(t, 0)
	for i := range 2 {
		outcomes = append(outcomes, arrive(ctx, room.arrivals, notification(fmt.Sprint(i+1), "zoe", "1"), ""))
		room.held(t, i+1)
	}
	over := post{body: cloudEvent("over", "keyherald/alice/backup-key", "1")}
	if answer := send(t, room.web, over); answer.Code != http.StatusServiceUnavailable || answer.Header().Get("Retry-After") == "" {
		t.Errorf("got %d with Retry-After %q", answer.Code, answer.Header().Get("Retry-After"))
	}
	release()
	for i, o := range outcomes {
		if <-o.done; o.err != nil {
			t.Errorf("number %d, which waited: %v", i, o.err)
		}
	}
	if answer := send(t, room.web, over); answer.Code != http.StatusAccepted || !strings.Contains(answer.Body.String(), "accepted") {
		t.Errorf("coming again got %d %s", answer.Code, answer.Body)
	}
}

func TestASenderThatLeavesDoesNotCancelItsGroup(t *testing.T) {
	t.Parallel()
	room := newIntakeRoom(t, 0)
	release := room.hold(t)
	leaving, leave := context.WithCancel(t.Context())
	left := arrive(leaving, room.arrivals, notification("1", "alice", "1"), "")
	room.held(t, 0)
	alsoLeft := arrive(leaving, room.arrivals, notification("2", "bob", "1"), "")
	room.held(t, 1)
	stays := arrive(t.Context(), room.arrivals, notification("3", "carol", "1"), "")
	room.held(t, 2)
	leave()
	for _, o := range []*outcome{left, alsoLeft} {
		if <-o.done; !errors.Is(o.err, context.Canceled) {
			t.Errorf("who left got %v", o.err)
		}
	}
	release()
	<-stays.done
	check(t, stays.err)
	for _, n := range []intake.Notification{notification("1", "alice", "1"), notification("2", "bob", "1")} {
		receipt, err := room.arrivals.Accept(t.Context(), n)
		check(t, err)
		if receipt.Answer != intake.Duplicate || receipt.RotationID == "" {
			t.Errorf("coming again got %+v", receipt)
		}
	}
}

func TestWhatWaitsAtTheEndIsStillKeptAndWhatComesLaterIsNot(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	room := newIntakeRoom(t, 0)
	release := room.hold(t)
	first := arrive(ctx, room.arrivals, notification("1", "alice", "1"), "")
	room.held(t, 0)
	second := arrive(ctx, room.arrivals, notification("2", "bob", "1"), "")
	room.held(t, 1)
	stopped := make(chan struct{})
	go func() { defer close(stopped); room.stop() }()
	if first.answered() || second.answered() {
		t.Error("somebody was answered before the commit")
	}
	release()
	<-stopped
	for _, o := range []*outcome{first, second} {
		<-o.done
		check(t, o.err)
	}
	if _, err := room.arrivals.Accept(ctx, notification("3", "carol", "1")); !errors.Is(err, intake.ErrBusy) {
		t.Errorf("after the end: %v", err)
	}
	if kept, _ := room.transactions(t); kept != 2 {
		t.Errorf("%d are kept", kept)
	}
}
