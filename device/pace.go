package device

import (
	"context"
	"sync"
	"time"
)

// Pace bounds how many requests with room keys a fleet has under way at once, by how long the homeserver takes: when a
// key-backup version changes, every client of the user uploads the room keys it holds as well, so a fleet must not take
// what the homeserver has to give. It grows by one for as many answers as are allowed at once, and is halved by one that
// takes long.
type Pace struct {
	mu      sync.Mutex // guards the rest
	limit   float64
	most    int
	running int
	// fastest is about the quickest answer of late, and cut when the limit was last halved.
	fastest time.Duration
	cut     time.Time
	waiting []chan struct{}
}

// NewPace makes a Pace for at most so many requests at once.
func NewPace(most int) *Pace { return &Pace{limit: 1, most: most} }

const (
	// slowFactor times the fastest answer is slow, where it is more than slowLeast.
	slowFactor = 4
	slowLeast  = 250 * time.Millisecond
)

// Begin waits for its turn; done is to be called with how long the request took.
func (p *Pace) Begin(ctx context.Context) (done func(took time.Duration), err error) {
	p.mu.Lock()
	if p.running < int(p.limit) && len(p.waiting) == 0 {
		p.running++
		p.mu.Unlock()
		return p.done, nil
	}
	turn := make(chan struct{})
	p.waiting = append(p.waiting, turn)
	p.mu.Unlock()
	select {
	case <-turn:
		return p.done, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range p.waiting {
		if w == turn {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			return nil, ctx.Err()
		}
	}
	// The turn came in the same moment: somebody else takes it.
	p.running--
	p.admit()
	return nil, ctx.Err()
}

func (p *Pace) done(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.observe(took, time.Now())
	p.admit()
}

// observe adapts the limit to an answer.
func (p *Pace) observe(took time.Duration, now time.Time) {
	if p.fastest == 0 || took < p.fastest {
		p.fastest = took
	} else {
		// Forgotten slowly: a homeserver may have become slower for good.
		p.fastest += p.fastest / 100
	}
	if took > slowLeast && took > slowFactor*p.fastest {
		// The answers that were under way when it was halved say nothing about what it is now.
		if now.Add(-took).After(p.cut) {
			p.limit, p.cut = max(1, p.limit/2), now
		}
		return
	}
	p.limit = min(float64(p.most), p.limit+1/p.limit)
}

func (p *Pace) admit() {
	for p.running < int(p.limit) && len(p.waiting) > 0 {
		close(p.waiting[0])
		p.waiting = p.waiting[1:]
		p.running++
	}
}
