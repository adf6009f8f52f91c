// Package loop is how the server's and the device's background work waits: for a signal, for a while, and never past
// the end of its context.
package loop

import (
	"context"
	"time"
)

// Repeat runs do now, at every signal and at least once per interval, until ctx ends. A nil signal never comes.
func Repeat(ctx context.Context, signal <-chan struct{}, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-ctx.Done():
		case <-signal:
		case <-ticker.C:
		}
	}
}

// Watch is Repeat where do says how long to wait at most until it is run again.
func Watch(ctx context.Context, signal <-chan struct{}, do func() time.Duration) {
	for ctx.Err() == nil {
		timer := time.NewTimer(do())
		select {
		case <-ctx.Done():
		case <-signal:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// again is the first wait after a failure; it doubles with each further one.
const again = 250 * time.Millisecond

// Persist is Repeat for what may fail: then it is run again after a wait that grows up to the interval, since what
// failed waits for no signal any more.
func Persist(ctx context.Context, signal <-chan struct{}, interval time.Duration, do func() error) {
	wait := again
	Watch(ctx, signal, func() time.Duration {
		if do() == nil {
			wait = again
			return interval
		}
		next := min(wait, interval)
		wait = min(2*wait, interval)
		return next
	})
}

// Pause waits for d or the end of ctx.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
