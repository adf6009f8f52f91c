package keyheraldtest

import (
	"sync"
	"time"
)

// Clock is a clock that runs with the real one and can be moved, for what would take days.
type Clock struct {
	mu     sync.Mutex // guards offset
	offset time.Duration
}

// Now is the moved time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

// Advance moves the clock; it may go back.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}
