// Package campaign is `make campaign`: a company of thousands is moved by one campaign, through the programs and the protocol
// as they are. What is real: PostgreSQL, the server's binary with its bot, the command line, and every device's keys, Olm
// session and reports. What is simulated, in this process: the homeserver, and the work of the devices between two reports.
package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// Config is what Run needs. Programs is a directory with the built keyherald; Dir is an empty directory.
type Config struct {
	Programs, Dir string
	// Users is how many there are: at least 100, so that somebody fails.
	Users int
	// Rate is how many users begin in a minute at most.
	Rate int
	// Limit is how long the campaign may take.
	Limit time.Duration
	Out   io.Writer
}

// Result is what came of it.
type Result struct {
	OK             bool    `json:"ok"`
	Users          int     `json:"users"`
	Done           int     `json:"done"`
	NeedsAttention int     `json:"needs_attention"`
	RotatedTwice   int     `json:"rotated_twice"`
	PeakRSSMB      float64 `json:"peak_rss_mb"`
	DatabaseMB     float64 `json:"database_mb"`
	Offline        int     `json:"offline"`
	Seconds        float64 `json:"seconds"`
	Homeserver     string  `json:"homeserver"`
}

// PrintLine prints the result as one line of JSON.
func (r Result) PrintLine(out io.Writer) error { return json.NewEncoder(out).Encode(r) }

// Run moves the company and checks what came of it; whatever is not as it must be is in the error.
func Run(ctx context.Context, config Config) (result Result, err error) {
	result = Result{Users: config.Users, Homeserver: "simulated"}
	_, _ = fmt.Fprintf(config.Out, "A campaign for %d users. The homeserver is simulated in this process, and so is the devices' work between two reports;\n"+
		"PostgreSQL, the server, the command line and every device's keys, Olm session and messages are real.\n", config.Users)
	w, err := newWorld(ctx, config)
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return result, err
	}
	began := time.Now()
	key, err := w.start(ctx)
	if err != nil {
		return result, err
	}
	if err := w.finished(ctx, key); err != nil {
		return result, err
	}
	result.Seconds = time.Since(began).Seconds()
	if err := w.awayUntilTheyComeBack(ctx, key); err != nil {
		return result, err
	}
	if err := w.measure(ctx, key, &result); err != nil {
		return result, err
	}
	if err := w.judge(ctx, key, result); err != nil {
		return result, err
	}
	result.OK = true
	return result, nil
}

// start starts the campaign as one admin and approves it as another.
func (w *world) start(ctx context.Context) (uuid.UUID, error) {
	waves := "1,10,100"
	if w.config.Users < 1000 {
		waves = "10,100"
	}
	args := []string{"campaign", "start", "--all", "--kms", "corporate", "--path", "keyherald/{user}/backup-key", "--rate", strconv.Itoa(w.config.Rate), "--waves", waves,
		"--max-wait", "1h", "--reason", "make campaign", "--json"}
	if err := w.plan(ctx, args); err != nil {
		return uuid.Nil, err
	}
	out, err := w.keyherald(ctx, args...)
	if err != nil {
		return uuid.Nil, err
	}
	var started struct {
		ID    uuid.UUID
		State campaign.State
		Hash  campaign.Hash
	}
	if err := json.Unmarshal([]byte(out), &started); err != nil {
		return uuid.Nil, err
	}
	if started.State != campaign.AwaitingApproval {
		return uuid.Nil, fmt.Errorf("the campaign is %s, and nobody approved it", started.State)
	}
	if _, err := w.keyherald(ctx, "campaign", "approve", started.ID.String(), "--hash", string(started.Hash)); err == nil {
		return uuid.Nil, errors.New("the admin who started the campaign could approve it")
	}
	_, err = w.enforcer.ApproveCampaign(ctx, started.ID, started.Hash, audit.ByLocal("second", "test"))
	return started.ID, err
}

