package device

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestThePaceFollowsHowLongTheHomeserverTakes(t *testing.T) {
	p := NewPace(8)
	now := time.Now()
	answers := func(n int, took time.Duration) {
		for range n {
			now = now.Add(time.Second)
			p.observe(took, now)
		}
	}
	if int(p.limit) != 1 {
		t.Errorf("it begins with %f", p.limit)
	}
	answers(100, 20*time.Millisecond)
	if int(p.limit) != 8 {
		t.Errorf("after quick answers it is %f", p.limit)
	}
	answers(1, 100*time.Millisecond)
	if int(p.limit) != 8 {
		t.Errorf("an answer that is slower and not slow makes it %f", p.limit)
	}
	answers(1, 2*time.Second)
	p.observe(2*time.Second, now.Add(time.Second)) // was under way already
	if int(p.limit) != 4 {
		t.Errorf("after slow answers it is %f", p.limit)
	}
	answers(20, 5*time.Second)
	if int(p.limit) != 1 {
		t.Errorf("a homeserver that does not recover leaves it at %f", p.limit)
	}
	answers(600, time.Second)
	if int(p.limit) != 8 {
		t.Errorf("a homeserver that is slow for good has it at %f", p.limit)
	}
}

func TestNoMoreRequestsThanThePaceAreUnderWayAndWhoGivesUpBlocksNobody(t *testing.T) {
	p := NewPace(3)
	var running, most atomic.Int64
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			ctx := t.Context()
			if i%4 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(i)*50*time.Microsecond)
				defer cancel()
			}
			done, err := p.Begin(ctx)
			if err != nil {
				return
			}
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(200 * time.Microsecond)
			running.Add(-1)
			done(200 * time.Microsecond)
		})
	}
	all.Wait()
	if most.Load() > 3 || p.running != 0 || len(p.waiting) != 0 {
		t.Errorf("%d were under way at once, %d are, %d wait", most.Load(), p.running, len(p.waiting))
	}
}
