// Package chaos is `make chaos`: the real parts under a stream of rotations while programs are killed, connections
// fail, servers answer errors, and the database is once put back. Then it waits for quiet and counts, from what the
// receiving clients decrypted and from the audit log, what was lost, duplicated, or not audited.
package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest"
)

// Config is what a run needs. Programs is the directory with both binaries, Dir an empty one for everything else.
type Config struct {
	Programs, Dir string
	Kills         int
	Seed          uint64
	Out           io.Writer
	// Sabotage names a fault that binaries built with -tags sabotage have on purpose; the run must find it.
	Sabotage string
	// LoseAnswers makes the homeserver's lost answers the only disturbance, and a long one.
	LoseAnswers bool
	// Patience is how long the end may take to be quiet; default ten minutes.
	Patience time.Duration
}

// Result is the JSON line at the end.
type Result struct {
	Kills         int `json:"kills"`
	KillsInFlight int `json:"kills_in_flight"`
	// KillsInCarryOver are those of a fleet or of Dendrite while a device put room keys into a new version. Checked is how
	// often all of a user's room keys were looked at when a rotation had ended, and LateKeys how many of them arrived in an
	// old version while it was carried over.
	KillsInCarryOver int `json:"kills_in_carry_over"`
	Checked          int `json:"carry_overs_checked"`
	LateKeys         int `json:"late_room_keys"`
	Accepted         int `json:"accepted"`
	Lost             int `json:"lost"`
	// LostRoomKeys are among the lost.
	LostRoomKeys  int      `json:"lost_room_keys"`
	Duplicated    int      `json:"duplicated"`
	Redelivered   int      `json:"redelivered"`
	AuditMismatch int      `json:"audit_mismatch"`
	Seed          uint64   `json:"seed"`
	Faults        int      `json:"other_faults"`
	Seconds       int      `json:"seconds"`
	Findings      []string `json:"findings,omitempty"`
}

// OK reports whether nothing was lost, duplicated or left out, and whether the run was hard enough to say so.
func (r Result) OK() error {
	switch {
	case r.Lost+r.Duplicated+r.AuditMismatch > 0:
		return fmt.Errorf("%d lost, %d duplicated, %d audit mismatches", r.Lost, r.Duplicated, r.AuditMismatch)
	case r.Accepted < r.Kills:
		return fmt.Errorf("only %d notifications for %d kills: the run says little", r.Accepted, r.Kills)
	case r.KillsInFlight*100 < r.Kills*80:
		return fmt.Errorf("only %d of %d kills hit work in flight: the run says little", r.KillsInFlight, r.Kills)
	case r.Kills >= 10 && (r.KillsInCarryOver == 0 || r.Checked == 0 || r.LateKeys == 0):
		return fmt.Errorf("%d kills hit a carry-over, %d were looked at, and %d room keys came late: the run says little", r.KillsInCarryOver, r.Checked, r.LateKeys)
	}
	return nil
}

// Run attacks and counts. The error is about the harness; what was found is in the Result.
func Run(ctx context.Context, config Config) (result Result, err error) {
	if config.Patience == 0 {
		config.Patience = 10 * time.Minute
	}
	began := time.Now()
	say := func(format string, args ...any) {
		_, _ = fmt.Fprintf(config.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	w, err := build(ctx, config)
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return result, fmt.Errorf("building the world: %w", err)
	}
	say("two servers, %d fleets, %d users with two receiving clients each; seed %d", fleetN, userN, config.Seed)

	running, end := context.WithCancel(ctx)
	defer end()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer end()
	failed := make(chan error, 64)
	run := func(do func() error) {
		parts.Go(func() {
			if err := do(); err != nil && running.Err() == nil {
				failed <- err
				end()
			}
		})
	}
	for _, p := range slices.Concat(w.servers, w.fleets) {
		run(func() error { return w.watch(running, p) })
	}
	book, stop := &ledger{}, make(chan struct{})
	var streams sync.WaitGroup
	for i, u := range w.users {
		for _, receiver := range u.receivers {
			run(func() error { receive(running, receiver.Receive); return nil })
		}
		u.gate.onFirst(func(version string) {
			if err := w.arriveLate(running, u, version); err != nil && running.Err() == nil {
				// Dendrite may be down with its database half written: then none comes late this time.
				say("no room key of %s came late: %v", u.name, err)
			}
		})
		run(func() error {
			u.keepUploading(running, rand.New(rand.NewPCG(config.Seed, uint64(userN+i+1))), stop)
			return nil
		})
		streams.Add(1)
		run(func() error {
			defer streams.Done()
			return w.stream(running, u, book, rand.New(rand.NewPCG(config.Seed, uint64(i+1))), stop)
		})
	}
	hits, faults, err := w.attack(running, rand.New(rand.NewPCG(config.Seed, 0)), config.Kills, book, say)
	close(stop)
	streams.Wait()
	if err != nil {
		select {
		case cause := <-failed:
			err = errors.Join(cause, err)
		default:
		}
		return result, err
	}
	say("the attack is over; waiting for quiet")
	if err := keyheraldtest.Until(running, config.Patience, func() error { return w.quiet(running, book) }); err != nil {
		// What is still open is counted as lost: that is the finding.
		say("it did not become quiet: %v", err)
	}
	w.wait(running, 3*time.Second)
	counted, err := w.count(running, book)
	if err != nil {
		return result, err
	}
	result = Result{Kills: len(hits), Accepted: len(book.all()), Lost: counted.lost, LostRoomKeys: counted.lostRoomKeys, Checked: counted.checks, LateKeys: counted.late,
		Duplicated: counted.duplicated, Redelivered: counted.redelivered,
		AuditMismatch: counted.auditMismatch, Seed: config.Seed, Seconds: int(time.Since(began).Seconds()), Findings: counted.findings}
	for _, h := range hits {
		if h.inFlight {
			result.KillsInFlight++
		}
		if h.stage == carryingOver && (h.victim == "fleet" || h.victim == "Dendrite") {
			result.KillsInCarryOver++
		}
	}
	for _, n := range faults {
		result.Faults += n
	}
	return result, printTables(config.Out, hits, faults)
}

// printTables tells which process was hit at which stage, and what else failed.
func printTables(out io.Writer, hits []hit, faults map[string]int) error {
	var victims, columns []string
	counts := map[hit]int{}
	for _, h := range hits {
		h.inFlight = false
		counts[h]++
		if !slices.Contains(victims, h.victim) {
			victims = append(victims, h.victim)
		}
		if !slices.Contains(columns, h.stage) {
			columns = append(columns, h.stage)
		}
	}
	slices.Sort(victims)
	slices.SortFunc(columns, func(a, b string) int { return slices.Index(stages, a) - slices.Index(stages, b) })
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprint(table, "\nKILLED")
	for _, stage := range columns {
		_, _ = fmt.Fprintf(table, "\t%s", stage)
	}
	_, _ = fmt.Fprintln(table)
	for _, victim := range victims {
		_, _ = fmt.Fprint(table, victim)
		for _, stage := range columns {
			_, _ = fmt.Fprintf(table, "\t%d", counts[hit{victim: victim, stage: stage}])
		}
		_, _ = fmt.Fprintln(table)
	}
	_, _ = fmt.Fprintln(table, "\nOTHER FAULTS\tTIMES")
	var names []string
	for name := range faults {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		_, _ = fmt.Fprintf(table, "%s\t%d\n", name, faults[name])
	}
	return table.Flush()
}

// PrintLine prints the JSON line.
func (r Result) PrintLine(out io.Writer) error { return json.NewEncoder(out).Encode(r) }
