package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/keyheraldtest"
)

func TestTheLogIsTheSameByTheAPIAndItSaysWhoReadIt(t *testing.T) {
	t.Parallel()
	r, rotation := office(t)
	withBot(t, r).Seal(t)
	remotely := []string{"--server", r.server(t), "--token-file", r.path("admin.token")}
	withoutReadings := func(text string) (events []map[string]any) {
		for _, event := range lines(t, text) {
			if event["action"] != "audit.read" && event["action"] != "api_token.created" {
				events = append(events, event)
			}
		}
		return events
	}
	for _, args := range [][]string{
		{"--limit", "1000"}, {"--rotation", rotation.String()}, {"--user", "@alice:example.org"}, {"--actor", "relay", "--action", "trigger.*,rotation.done"},
		{"--refused"}, {"--outcome", "reported_by_device"}, {"--since", "4h", "--until", "2h"},
	} {
		args = append([]string{"list", "--json"}, args...)
		here, there := withoutReadings(r.must(t, args...)), withoutReadings(r.must(t, append(args, remotely...)...))
		if len(here) == 0 || !reflect.DeepEqual(here, there) {
			t.Errorf("%q lists by the database\n%v\nand by the API\n%v", args, here, there)
		}
	}
	if action, detail := r.told(t); action != "audit.read" || detail["command"] != "list" || detail["since"] == nil {
		t.Errorf("the log says %s of %v", action, detail)
	}
	out := r.must(t, append([]string{"list", "--limit", "1"}, remotely...)...)
	if !strings.Contains(out, "audit.read") || !strings.Contains(out, "admin:token:test-admin") || strings.Count(out, "\n") != 1 {
		t.Errorf("the newest is %s", out)
	}
	key := withoutReadings(r.must(t, "list", "--json", "--action", "rotation.done"))[0]["id"].(string)
	for _, form := range [][]string{{"show", key}, {"show", key, "--json"}} {
		if here, there := r.must(t, form...), r.must(t, append(form, remotely...)...); here != there || !strings.Contains(here, "rotation.done") {
			t.Errorf("%q shows by the database\n%s\nand by the API\n%s", form, here, there)
		}
	}
	if _, said, err := r.run(t, append([]string{"list", "--action", "rotation.failed"}, remotely...)...); err != nil || !strings.Contains(said, "No event is like that") {
		t.Errorf("nothing is told with %q and %v", said, err)
	}
}

func TestWhatTheAPIDoesNotShowOfTheLogIsSaid(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	address := withBot(t, r).server(t)
	r.write(t, "wrong.token", "kht1.AAAA\n")
	for _, test := range []struct {
		name string
		args []string
		says string
	}{
		{"all of it", []string{"list", "--limit", "0"}, "write how many"},
		{"what is no action", []string{"list", "--action", "rotation"}, "is no action"},
		{"a leaf index", []string{"show", "3"}, "no event's id"},
		{"an event that is not there", []string{"show", uuid.NewString()}, "there is no event"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, _, err := r.run(t, append(test.args, "--server", address, "--token-file", r.path("admin.token"))...)
			if err == nil || !strings.Contains(err.Error(), test.says) || out != "" {
				t.Errorf("it prints %q and ends with %v", out, err)
			}
		})
	}
	if out, _, err := r.run(t, "list", "--server", address, "--token-file", r.path("wrong.token")); err == nil || out != "" || strings.Contains(err.Error(), "AAAA") {
		t.Errorf("a wrong token prints %q and ends with %v", out, err)
	}
}

// remotely has a command act by the room's API.
func (r *room) remotely(t *testing.T, args ...string) []string {
	t.Helper()
	if r.address == "" {
		withBot(t, r)
	}
	address := r.server(t)
	return append(args, "--server", address, "--token-file", r.path("admin.token"))
}