// plan has the dry run say who comes when, and looks that it touches nothing.
func (w *world) plan(ctx context.Context, args []string) error {
	touched := func() (n int, err error) {
		err = w.db.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM rotation) + (SELECT COUNT(*) FROM campaign) + (SELECT COUNT(*) FROM audit_log WHERE actor LIKE 'local:%' OR actor LIKE 'admin:%')`).Scan(&n)
		return n, err
	}
	before, err := touched()
	if err != nil {
		return err
	}
	out, err := w.keyherald(ctx, append(args, "--dry-run")...)
	if err != nil {
		return err
	}
	var turns []id.UserID
	for line := range strings.Lines(out) {
		var planned struct {
			UserID id.UserID `json:"user_id"`
			Would  string    `json:"would"`
		}
		if err := json.Unmarshal([]byte(line), &planned); err != nil {
			return err
		}
		if planned.Would != string(campaign.BeginOpen) {
			return fmt.Errorf("the dry run says that %s would %q", planned.UserID, planned.Would)
		}
		turns = append(turns, planned.UserID)
	}
	if after, err := touched(); err != nil || after != before || len(turns) != w.config.Users {
		return errors.Join(fmt.Errorf("the dry run told of %d users, and left %d rows behind", len(turns), after-before), err)
	}
	w.fleet.cast(turns)
	return nil
}

// finished waits for the campaign's end and tells of each wave.
func (w *world) finished(ctx context.Context, key uuid.UUID) error {
	last, told := "", time.Time{}
	return w.until(ctx, w.config.Limit, func() error {
		p, err := w.enforcer.CampaignProgress(ctx, key)
		if err != nil {
			return err
		}
		if line := fmt.Sprintf("wave %d of %d, %s: %+v", p.Wave, len(p.Waves), p.State, p.Counts); line != last && time.Since(told) > 5*time.Second || p.State.Ended() {
			_, _ = fmt.Fprintf(w.config.Out, "%s  %s\n", time.Now().UTC().Format("15:04:05"), line)
			last, told = line, time.Now()
		}
		switch p.State {
		case campaign.Finished:
			return nil
		case campaign.Running:
			return fmt.Errorf("it is in wave %d: %+v", p.Wave, p.Counts)
		}
		return stopError{fmt.Errorf("it is %s (%s): %+v", p.State, p.StateCause, p.Counts)}
	})
}

// awayUntilTheyComeBack looks that, with the campaign at its end, only those are waited for who are offline, and then has
// them come back.
func (w *world) awayUntilTheyComeBack(ctx context.Context, key uuid.UUID) error {
	away := w.fleet.away()
	settled := func(waiting, done int) func() error {
		return func() error {
			p, err := w.enforcer.CampaignProgress(ctx, key)
			if err == nil && (p.Counts.UnderWay() != waiting || p.Counts.Done != done) {
				err = fmt.Errorf("%d are waited for and %d done, of %d and %d: %+v", p.Counts.UnderWay(), p.Counts.Done, waiting, done, p.Counts)
			}
			return err
		}
	}
	able := w.config.Users - w.fleet.failing() - away
	if err := w.until(ctx, w.config.Limit, settled(away, able)); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(w.config.Out, "The campaign has ended; the %d who were offline come back.\n", away)
	w.fleet.comeBack()
	return w.until(ctx, 5*time.Minute, settled(0, able+away))
}

func (w *world) measure(ctx context.Context, key uuid.UUID, result *Result) error {
	p, err := w.enforcer.CampaignProgress(ctx, key)
	if err != nil {
		return err
	}
	result.Done, result.NeedsAttention, result.Offline = p.Counts.Done, p.Counts.Failing(), w.fleet.wereAway()
	if err := w.db.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT user_id FROM rotation GROUP BY user_id HAVING COUNT(*) > 1) twice`).Scan(&result.RotatedTwice); err != nil {
		return err
	}
	result.RotatedTwice += w.fleet.rotatedTwice()
	var bytes int64
	if err := w.db.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&bytes); err != nil {
		return err
	}
	result.DatabaseMB = float64(bytes) / 1e6
	result.PeakRSSMB, err = w.peakMB()
	return err
}

// judge says everything that is not as it must be.
func (w *world) judge(ctx context.Context, key uuid.UUID, result Result) error {
	var wrong []error
	expect := func(what string, got, want int) {
		if got != want {
			wrong = append(wrong, fmt.Errorf("%s: %d, want %d", what, got, want))
		}
	}
	failing := w.fleet.failing()
	expect("done", result.Done, w.config.Users-failing)
	expect("needing attention", result.NeedsAttention, failing)
	expect("rotated twice", result.RotatedTwice, 0)
	events := map[string]int{}
	for _, action := range []string{"rotation.asked", "campaign.finished", "rotation.held", "campaign.approved"} {
		var n int
		if err := w.db.QueryRow(ctx, `SELECT COUNT(*) FROM audit_log WHERE action = $1 AND outcome = 'accepted'`, action).Scan(&n); err != nil {
			return err
		}
		events[action] = n
	}
	expect("rotation.asked in the log", events["rotation.asked"], w.config.Users)
	expect("campaign.finished in the log", events["campaign.finished"], 1)
	expect("campaign.approved in the log", events["campaign.approved"], 1)
	expect("rotation.held in the log", events["rotation.held"], 0)
	if latency, measured, err := w.db.Latency(ctx, time.Now().Add(-w.config.Limit)); err != nil {
		return err
	} else if !measured || latency <= 0 {
		wrong = append(wrong, errors.New("the homeserver's latency was not measured"))
	}
	people, err := w.failingAsShown(ctx, key)
	if err != nil {
		return err
	}
	expect("failing as `campaign show` names them", len(people), failing)
	for _, p := range people {
		if !w.fleet.isFailing(p.UserID) || p.Cause == "" || p.NextAction == "" {
			wrong = append(wrong, fmt.Errorf("%s is shown as failing: cause %q, next action %q", p.UserID, p.Cause, p.NextAction))
		}
	}
	return errors.Join(wrong...)
}

type shown struct {
	UserID     id.UserID `json:"user_id"`
	Cause      string    `json:"cause"`
	NextAction string    `json:"next_action"`
}

// failingAsShown are those whom the command line names.
func (w *world) failingAsShown(ctx context.Context, key uuid.UUID) ([]shown, error) {
	out, err := w.keyherald(ctx, "campaign", "show", key.String(), "--json")
	if err != nil {
		return nil, err
	}
	var view struct{ People []shown }
	if err := json.Unmarshal([]byte(out), &view); err != nil {
		return nil, err
	}
	for _, p := range view.People[:min(2, len(view.People))] {
		_, _ = fmt.Fprintf(w.config.Out, "needs somebody: %s, %s: %s\n", p.UserID, p.Cause, p.NextAction)
	}
	return view.People, nil
}

// stopError is what waiting longer does not mend.
type stopError struct{ error }

// until repeats check until it succeeds, a device or the server is in trouble, or time is up.
func (w *world) until(ctx context.Context, limit time.Duration, check func() error) error {
	var stop error
	err := keyheraldtest.Until(ctx, limit, func() error {
		if stop = errors.Join(w.fleet.trouble(), w.running()); stop != nil {
			return nil
		}
		err := check()
		var stopped stopError
		if errors.As(err, &stopped) {
			stop = stopped.error
			return nil
		}
		if err != nil {
			// Looking all the time would take a processor from what is looked at.
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
		return err
	})
	return errors.Join(stop, err)
}
