// Package perminute counts what may come in floods, so that a log has a line for the first of a minute, at once, and one
// for the rest when the minute is over.
package perminute

import (
	"sync"
	"time"
)

// Counts counts by key and minute. The zero value is ready, and safe for concurrent use.
type Counts[K comparable] struct {
	mu     sync.Mutex // guards untold
	untold map[slot[K]]int
}

type slot[K comparable] struct {
	key    K
	minute time.Time
}

// Count is how many came in a minute that nobody was told of.
type Count[K comparable] struct {
	Key    K
	Minute time.Time
	N      int
}

// Add counts one. The first of its minute is to be told at once, by the caller; the others are counted.
func (c *Counts[K]) Add(key K, now time.Time) (minute time.Time, first bool) {
	at := slot[K]{key, now.UTC().Truncate(time.Minute)}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, there := c.untold[at]
	if there {
		n++
	}
	c.set(at, n)
	return at.minute, !there
}

// Untold takes back what could not be told: it is among the rest of its minute again.
func (c *Counts[K]) Untold(key K, minute time.Time, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slot[K]{key, minute}
	c.set(at, c.untold[at]+n)
}

func (c *Counts[K]) set(at slot[K], n int) {
	if c.untold == nil {
		c.untold = map[slot[K]]int{}
	}
	c.untold[at] = n
}

// Over takes out the counts of the minutes that were over at a time.
func (c *Counts[K]) Over(at time.Time) []Count[K] {
	c.mu.Lock()
	defer c.mu.Unlock()
	var over []Count[K]
	for s, n := range c.untold {
		if !s.minute.Before(at.Truncate(time.Minute)) {
			continue
		}
		delete(c.untold, s)
		if n > 0 {
			over = append(over, Count[K]{s.key, s.minute, n})
		}
	}
	return over
}
