package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// moved is a campaign of a room's server, which the test moves.
type moved struct {
	*room
	db       *postgres.DB
	enforcer *enforce.Enforcer
	clock    *keyheraldtest.Clock
	key      uuid.UUID
}

// newCampaign starts a campaign for users with a device each.
func newCampaign(t *testing.T, users int, waves ...int) *moved {
	t.Helper()
	m := &moved{room: withBot(t, newRoom(t)), clock: &keyheraldtest.Clock{}}
	m.server(t)
	c, err := loadConfig(m.path("config.yaml"))
	check(t, err)
	m.db, err = openDatabase(context.Background(), c)
	check(t, err)
	t.Cleanup(func() { _ = m.db.Close() })
	engine, _, err := newEngine(c, m.db, nil, zerolog.Nop())
	check(t, err)
	never, err := campaign.ParseApproval("never")
	check(t, err)
	m.enforcer, err = enforce.New(enforce.Config{DB: m.db, Engine: engine, StatusInterval: time.Hour, Approval: never, Now: m.clock.Now, Log: zerolog.Nop()})
	check(t, err)
	for i := range users {
		user := id.UserID(fmt.Sprintf("@user%03d:example.org", i))
		_, err := m.db.Exec(t.Context(), `INSERT INTO roster (user_id, added_at, added_by) VALUES ($1, now(), 'test')`, user)
		check(t, err)
		device := uuid.Must(uuid.NewV7())
		check(t, m.db.PutDevice(t.Context(), postgres.Device{ID: device, UserID: user, DeviceID: "DEVICE", IdentityKey: "i", SigningKey: "s", MasterKey: "m", EnrolledAt: m.clock.Now()}))
		check(t, m.db.SawDevice(t.Context(), device, m.clock.Now(), nil))
	}
	p := campaign.Defaults()
	p.Who, p.KMS, p.Path, p.Waves, p.Rate, p.Reason = campaign.Who{All: true}, "corporate", "keyherald/{user}/key", waves, 600, "a test"
	started, _, err := m.enforcer.StartCampaign(t.Context(), enforce.CampaignRequest{Parameters: p}, audit.ByLocal("anna", "test"))
	check(t, err)
	m.key = started.ID
	return m
}

// pass lets minutes pass.
func (m *moved) pass(t *testing.T) {
	t.Helper()
	m.clock.Advance(time.Minute)
	check(t, m.enforcer.StepCampaigns(t.Context()))
}

// finish reports the first so many that are under way as done.
func (m *moved) finish(t *testing.T, n int) {
	t.Helper()
	users, err := m.db.CampaignUsers(t.Context(), postgres.CampaignUserFilter{Campaign: m.key, State: campaign.Waiting, Limit: n})
	check(t, err)
	for _, u := range users {
		check(t, m.db.Txn(t.Context(), func(ctx context.Context) error {
			r, ok, err := m.db.LockRotation(ctx, u.Rotation)
			if err != nil || !ok {
				return fmt.Errorf("rotation %s: %t, %w", u.Rotation, ok, err)
			}
			r.Facts = rotation.Facts{State: rotation.Done, Stage: protocol.StagePushed, BackupVersion: "2"}
			return m.db.UpdateRotation(ctx, r, m.clock.Now())
		}))
	}
	m.pass(t)
}

// screen is a terminal with a program in it.
type screen struct {
	t       *testing.T
	cmd     *exec.Cmd
	tty     *os.File
	ended   chan struct{}
	mu      sync.Mutex // guards the rest
	shows   *vt.Emulator
	raw     strings.Builder
	changed chan struct{}
}

// on runs a command on a terminal; one without columns and rows does not know its size.
func (r *room) on(t *testing.T, cols, rows int, env []string, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, shows: vt.NewEmulator(max(cols, 1), max(rows, 1)), ended: make(chan struct{}), changed: make(chan struct{}, 1)}
	s.cmd = exec.CommandContext(t.Context(), os.Args[0], append([]string{"--server", r.server(t), "--token-file", r.path("admin.token")}, args...)...)
	s.cmd.Env = append(append(os.Environ(), runAsProgram+"=1", "TERM=xterm-256color"), env...)
	var err error
	s.tty, err = pty.StartWithSize(s.cmd, &pty.Winsize{Rows: uint16(rows), Cols: uint16(cols)})
	check(t, err)
	go func() {
		defer close(s.ended)
		_, _ = io.Copy(s, s.tty)
	}()
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	n, err := s.shows.Write(p)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return n, err
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimRight(s.shows.String(), "\n")
}

func (s *screen) until(want string) {
	s.t.Helper()
	late := time.After(time.Minute)
	for !strings.Contains(s.text(), want) {
		select {
		case <-s.changed:
		case <-s.ended:
			if !strings.Contains(s.text(), want) {
				s.t.Fatalf("it ended without %q:\n%s", want, s.text())
			}
		case <-late:
			s.t.Fatalf("%q does not come:\n%s", want, s.text())
		}
	}
}

