package campaign

import "time"

// Pace is how long users took from their beginning until they were done, of those that are.
type Pace struct {
	Done int
	// Half is what half of them needed at most, and Most what 95 percent did.
	Half, Most time.Duration
}

// Estimate is when a campaign is likely to end. Likely is zero while too few are done to say; Earliest and Latest bound it
// as far as the parameters do: a wave that hangs is waited for until its MaxWait, and then either passes or somebody is
// asked. Nobody knows how long a pause lasts.
type Estimate struct {
	Earliest, Likely, Latest time.Time
}

// MinPace is how many must be done before a likely end is named.
const MinPace = 20

// EndOf estimates the end of a running campaign in its wave-th wave. waves are the counts of all waves, rate is how many users
// begin in a minute now, and opened how long ago the last user of the running wave began.
func EndOf(p Parameters, wave int, waves []Counts, rate int, pace Pace, opened time.Duration, now time.Time) Estimate {
	end := Estimate{Earliest: now, Latest: now}
	if pace.Done >= MinPace {
		end.Likely = now
	}
	for i := wave - 1; i >= 0 && i < len(waves); i++ {
		counts := waves[i]
		opening := time.Duration(counts.Pending) * time.Minute / time.Duration(max(rate, 1))
		settling := pace.Most
		if hung := counts.UnderWay() * 100; i == wave-1 && counts.Pending == 0 {
			if opened > pace.Most && hung > (100-p.PassPercent)*counts.Counting() {
				// They are not merely slow: they are away, and are waited for.
				settling = p.MaxWait
			}
			settling = max(settling-opened, 0)
			end.Latest = end.Latest.Add(max(p.MaxWait-opened, 0))
		} else {
			end.Earliest = end.Earliest.Add(pace.Half)
			end.Latest = end.Latest.Add(p.MaxWait)
		}
		end.Earliest, end.Latest = end.Earliest.Add(opening), end.Latest.Add(opening)
		if !end.Likely.IsZero() {
			end.Likely = end.Likely.Add(opening + settling)
		}
	}
	return end
}
