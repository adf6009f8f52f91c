package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/postgres"
)

var _ intake.Recorder = (*Arrivals)(nil)

const (
	// arrivalsWaiting is how many notifications wait for their commit at most, beyond the group that is being written.
	arrivalsWaiting = 512
	// arrivalsTogether bounds a group: how long its locks are held, and how much one bad notification holds up.
	arrivalsTogether = 128
	// arrivalsTimeout is how long a group may wait for the database; senders give up about then.
	arrivalsTimeout = 30 * time.Second
	// arrivalsDrain is how long the last groups may take once Run's context has ended.
	arrivalsDrain = 10 * time.Second
)

// Arrivals is the engine as intake calls it: notifications that arrive together commit together. Nobody waits for a
// group to fill: whatever came while the one before was written is the next one.
type Arrivals struct {
	engine  *Engine
	waiting chan *waiter
	stopped chan struct{}
}

// waiter is an arrival with a place for its answer, which is there once done is closed.
type waiter struct {
	arrival
	done    chan struct{}
	receipt intake.Receipt
	err     error
}

// NewArrivals makes the queue in front of an engine, for as many notifications as may wait; 0 means 512.
func NewArrivals(engine *Engine, most int) *Arrivals {
	if most == 0 {
		most = arrivalsWaiting
	}
	return &Arrivals{engine: engine, waiting: make(chan *waiter, most), stopped: make(chan struct{})}
}

// Accept is Engine.Accept, together with whatever else arrives. It returns when ctx ends, without the notification
// being lost by that: the sender comes again, and is told that it is a duplicate.
func (a *Arrivals) Accept(ctx context.Context, n intake.Notification) (intake.Receipt, error) {
	return a.wait(ctx, arrival{Notification: n})
}

// Unusable is Engine.Unusable, together with whatever else arrives.
func (a *Arrivals) Unusable(ctx context.Context, n intake.Notification, problem intake.Problem) (intake.Receipt, error) {
	return a.wait(ctx, arrival{Notification: n, problem: problem})
}

// Handshake is Engine.Handshake.
func (a *Arrivals) Handshake(ctx context.Context, source audit.SourceName, key audit.CredentialID, kind audit.Handshake) error {
	return a.engine.Handshake(ctx, source, key, kind)
}

// Refused is Engine.Refused.
func (a *Arrivals) Refused(ctx context.Context, source audit.SourceName, why audit.Refusal, minute time.Time, count int) error {
	return a.engine.Refused(ctx, source, why, minute, count)
}

// Ignored is Engine.Ignored.
func (a *Arrivals) Ignored(ctx context.Context, source audit.SourceName, how audit.Ignored, minute time.Time, count int) error {
	return a.engine.Ignored(ctx, source, how, minute, count)
}

// Waiting is how many notifications wait for their turn.
func (a *Arrivals) Waiting() int { return len(a.waiting) }

func (a *Arrivals) wait(ctx context.Context, what arrival) (intake.Receipt, error) {
	w := &waiter{arrival: what, done: make(chan struct{})}
	select {
	case <-a.stopped:
		return intake.Receipt{}, intake.ErrBusy
	case a.waiting <- w:
	default:
		return intake.Receipt{}, intake.ErrBusy
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		return intake.Receipt{}, fmt.Errorf("waiting for a notification's commit: %w", ctx.Err())
	case <-a.stopped:
		select {
		case <-w.done: // by the last group
		default:
			return intake.Receipt{}, intake.ErrBusy
		}
	}
	return w.receipt, w.err
}

// Run commits what arrives until ctx ends, and then what waits already. Whoever comes later is told to come again.
func (a *Arrivals) Run(ctx context.Context) {
	defer close(a.stopped)
	// Neither a sender that left nor the end of the program cuts a group short at once.
	committing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(arrivalsDrain, cancel) })()
	for {
		select {
		case first := <-a.waiting:
			a.commit(committing, a.gather(first))
		case <-ctx.Done():
			for len(a.waiting) > 0 {
				a.commit(committing, a.gather(<-a.waiting))
			}
			return
		}
	}
}

func (a *Arrivals) gather(first *waiter) []*waiter {
	group := []*waiter{first}
	for len(group) < arrivalsTogether {
		select {
		case w := <-a.waiting:
			group = append(group, w)
		default:
			return group
		}
	}
	return group
}

// commit writes a group and answers everybody in it. Where the database refuses something in it, the halves are tried
// alone, in their order, until only what is refused is left.
func (a *Arrivals) commit(ctx context.Context, group []*waiter) {
	arrivals := make([]arrival, len(group))
	for i, w := range group {
		arrivals[i] = w.arrival
	}
	limited, cancel := context.WithTimeout(ctx, arrivalsTimeout)
	receipts, err := a.engine.record(limited, arrivals)
	cancel()
	if err != nil && len(group) > 1 && postgres.Refused(err) {
		half := len(group) / 2
		a.commit(ctx, group[:half])
		a.commit(ctx, group[half:])
		return
	}
	for i, w := range group {
		if err != nil {
			w.err = err
		} else {
			w.receipt = receipts[i]
		}
		close(w.done)
	}
}
