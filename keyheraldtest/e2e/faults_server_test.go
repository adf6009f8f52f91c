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

// tryAll finds the writes by two rotations without a fault, and makes a rotation for each row of the table: once with
// the program going on, and for what was committed also with it killed there and started again. before prepares each.
func (w *faulty) tryAll(t *testing.T, before func(), mine func(label string) bool) {
	var dry [2][]faults.Point
	for i := range dry {
		before()
		w.faults.Begin()
		w.checkAll(t, w.rotate(t))
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
		t.Run(fault.String(), func(t *testing.T) { w.try(t, fault, before, nil) })
		if fault.Mode != faults.Persisted || !strings.Contains(fault.Label, "commit of") {
			continue
		}
		killed := w.device
		if ofServer(fault.Label) {
			killed = w.server
		}
		t.Run(fault.String()+", and killed", func(t *testing.T) { w.try(t, fault, before, killed) })
	}
}

func (w *faulty) try(t *testing.T, fault faults.Fault, before func(), restart *program) {
	before()
	w.restart, w.struck = restart, make(chan struct{})
	struck := w.struck
	w.faults.Arm(fault, func() {
		if restart != nil {
			restart.cancel()
		}
		close(struck)
	})
	// How often a write comes differs a little from rotation to rotation, so the last one may come only in the next.
	for n := 0; !w.faults.Fired(); n++ {
		if n == 3 {
			t.Fatalf("it did not come to this write: %v", w.faults.Points())
		}
		if n > 0 {
			before()
		}
		w.checkAll(t, w.rotate(t))
	}
	// A status may come when the rotation is over, and so its fault.
	select {
	case <-struck:
	case <-time.After(time.Minute):
		t.Fatalf("the fault fired and struck nobody: %v", w.faults.Points())
	}
	w.tend(t)
}
