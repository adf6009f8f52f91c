// Package tamper is `make tamper`: a log of real rotations, sealed by the real server, is altered by somebody with the
// rights of a superuser, in every way we could think of. Each case works on a copy of the database of its own. An attack is
// detected where keyherald-verify with the checkpoints that the auditor kept, or for what is in no bundle the signer or
// `keyherald audit verify`, says what it must and names the place; where not it is undetected. Something honest that is
// called altered, or that the signer does not go on from, is a false alarm.
package tamper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/keyheraldtest/company"
)

// Config is what a run needs. Programs is the directory with the three programs, Dir an empty one for everything else.
type Config struct {
	Programs, Dir string
	// Events is how many events the log must have.
	Events int
	Out    io.Writer
}

// Result is the JSON line at the end.
type Result struct {
	Events      int `json:"events"`
	Rotations   int `json:"rotations"`
	Cases       int `json:"cases"`
	Undetected  int `json:"undetected"`
	FalseAlarms int `json:"false_alarms"`
	Honest      int `json:"honest"`
	Seconds     int `json:"seconds"`
	// Findings say what is wrong with the product, or with a case.
	Findings []string `json:"findings,omitempty"`
}

// OK reports whether everything was seen for what it is.
func (r Result) OK() error {
	if r.Undetected+r.FalseAlarms > 0 {
		return fmt.Errorf("%d undetected, %d false alarms", r.Undetected, r.FalseAlarms)
	}
	return nil
}

// PrintLine prints the JSON line.
func (r Result) PrintLine(out io.Writer) error { return json.NewEncoder(out).Encode(r) }

// harness is the company with its log, and what the auditor holds of it.
type harness struct {
	*company.Company
	config Config
	say    func(string, ...any)
	keys   checkpoint.Keys
	// size is how many events are sealed, early how many the auditor's first checkpoint covers, victim the leaf that is
	// altered where it could be any.
	size, early, victim int64
	// dump is the database just after the early checkpoint.
	dump []byte
}

// Run makes the log, alters it, and counts.
func Run(ctx context.Context, config Config) (result Result, err error) {
	began := time.Now()
	say := func(format string, args ...any) {
		_, _ = fmt.Fprintf(config.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	h := &harness{config: config, say: say}
	defer func() {
		if h.Company != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	rotations, err := h.makeLog(ctx)
	if err != nil {
		return result, fmt.Errorf("making a log: %w", err)
	}
	say("%d events of %d rotations are sealed; the auditor has a checkpoint of %d events and one of all; event %d is the one that is altered", h.size, rotations, h.early, h.victim)
	result = Result{Events: int(h.size), Rotations: rotations}
	table := tabwriter.NewWriter(config.Out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\nWHAT WAS DONE\tVERIFIER ALONE\tWITH OLD CHECKPOINTS\tTHE SIGNER\tAUDIT VERIFY\tFIRST WRONG PLACE")
	for i, c := range h.cases() {
		saw, err := h.try(ctx, i, c)
		if err != nil {
			return result, errors.Join(fmt.Errorf("%s: %w", c.name, err), table.Flush())
		}
		result.Cases++
		if c.honest {
			result.Honest++
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.name, saw.alone.Verdict, saw.with.Verdict, saw.signer.word, saw.inPlace.Verdict, saw.place(c))
		problem := saw.judge(c)
		switch {
		case problem == "":
			continue
		case c.honest:
			result.FalseAlarms++
		default:
			result.Undetected++
		}
		result.Findings = append(result.Findings, c.name+": "+problem)
	}
	result.Seconds = int(time.Since(began).Seconds())
	return result, table.Flush()
}

// try makes a copy, alters it, and has everybody look at it.
func (h *harness) try(ctx context.Context, n int, a attack) (saw seen, err error) {
	c, err := h.copy(ctx, n)
	if err != nil {
		return saw, fmt.Errorf("copying the database: %w", err)
	}
	defer func() { err = errors.Join(err, c.close(ctx)) }()
	if err := a.do(ctx, c); err != nil {
		return saw, fmt.Errorf("altering the copy: %w", err)
	}
	if saw.alone, saw.with, err = c.offline(ctx, a.checkpoints...); err != nil {
		return saw, err
	}
	if saw.inPlace, err = c.inPlace(ctx); err != nil {
		return saw, err
	}
	if saw.signer, err = c.seal(ctx, c.present); err != nil {
		return saw, fmt.Errorf("running the signer: %w", err)
	}
	if c.pendingGone != "" {
		said, err := c.saysMissing(ctx, c.pendingGone)
		if err != nil {
			return saw, err
		}
		if said && saw.signer.word == signs {
			saw.signer = signed{word: missing, says: "event " + c.pendingGone}
		}
	}
	if a.honest {
		// What the signer made of it has to be in order as well.
		_, saw.after, err = c.offline(ctx, a.checkpoints...)
	}
	return saw, err
}
