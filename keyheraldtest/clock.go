package keyheraldtest

import (
	"sync"
	"time"
)

// Clock is a clock that runs with the real one and can be moved, for what would take days.
type Clock struct {
	mu     sync.Mutex // guards the rest
	offset time.Duration
	still  time.Time
}

// Now is the moved time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.still.IsZero() {
		return c.still.Add(c.offset)
	}
	return time.Now().Add(c.offset)
}

// Stand has the clock stand still from now on, but for Advance, at a whole second, which every database keeps as it is: for
// what is counted by the minute or the second, however long the test takes on a busy machine.
func (c *Clock) Stand() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.still = time.Now().Truncate(time.Second)
}

// Advance moves the clock; it may go back.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}
