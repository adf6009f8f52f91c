// Package faults makes one write fail, where and how a test says: before it was done, or after it was done with its
// answer lost. The writes are found by running: a Recorder stands in a database driver (Connector) and in a reverse
// proxy (Proxy), names every write that passes, and later makes the n-th of a name fail. There are no sleeps in it:
// which write fails is counted.
package faults

import (
	"errors"
	"fmt"
	"sync"
)

// ErrInjected is what a database says of a write that was made to fail. It is never driver.ErrBadConn, at which
// database/sql would try again on another connection, unseen.
var ErrInjected = errors.New("injected fault: the connection was lost")

// Mode is how a write fails.
type Mode int

// The modes: the write was not done, or it was done and nobody was told.
const (
	none Mode = iota
	Lost
	Persisted
)

func (m Mode) String() string {
	switch m {
	case Lost:
		return "lost"
	case Persisted:
		return "persisted and its answer lost"
	}
	return "no fault"
}

// Point is a write: the n-th of its label since counting began. Modes are the ways it can fail.
type Point struct {
	Label string
	Nth   int
	Modes []Mode
}

// Fault is one row of a table.
type Fault struct {
	Label string
	Nth   int
	Mode  Mode
}

func (f Fault) String() string { return fmt.Sprintf("%s, %d: %s", f.Label, f.Nth, f.Mode) }

// Recorder counts writes and makes one fail. Several connectors and proxies may share one.
type Recorder struct {
	mu     sync.Mutex // guards the rest
	counts map[string]int
	points []Point
	armed  Fault
	struck func()
	fired  bool
	// resting lets writes pass.
	resting bool
}

// Begin forgets what was counted and what was armed.
func (r *Recorder) Begin() { r.Arm(Fault{}, nil) }

// Arm begins to count anew and makes one write fail. struck, if it is not nil, is called where the fault is, before
// anybody learns of it: what it stops does not come to trying again.
func (r *Recorder) Arm(fault Fault, struck func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts, r.points, r.armed, r.struck, r.fired = map[string]int{}, nil, fault, struck, false
}

// Rest lets every write pass, uncounted, while do runs: what a test prepares is not what it is about.
func (r *Recorder) Rest(do func()) {
	r.rest(true)
	defer r.rest(false)
	do()
}

func (r *Recorder) rest(resting bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resting = resting
}

// Fired reports whether the armed fault has happened.
func (r *Recorder) Fired() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fired
}

// Points are the writes since counting began, in their order.
func (r *Recorder) Points() []Point {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Point(nil), r.points...)
}

// Nearest is the fault at the last turn that came of its write since counting began, where the fault's own was not reached:
// how often a write comes may differ from one time to the next.
func (r *Recorder) Nearest(fault Fault) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	if came := r.counts[fault.Label]; came > 0 {
		fault.Nth = min(fault.Nth, came)
	}
	return fault
}

// visit counts a write and says whether it is to fail. The write counts as a point if modes are given; else its owner
// may list it later.
func (r *Recorder) visit(label string, modes ...Mode) (nth int, mode Mode) {
	r.mu.Lock()
	if r.resting {
		r.mu.Unlock()
		return 0, none
	}
	if r.counts == nil {
		r.counts = map[string]int{}
	}
	r.counts[label]++
	nth = r.counts[label]
	if len(modes) > 0 {
		r.points = append(r.points, Point{label, nth, modes})
	}
	var struck func()
	if !r.fired && r.armed.Label == label && r.armed.Nth == nth {
		r.fired, mode, struck = true, r.armed.Mode, r.struck
	}
	r.mu.Unlock()
	if struck != nil {
		struck()
	}
	return nth, mode
}

func (r *Recorder) list(point Point) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.resting {
		r.points = append(r.points, point)
	}
}

// Table makes the rows from the points of several runs: of every label that all of them had, the first and the last
// point, each in its modes; the last is that of the run where it came least often. A label stands for one kind of write; the
// middle ones of a kind differ in nothing but their turn.
func Table(runs ...[]Point) []Fault {
	var order []string
	last, everywhere := map[string]Point{}, map[string]int{}
	for _, run := range runs {
		here := map[string]Point{}
		for _, point := range run {
			if _, known := here[point.Label]; !known && everywhere[point.Label] == 0 {
				order = append(order, point.Label)
			}
			here[point.Label] = point
		}
		for label, point := range here {
			if everywhere[label]++; everywhere[label] == 1 || point.Nth < last[label].Nth {
				last[label] = point
			}
		}
	}
	var table []Fault
	for _, label := range order {
		if everywhere[label] < len(runs) {
			continue
		}
		point := last[label]
		for _, mode := range point.Modes {
			table = append(table, Fault{label, 1, mode})
			if point.Nth > 1 {
				table = append(table, Fault{label, point.Nth, mode})
			}
		}
	}
	return table
}
