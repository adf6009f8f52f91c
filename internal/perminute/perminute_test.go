package perminute

import (
	"testing"
	"time"
)

func TestTheFirstOfAMinuteIsToldAtOnceAndTheRestWhenItIsOver(t *testing.T) {
	var c Counts[string]
	begin := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	for i, test := range []struct {
		key   string
		after time.Duration
		first bool
	}{
		{"a", 0, true}, {"a", time.Second, false}, {"b", time.Second, true}, {"a", 59 * time.Second, false}, {"a", time.Minute, true},
	} {
		if minute, first := c.Add(test.key, begin.Add(test.after)); first != test.first || minute != begin.Add(test.after).Truncate(time.Minute) {
			t.Errorf("number %d is the first: %v, of minute %s", i, first, minute)
		}
	}
	if over := c.Over(begin.Add(59 * time.Second)); len(over) != 0 {
		t.Errorf("a minute that goes on is told: %v", over)
	}
	if over := c.Over(begin.Add(time.Minute)); len(over) != 1 || over[0] != (Count[string]{"a", begin, 2}) {
		t.Errorf("when the minute is over: %v", over)
	}
	if over := c.Over(begin.Add(time.Hour)); len(over) != 0 {
		t.Errorf("one that came alone is told twice: %v", over)
	}
}

func TestWhatCouldNotBeToldIsAmongTheRest(t *testing.T) {
	var c Counts[string]
	begin := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	minute, _ := c.Add("a", begin)
	c.Untold("a", minute, 1)
	c.Add("a", begin)
	over := c.Over(begin.Add(time.Minute))
	if len(over) != 1 || over[0].N != 2 {
		t.Fatalf("got %v", over)
	}
	c.Untold("a", over[0].Minute, over[0].N)
	if again := c.Over(begin.Add(time.Minute)); len(again) != 1 || again[0] != over[0] {
		t.Errorf("told again: %v", again)
	}
}