func TestWhatGoesOutByTheAPIIsWhatGoesOutByTheDatabase(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.remotely(t)
	r.Seal(t)
	r.Append(t, 2) // not sealed
	for _, format := range []string{"jsonl", "ocsf", "csv"} {
		for _, span := range [][]string{nil, {"--from", "4h", "--to", "2h"}} {
			here := r.must(t, append([]string{"export", "--format", format, "--out", "-"}, span...)...)
			there, said, err := r.run(t, r.remotely(t, append([]string{"export", "--format", format, "--out", "-"}, span...)...)...)
			check(t, err)
			if here != there || here == "" {
				t.Errorf("as %s the database gives\n%s\nand the API\n%s", format, here, there)
			}
			if !strings.Contains(said, "Not among them:") || !strings.Contains(said, fmt.Sprintf("of %d events in epoch 1", len(r.Bodies(t)))) {
				t.Errorf("it says %s", said)
			}
			if action, detail := r.told(t); action != "audit.exported" || detail["format"] != format || (detail["since"] == nil) != (span == nil) {
				t.Errorf("the log says %s of %v", action, detail)
			}
		}
	}
	var actor string
	check(t, r.Super.QueryRow(t.Context(), `SELECT actor FROM audit_log ORDER BY id DESC LIMIT 1`).Scan(&actor))
	if actor != "admin:token:test-admin" {
		t.Errorf("the log says that %s exported it", actor)
	}
	r.must(t, r.remotely(t, "export", "--format", "bundle", "--out", r.path("bundle"))...)
	b := openBundle(t, r.path("bundle"), r.Keys.Public[0])
	b.intact(t)
	if info, err := os.Stat(r.path("bundle")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the bundle has mode %v (%v)", info.Mode(), err)
	}
	key := lines(t, r.must(t, "list", "--json", "--action", "rotation.done"))[0]["id"].(string)
	for _, args := range [][]string{{"prove", key}, {"checkpoint"}, {"checkpoint", "--epoch", "1", "--size", fmt.Sprint(len(b.leaves))}, {"follow", "--once"}, {"follow", "--once", "--from", "2", "--format", "ocsf"}} {
		here := r.must(t, args...)
		if there := r.must(t, r.remotely(t, args...)...); here != there || here == "" {
			t.Errorf("%q prints by the database\n%s\nand by the API\n%s", args, here, there)
		}
	}
}

func TestTheReportIsMadeForWhoeverAsksByTheAPI(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	r.must(t, "report", "--from", "7d", "--to", "0d", "--out", r.path("here.html"), "--csv", r.path("here.csv"))
	out, said, err := r.run(t, r.remotely(t, "report", "--from", "7d", "--to", "0d", "--out", r.path("there.html"), "--csv", r.path("there.csv"))...)
	check(t, err)
	if out != "" || !strings.Contains(said, "The server finds its log: unchanged.") || !strings.Contains(said, "not proof of use") {
		t.Errorf("it says %s%s", out, said)
	}
	if here, there := r.read(t, "here.csv"), r.read(t, "there.csv"); here != there || !strings.Contains(here, "@alice") {
		t.Errorf("by the database the rotations are\n%s\nand by the API\n%s", here, there)
	}
	page := r.read(t, "there.html")
	for _, want := range []string{"unchanged since", "admin:token:test-admin", "internal audit", "@alice:example.org"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if _, _, err := r.run(t, r.remotely(t, "report", "--from", "7d", "--to", "0d", "--out", r.path("there.html"))...); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("over a file that is there it ends with %v", err)
	}
}

// What was exported is there whole, or not at all: neither where the server finds that it cannot go on, nor where the answer
// breaks off on its way.
func TestAnExportThatDoesNotComeWholeLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	many := make([]audit.Event, 3000)
	for i := range many {
		many[i] = leaseTaken()
	}
	r.AppendEvents(t, many...)
	r.Seal(t)
	r.Tamper(t, "UPDATE audit_event SET body = '{' WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 2500)")
	for _, format := range []string{"jsonl", "csv", "ocsf"} {
		_, _, err := r.run(t, r.remotely(t, "export", "--format", format, "--out", r.path("out"))...)
		if err == nil || !strings.Contains(err.Error(), "did not come whole") {
			t.Errorf("%s ends with %v", format, err)
		}
	}
	// What is found before anything went out is said.
	r.Tamper(t, "UPDATE audit_event SET body = '{' WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 3)")
	_, _, err := r.run(t, r.remotely(t, "export", "--format", "csv", "--out", r.path("out"))...)
	if err == nil || !strings.Contains(err.Error(), "leaf 3, is not as keyherald wrote it") {
		t.Errorf("it ends with %v", err)
	}
	if left, err := filepath.Glob(r.path("*out*")); err != nil || len(left) > 0 {
		t.Errorf("there are %v (%v)", left, err)
	}
}

