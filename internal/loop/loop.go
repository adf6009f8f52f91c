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

// Pause waits for d or the end of ctx.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
