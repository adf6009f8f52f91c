package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest/faults"
)

// Every write of the server on the way of a rotation fails once, before and after it took effect.
func TestTheServersWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	t.Parallel()
	newFaulty(t).tryAll(t, func() {}, ofServer)
}

func ofServer(label string) bool {
	return strings.HasPrefix(label, "PostgreSQL: ") || strings.HasPrefix(label, "server to ")
}

// tryAll is tryEach for rotations, where a write that comes several times is tried at its last turn as well.
func (w *faulty) tryAll(t *testing.T, before func(), mine func(label string) bool) {
	t.Helper()
	w.tryTable(t, before, func(t *testing.T) { w.checkAll(t, w.rotate(t)) }, mine, true)
}

// tryEach finds the writes by doing something twice without a fault, and does it for each row of the table: once with
// the program going on, and for what was committed also with it killed there and started again. before prepares each; do
// waits for the end, whatever fails on the way, and checks it.
func (w *faulty) tryEach(t *testing.T, before func(), do func(t *testing.T), mine func(label string) bool) {
	t.Helper()
	w.tryTable(t, before, do, mine, false)
}

func (w *faulty) tryTable(t *testing.T, before func(), do func(t *testing.T), mine func(label string) bool, last bool) {
	t.Helper()
	var dry [2][]faults.Point
	for i := range dry {
		before()
		w.faults.Begin()
		do(t)
		for _, point := range w.faults.Points() {
			if mine(point.Label) {
				dry[i] = append(dry[i], point)
			}
		}
	}
	table := faults.Table(dry[:]...)
	if len(table) == 0 {
		t.Fatal("no write was found")
	}
	for _, fault := range table {
		if fault.Nth > 1 && !last {
			continue
		}
		t.Run(fault.String(), func(t *testing.T) { w.try(t, fault, before, do, nil) })
		if fault.Mode != faults.Persisted || !strings.Contains(fault.Label, "commit of") {
			continue
		}
		killed := w.device
		if ofServer(fault.Label) {
			killed = w.server
		}
		t.Run(fault.String()+", and killed", func(t *testing.T) { w.try(t, fault, before, do, killed) })
	}
}

func (w *faulty) try(t *testing.T, fault faults.Fault, before func(), do func(t *testing.T), restart *program) {
	before()
	w.restart, w.struck = restart, make(chan struct{})
	struck := w.struck
	w.faults.Arm(fault, func() {
		if restart != nil {
			restart.cancel()
		}
		close(struck)
	})
	// How often a write comes differs a little from one time to the next, so the last one may come only in the next; and what
	// comes by the clock, as the bot's lease is prolonged every five seconds, only in one of several.
	for n := 0; !w.faults.Fired(); n++ {
		if n == 10 {
			t.Fatalf("it did not come to this write: %v", w.faults.Points())
		}
		if n > 0 {
			w.faults.Rest(before)
		}
		do(t)
	}
	// A status may come when the rotation is over, and so its fault.
	select {
	case <-struck:
	case <-time.After(time.Minute):
		t.Fatalf("the fault fired and struck nobody: %v", w.faults.Points())
	}
	w.tend(t)
}
