package device

import (
	"math/rand/v2"
	"time"
)

// Sync is how the accounts ask the homeserver for messages. Its zero value holds a request open all the time, which is
// answered as soon as a message is there. With an Interval an account asks about that often and waits for nothing: a
// homeserver has less to do then, and a trigger lies there for as long.
type Sync struct {
	Interval time.Duration `yaml:"interval"`
}

// longPoll is how long the homeserver holds a request open.
const longPoll = 25 * time.Second

// wait is how long one request waits for a message.
func (s Sync) wait() time.Duration {
	if s.Interval > 0 {
		return 0
	}
	return longPoll
}

// pause is the wait between a request that brought so many messages and the next one. While messages come, more of them
// may lie there, and what came is still to be acknowledged. The first pause is anywhere within the interval, and the
// others are a tenth longer or shorter: a fleet that started together does not ask together.
func (s Sync) pause(came int, first bool) time.Duration {
	switch {
	case s.Interval <= 0 || came > 0:
		return 0
	case first:
		return rand.N(s.Interval)
	}
	return s.Interval - s.Interval/10 + rand.N(s.Interval/5)
}
