package campaign

import "time"

// Counts are a wave's or a campaign's users by their states.
type Counts struct {
	Pending        int `json:"pending"`
	Waiting        int `json:"waiting"`
	Working        int `json:"working"`
	Done           int `json:"done"`
	NeedsAttention int `json:"needs_attention"`
	Failed         int `json:"failed"`
	LeftOut        int `json:"left_out"`
	Cancelled      int `json:"cancelled"`
	NotStarted     int `json:"not_started"`
}

// Of is the count of a state, to be read or added to.
func (c *Counts) Of(state UserState) *int {
	switch state {
	case Waiting:
		return &c.Waiting
	case Working:
		return &c.Working
	case Done:
		return &c.Done
	case NeedsAttention:
		return &c.NeedsAttention
	case Failed:
		return &c.Failed
	case LeftOut:
		return &c.LeftOut
	case Cancelled:
		return &c.Cancelled
	case NotStarted:
		return &c.NotStarted
	}
	return &c.Pending
}

// Add is the sum.
func (c Counts) Add(other Counts) Counts {
	for _, state := range UserStates() {
		*c.Of(state) += *other.Of(state)
	}
	return c
}

// Counting are those that a verdict is about: who was left out or cancelled is no part of it.
func (c Counts) Counting() int {
	return c.Pending + c.Waiting + c.Working + c.Done + c.NeedsAttention + c.Failed
}

// Failing are those that failed for good or need somebody. The latter may be done yet; then they count so.
func (c Counts) Failing() int { return c.NeedsAttention + c.Failed }

// UnderWay are those who have begun and of whom nothing is known yet but that.
func (c Counts) UnderWay() int { return c.Waiting + c.Working }

// tooMany reports whether failed ÷ (done + failed) is above a bound, in percent.
func (c Counts) tooMany(percent int) bool { return c.Failing()*100 > percent*(c.Done+c.Failing()) }

// Verdict is what becomes of a wave.
type Verdict string

// The verdicts: nothing yet; the next wave may begin; too many fail, and nobody more begins; somebody must look first.
const (
	Wait  Verdict = "wait"
	Pass  Verdict = "pass"
	Stop  Verdict = "stop"
	Pause Verdict = "pause"
)

// Judge says what becomes of the running wave, from its counts and those of all waves. opened is how long ago the last of
// its users began.
func Judge(p Parameters, wave, all Counts, opened time.Duration) Verdict {
	for _, counts := range []Counts{wave, all} {
		// Where none is tolerated one says it all.
		if (p.MaxFailures == 0 || counts.Done+counts.Failing() >= MinSettled) && counts.tooMany(p.MaxFailures) {
			return Stop
		}
	}
	switch {
	case wave.Pending > 0:
		return Wait
	case wave.Done*100 >= p.PassPercent*wave.Counting() && !wave.tooMany(p.MaxFailures):
		return Pass
	case wave.UnderWay() == 0 && wave.tooMany(p.MaxFailures):
		// Too few for a rate, and nobody left who could better it: a wave of one that fails must not make way for the rest.
		return Pause
	case opened < p.MaxWait:
		return Wait
	case wave.UnderWay()*100 <= p.MaxWaiting*wave.Counting() && !wave.tooMany(p.MaxFailures):
		return Pass
	}
	return Pause
}

// Homeserver is what is known of how long the homeserver takes for messages.
type Homeserver struct {
	// Measured is the mean of late; zero where nothing was measured.
	Measured time.Duration
	// Untried is for how long the oldest message waits that was never sent, and Unsent the oldest that has no answer; zero for none.
	Untried, Unsent time.Duration
}

// Latency is how long a message takes. One that was never sent waits behind what the homeserver does not take, so its time
// counts beside what was measured. One that was sent in vain may be at fault itself, and counts where nothing was measured.
func (h Homeserver) Latency() time.Duration {
	if h.Measured == 0 {
		return max(h.Untried, h.Unsent, 0)
	}
	return max(h.Measured, h.Untried)
}

// Slowed is how many users may begin in a minute while the homeserver takes so long for a message; zero is not known.
func Slowed(p Parameters, latency time.Duration) int {
	if latency <= p.MaxLatency {
		return p.Rate
	}
	return max(1, int(int64(p.Rate)*int64(p.MaxLatency)/int64(latency)))
}

// burst bounds what a pause of the server's saves up.
const burst = time.Minute

// Allowance is how many users may begin now, where those that were allowed until credit have.
func Allowance(rate int, credit, now time.Time) int {
	return max(0, int(now.Sub(bounded(credit, now))/each(rate)))
}

// Spent is until when the rate is used up once so many have begun.
func Spent(rate int, credit, now time.Time, begun int) time.Time {
	return bounded(credit, now).Add(time.Duration(begun) * each(rate))
}

func each(rate int) time.Duration { return time.Minute / time.Duration(rate) }

func bounded(credit, now time.Time) time.Time {
	if oldest := now.Add(-burst); credit.Before(oldest) {
		return oldest
	}
	return credit
}
