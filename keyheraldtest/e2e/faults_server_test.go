package e2e

import (
	"strings"
	"testing"

	"github.com/keyherald/keyherald/keyheraldtest/faults"
)

// Every write of the server on the way of a rotation fails once, before and after it took effect.
func TestTheServersWritesMayFailBeforeAndAfterTheyTookEffect(t *testing.T) {
	w := newFaulty(t)
	w.tryAll(t, w.server, func(label string) bool {
		return strings.HasPrefix(label, "PostgreSQL: ") || strings.HasPrefix(label, "server to ")
	})
}

// tryAll finds the writes by two rotations without a fault, and makes a rotation for each row of the table: once with
// the program going on, and for what was committed also with it killed there and started again.
func (w *faulty) tryAll(t *testing.T, of *program, mine func(label string) bool) {
	var dry [2][]faults.Point
	for i := range dry {
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
		t.Run(fault.String(), func(t *testing.T) { w.try(t, fault, nil) })
		if fault.Mode == faults.Persisted && strings.Contains(fault.Label, "commit of") {
			t.Run(fault.String()+", and killed", func(t *testing.T) { w.try(t, fault, of) })
		}
	}
}

func (w *faulty) try(t *testing.T, fault faults.Fault, restart *program) {
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
		w.checkAll(t, w.rotate(t))
	}
}
