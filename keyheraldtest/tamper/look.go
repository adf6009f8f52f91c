package tamper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/audit/sink"
	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/postgres"
)

// What the signer may do. Where it signs nothing for another reason it goes on trying.
const (
	signs     = "signs"
	missing   = "signs, and says what is missing"
	wentBack  = "stops: went back"
	diverged  = "stops: diverged"
	damaged   = "stops: tree damaged"
	foreign   = "stops: foreign statement"
	inspected = "signs, and says what was altered"
	refuses   = "signs nothing"
)

// report is what keyherald-verify and `keyherald audit verify` print, as far as it is used here.
type report struct {
	Verdict  string    `json:"verdict"`
	Headline string    `json:"headline"`
	Findings []finding `json:"findings"`
}

type finding struct {
	Verdict string `json:"verdict"`
	First   *int64 `json:"first"`
	Last    *int64 `json:"last"`
	Event   string `json:"event"`
	Text    string `json:"text"`
}

// reported are the signer's findings as the programs print them.
func reported(all []integrity.Finding) (r report) {
	for _, f := range all {
		r.Findings = append(r.Findings, finding{string(f.Verdict), &f.First, &f.Last, f.Event, f.Text})
	}
	return r
}

// has tells whether a finding is about a leaf.
func (f finding) has(leaf int64) bool {
	return f.First != nil && f.Last != nil && *f.First <= leaf && leaf <= *f.Last
}

// where is a finding's place in words.
func (f finding) where() string {
	switch {
	case f.First == nil || *f.First < 0:
		return "no single event"
	case *f.First == *f.Last:
		return fmt.Sprintf("event %d", *f.First)
	}
	return fmt.Sprintf("events %d to %d", *f.First, *f.Last)
}

// offline exports a bundle and has keyherald-verify say what it is: without a checkpoint of the auditor's, and with his.
func (c *copied) offline(ctx context.Context, checkpoints ...string) (alone, with report, err error) {
	bundle := c.file("log.zip")
	if _, err := c.operate(ctx, "audit", "export", "--format", "bundle", "--out", bundle, "--force"); err != nil {
		return alone, with, err
	}
	args := []string{"bundle", bundle, "--key", vkeyFile, "--json"}
	if alone, err = c.verdict(ctx, "keyherald-verify", args...); err != nil {
		return alone, with, err
	}
	for _, name := range checkpoints {
		args = append(args, "--checkpoint", name)
	}
	with, err = c.verdict(ctx, "keyherald-verify", args...)
	return alone, with, err
}

// inPlace is what `keyherald audit verify` says, which holds the database against the sink and these checkpoints.
func (c *copied) inPlace(ctx context.Context) (report, error) {
	return c.verdict(ctx, "keyherald", "audit", "verify", "--json", "-c", c.configFile())
}

// verdict runs a verifier, whose exit code is not zero where it finds something.
func (c *copied) verdict(ctx context.Context, program string, args ...string) (report, error) {
	var r report
	out, err := c.Command(ctx, program, args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err
	}
	if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil || r.Verdict == "" {
		return r, errors.Join(fmt.Errorf("there is no verdict: %q", out), err, jsonErr)
	}
	return r, nil
}

// signed is what the signer did, in one of the words above, and what it said; found is what it found in the whole log.
type signed struct {
	word, says string
	found      report
}

// sign appends an event and runs a signer, as after a restart, until it has signed all there is or says why not, and has
// looked over the whole log.
func sign(ctx context.Context, database *keyheraldtest.Database, keys checkpoint.Keys, sinkPath string) (did signed, err error) {
	writer, err := postgres.Open(ctx, database.WriterURL)
	if err != nil {
		return did, err
	}
	defer func() { err = errors.Join(err, writer.Close()) }()
	err = writer.Append(ctx, audit.Event{Time: time.Now(), Actor: keyheraldtest.Admin(), Action: audit.TriggersThawed, Subject: audit.OfTriggers(), Outcome: audit.Accepted})
	if err != nil {
		return did, err
	}
	sealer, err := postgres.Open(ctx, database.SignerURL)
	if err != nil {
		return did, err
	}
	defer func() { err = errors.Join(err, sealer.Close()) }()
	directory, err := sink.NewDirectory("minutes", sinkPath, keys)
	if err != nil {
		return did, err
	}
	s, err := signer.New(signer.Config{DB: sealer, Keys: keys, Sinks: []signer.Sink{directory}, Interval: 50 * time.Millisecond, Log: zerolog.Nop()})
	if err != nil {
		return did, err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(running) }()
	defer func() { stop(); <-ended }()
	var problem error
	err = keyheraldtest.Until(ctx, time.Minute, func() error {
		status := s.Status()
		if problem = status.Problem; problem != nil {
			return nil
		}
		if status.Inspection.At.IsZero() {
			return errors.New("the signer has not looked over the log")
		}
		return settled(ctx, writer, directory)
	})
	if seen := s.Status().Inspection; err == nil && problem == nil && seen.Altered != "" {
		return signed{inspected, seen.Altered, reported(seen.Findings)}, nil
	}
	if err != nil || problem == nil {
		return signed{word: signs}, err
	}
	did = signed{word: refuses, says: problem.Error()}
	for sentinel, word := range map[error]string{signer.ErrWentBack: wentBack, signer.ErrDiverged: diverged, postgres.ErrTreeDamaged: damaged, signer.ErrForeignStatement: foreign} {
		if errors.Is(problem, sentinel) {
			did.word = word
		}
	}
	return did, nil
}

// settled tells whether all events are sealed and the sink has the newest checkpoint.
func settled(ctx context.Context, db *postgres.DB, directory *sink.Directory) error {
	n, err := db.CountUnsealed(ctx)
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d events are not sealed", n)
	}
	state, err := db.TreeState(ctx)
	if err != nil {
		return err
	}
	newest, err := directory.Newest(ctx)
	if err == nil && newest != state.Note {
		err = fmt.Errorf("the sink has not the checkpoint of %d events", state.Newest.Size)
	}
	return err
}

// seal runs the signer on the copy with the case's sink.
func (c *copied) seal(ctx context.Context, keys checkpoint.Keys) (signed, error) {
	return sign(ctx, c.database, keys, c.path(c.file(sinkDir)))
}

// mustSeal is seal where the signer has to sign.
func (c *copied) mustSeal(ctx context.Context, keys checkpoint.Keys) error {
	did, err := c.seal(ctx, keys)
	if err == nil && did.word != signs {
		err = fmt.Errorf("the signer %s: %s", did.word, did.says)
	}
	return err
}

// saysMissing tells whether the log has an event that says which event was deleted before it was sealed.
func (c *copied) saysMissing(ctx context.Context, id string) (said bool, err error) {
	text := fmt.Sprintf(`"action":"%s","subject":"%s"`, audit.EventMissing, id)
	err = c.super.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM audit_event WHERE position(convert_to($1, 'UTF8') IN body) > 0)`, text).Scan(&said)
	return said, err
}