// last is what the screen shows once the program has ended, and how that ended.
func (s *screen) last() (string, error) {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		s.t.Fatalf("it does not end:\n%s", s.text())
	}
	return s.text(), s.cmd.Wait()
}

// toTheEnd finishes everybody.
func (m *moved) toTheEnd(t *testing.T) {
	t.Helper()
	for range 20 {
		m.finish(t, 1000)
		if c, _, err := m.db.Campaign(t.Context(), m.key); err != nil || c.State.Ended() {
			check(t, err)
			return
		}
	}
	t.Fatal("the campaign does not end")
}

// drawn is a bar of 38 of which so many are full.
func drawn(full int) string {
	return "[" + strings.Repeat("=", full) + strings.Repeat("-", 38-full) + "]"
}

func TestAWatchedCampaignIsDrawnOnATerminalAndLeavesOneLineBelowItsBars(t *testing.T) {
	t.Parallel()
	m := newCampaign(t, 10, 50, 100)
	m.pass(t)
	wide, narrow := m.on(t, 100, 24, nil, "campaign", "watch", m.key.String()), m.on(t, 60, 5, nil, "campaign", "watch", m.key.String())
	for _, s := range []*screen{wide, narrow} {
		s.until("5 pending")
		if lines := strings.Split(s.text(), "\n"); len(lines) != 4 || lines[0] != "running, wave 1 of 2, 600 users a minute" || !strings.HasPrefix(lines[1], "end: between 20") ||
			!strings.HasSuffix(lines[2], "] 0 of 5 done, 5 waiting") || !strings.HasPrefix(lines[3], "wave 2 (100 %) [-") || strings.Index(lines[2], "]") != strings.Index(lines[3], "]") {
			t.Errorf("it shows\n%s", s.text())
		}
	}
	m.toTheEnd(t)
	want := "wave 1 (50 %)  " + drawn(38) + " 5 of 5 done\nwave 2 (100 %) " + drawn(38) + " 5 of 5 done\nfinished: 10 of 10 done"
	if shows, err := wide.last(); err != nil || shows != want {
		t.Errorf("in the end (%v) it shows\n%s\nand not\n%s", err, shows, want)
	}
	if shows, err := narrow.last(); err != nil || strings.Count(shows, "\n") != 2 || !strings.HasSuffix(shows, " 5 of 5 done\nfinished: 10 of 10 done") {
		t.Errorf("in the end (%v) the narrow one shows\n%s", err, shows)
	}
}

func TestWhoStopsWatchingLeavesTheBarsAndSeesHowItStood(t *testing.T) {
	t.Parallel()
	m := newCampaign(t, 10, 50, 100)
	m.pass(t)
	s := m.on(t, 100, 24, nil, "campaign", "watch", m.key.String())
	s.until("5 pending")
	_, err := s.tty.Write([]byte{'C' - '@'})
	check(t, err)
	want := "wave 1 (50 %)  " + drawn(0) + " 0 of 5 done, 5 waiting\nwave 2 (100 %) " + drawn(0) + " 0 of 5 done, 5 pending\nrunning: 0 of 10 done, 5 pending, 5 waiting; it is not watched any more"
	if shows, err := s.last(); err != nil || shows != want {
		t.Errorf("in the end (%v) it shows\n%s\nand not\n%s", err, shows, want)
	}
}

func TestWhereBarsCannotBeDrawnLinesArePrinted(t *testing.T) {
	t.Parallel()
	m := newCampaign(t, 10, 50, 100)
	m.pass(t)
	screens := map[string]*screen{
		"dumb":       m.on(t, 200, 24, []string{"TERM=dumb"}, "campaign", "watch", m.key.String()),
		"low":        m.on(t, 200, 4, nil, "campaign", "watch", m.key.String()),
		"of no size": m.on(t, 0, 0, nil, "campaign", "watch", m.key.String()),
	}
	screens["low"].until("5 waiting")
	m.toTheEnd(t)
	for name, s := range screens {
		_, err := s.last()
		if lines := strings.Split(strings.TrimSpace(s.raw.String()), "\r\n"); err != nil || strings.Contains(s.raw.String(), "\x1b") || !strings.HasSuffix(lines[len(lines)-1], "finished, wave 2 of 2: 10 of 10 done") {
			t.Errorf("a terminal that is %s is sent (%v) %q", name, err, s.raw.String())
		}
	}
}

func TestAUsersNameInATableDoesNotSteerTheTerminal(t *testing.T) {
	t.Parallel()
	m := newCampaign(t, 3, 100)
	_, err := m.db.Exec(t.Context(), `UPDATE campaign_user SET user_id = $1 WHERE user_id = '@user001:example.org'`, "@\x1b[2Jeve\u202e:example.org")
	check(t, err)
	if said := m.acted(t, "campaign", "show", m.key.String(), "--users", "pending"); strings.ContainsAny(said, "\x1b\u202e") || !strings.Contains(said, `@\u001b[2Jeve\u202e:example.org`) {
		t.Errorf("it says %q", said)
	}
}
