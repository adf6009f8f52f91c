// Package period reads the times that people write for the bounds of a period.
package period

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Instant reads a time that somebody wrote: RFC 3339; a day, such as 2026-11-30 (UTC), which as an end includes the day;
// or how long ago, such as 90m, 24h or 7d.
func Instant(text string, now time.Time, end bool) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t.UTC(), possible(text, t)
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		if end {
			day = day.AddDate(0, 0, 1)
		}
		return day, possible(text, day)
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			ago := now.UTC().AddDate(0, 0, -int(n))
			return ago, possible(text, ago)
		}
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.UTC().Add(-ago), possible(text, now.Add(-ago))
	}
	return time.Time{}, fmt.Errorf("%q is no time: write a day such as 2026-11-30, a time such as 2026-11-30T08:00:00Z, or how long ago, such as 24h or 7d", text)
}

// possible refuses what no event can have: the database and the ids of events take no other times.
func possible(text string, t time.Time) error {
	if t.Year() < 1970 || t.Year() > 9000 {
		return fmt.Errorf("%q is no time of an event: write a year from 1970 on", text)
	}
	return nil
}

// Between reads the bounds of a period; what is empty is no bound.
func Between(from, to string, now time.Time) (since, until time.Time, err error) {
	if from != "" {
		if since, err = Instant(from, now, false); err != nil {
			return since, until, err
		}
	}
	if to != "" {
		if until, err = Instant(to, now, true); err != nil {
			return since, until, err
		}
	}
	if !since.IsZero() && !until.IsZero() && !since.Before(until) {
		return since, until, fmt.Errorf("the period begins at %s and ends at %s: its begin must be before its end", since.Format(time.RFC3339), until.Format(time.RFC3339))
	}
	return since, until, nil
}