func TestWhatCannotBeExportedByTheAPIIsRefusedInWords(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.Seal(t)
	unsealed := func() string {
		r.Append(t, 1)
		found := lines(t, r.must(t, "list", "--json", "--action", "bot.lease_taken"))
		return found[len(found)-1]["id"].(string)
	}()
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"export", "--format", "xml", "--out", "-"}, "write jsonl, csv, ocsf or bundle"},
		{[]string{"export", "--format", "bundle", "--from", "1d", "--out", "-"}, "a bundle is always whole"},
		{[]string{"export", "--format", "csv", "--from", "yesterday", "--out", "-"}, "--from"},
		{[]string{"prove", "3"}, "no event's id"},
		{[]string{"prove", uuid.NewString()}, "there is no event"},
		{[]string{"prove", unsealed}, "not sealed yet"},
		{[]string{"checkpoint", "--epoch", "7"}, "no checkpoint of epoch 7"},
		{[]string{"checkpoint", "--size", "100000"}, "next to it"},
		{[]string{"checkpoint", "--size", "-1"}, "from 1 on"},
		{[]string{"follow", "--from", "-1"}, "from 0 on"},
		{[]string{"follow", "--from", "100000"}, "no leaf 99999 before it yet"},
		{[]string{"follow", "--format", "csv"}, "write jsonl or ocsf"},
	} {
		out, _, err := r.run(t, r.remotely(t, test.args...)...)
		if err == nil || !strings.Contains(err.Error(), test.says) || out != "" {
			t.Errorf("%q prints %q and ends with %v", test.args, out, err)
		}
	}
}

// A log that went back is told from one that is quiet, also while the stream is open.
func TestFollowByTheAPIStopsWhereTheLogIsNotTheSameAnyMore(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	follow := r.remotely(t, "follow", "--state", r.path("state"), "--interval", "10ms")
	r.Append(t, 3)
	r.Seal(t)
	dump, err := cluster.Dump(t.Context(), r.Database.Name)
	check(t, err)
	r.Append(t, 3)
	r.Seal(t)
	r.must(t, append(follow, "--once")...)
	before := r.read(t, "state")
	check(t, cluster.Restore(t.Context(), r.Database, dump))
	out, _, err := r.run(t, follow...)
	wantExit(t, err, 6)
	if out != "" || r.read(t, "state") != before {
		t.Errorf("it prints %s and remembers %s", out, r.read(t, "state"))
	}
	// The loss is accepted, and as many events as before come: their leaves have the old indexes.
	_, err = r.Signer.AcceptLoss(t.Context(), "x", keyheraldtest.Admin())
	check(t, err)
	r.Append(t, 8)
	r.Seal(t)
	_, _, err = r.run(t, follow...)
	wantExit(t, err, 6)
	r.must(t, append(follow, "--once", "--from", "4")...)
	r.Append(t, 1)
	r.Seal(t)
	r.Tamper(t, "UPDATE audit_event SET body = overlay(body placing 'X' from 60) WHERE id = (SELECT event_id FROM audit_leaf ORDER BY leaf_index DESC LIMIT 1)")
	_, _, err = r.run(t, follow...)
	wantExit(t, err, 7)
}

func TestAStreamThatIsOpenEndsWhereItsLastLeafBecomesAnother(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	follow := r.remotely(t, "-c", r.path("config.yaml"), "audit", "follow", "--interval", "10ms")
	r.Append(t, 3)
	r.Seal(t)
	cmd, scanner, _ := startProgram(t.Context(), t, follow...)
	for last := r.Count(t, `SELECT MAX(leaf_index)::int FROM audit_leaf`); scanner.Scan(); {
		if indexes(t, scanner.Text())[0] == last {
			break
		}
	}
	r.Tamper(t, "UPDATE audit_leaf SET leaf_hash = decode(repeat('ab', 32), 'hex') WHERE leaf_index = (SELECT MAX(leaf_index) FROM audit_leaf)")
	if scanner.Scan() {
		t.Errorf("it prints %s", scanner.Text())
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("it ends with %v", err)
	}
}

// The follower outlives its server, and its own kill.
func TestFollowByTheAPIMissesNothing(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx := t.Context()
	args := r.remotely(t, "-c", r.path("config.yaml"), "audit", "follow", "--state", r.path("state"), "--interval", "10ms")
	const events = 3000
	appending := r.grow(t, events)
	next, cuts := 0, 0
	for next < events {
		cmd, scanner, _ := startProgram(ctx, t, args...)
		killed := false
		for n := 0; scanner.Scan() && (!killed || json.Valid(scanner.Bytes())); n++ {
			got := indexes(t, scanner.Text())[0]
			if got > next || n > 0 && got != next {
				t.Fatalf("leaf %d comes after %d", got, next-1)
			}
			next = got + 1
			if n%500 == 300 {
				r.cut() // the stream ends, and is opened again without a word
				cuts++
			}
			// What it wrote before it was killed is still read.
			if !killed && (next >= events || n == 1100) {
				check(t, cmd.Process.Kill())
				killed = true
			}
		}
		_ = cmd.Wait()
	}
	appending.Wait()
	if cuts < 3 {
		t.Errorf("the stream was cut %d times only", cuts)
	}
}

func TestTheServerOfALoginIsMeantWhereNothingElseIsNamed(t *testing.T) {
	r, _ := office(t)
	r.Seal(t)
	address := withBot(t, r).server(t)
	t.Setenv(serverVariable, address)
	t.Setenv(tokenFileVariable, r.path("admin.token"))
	var stdout bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs([]string{"audit", "checkpoint"})
	cmd.SetOut(&stdout)
	check(t, cmd.ExecuteContext(t.Context()))
	if stdout.String() != r.must(t, "checkpoint") {
		t.Errorf("it prints %s", &stdout)
	}
	// Who names a configuration means its database.
	r.must(t, "list")
	var actor string
	check(t, r.Super.QueryRow(t.Context(), `SELECT actor FROM audit_log ORDER BY id DESC LIMIT 1`).Scan(&actor))
	if !strings.HasPrefix(actor, "local:") {
		t.Errorf("%s read it", actor)
	}
}

// By the API, too: no event, no output.
func TestNothingGoesOutByTheAPIWhereItCannotBeRecorded(t *testing.T) {
	t.Parallel()
	r, _ := office(t)
	r.remotely(t)
	r.Seal(t)
	key := lines(t, r.must(t, "list", "--json", "--action", "rotation.done"))[0]["id"].(string)
	_, err := r.Super.Exec(t.Context(), "REVOKE INSERT ON audit_event FROM "+r.Database.Writer)
	check(t, err)
	for _, args := range [][]string{{"list"}, {"show", key}, {"follow", "--once"}, {"prove", key}, {"export", "--format", "csv", "--out", "-"}, {"export", "--format", "bundle", "--out", r.path("bundle.zip")},
		{"report", "--from", "7d", "--to", "0d", "--out", "-"}} {
		out, _, err := r.run(t, r.remotely(t, args...)...)
		if err == nil || out != "" || !strings.Contains(err.Error(), "the server failed") {
			t.Errorf("%q prints %q and ends with %v", args, out, err)
		}
	}
	if left, err := filepath.Glob(r.path("*bundle*")); err != nil || len(left) > 0 {
		t.Errorf("there are %s (%v)", left, err)
	}
}
