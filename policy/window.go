package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // the zones are in the binary: a server's own may be missing or old, and replicas must agree
)

// window is a weekly window on one zone's clock.
type window struct {
	zone *time.Location
	// days are those on which it opens, by time.Weekday.
	days [7]bool
	// opens and closes are minutes of the clock; one that closes at or before it opens closes on the next day.
	opens, closes int
}

// interval is a time that a window is open, from opens until just before closes.
type interval struct{ opens, closes time.Time }

func (i interval) has(t time.Time) bool { return !t.Before(i.opens) && t.Before(i.closes) }

const minutesOfDay = 24 * 60

var (
	weekdays  = map[string]time.Weekday{"mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday, "thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday, "sun": time.Sunday}
	hoursText = regexp.MustCompile(`^([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})$`)
)

func loadZone(name string) (*time.Location, error) {
	if name == "" {
		return nil, errors.New("the time zone is missing: write time_zone: Europe/Berlin")
	}
	zone, err := time.LoadLocation(name)
	// Local is whatever the machine has, so that two replicas could differ.
	if err != nil || name == "Local" {
		return nil, fmt.Errorf("there is no time zone %q: write an IANA name such as Europe/Berlin or UTC", name)
	}
	return zone, nil
}

// compile reads a window; errors begin with the key they are about.
func (h Hours) compile(zone string) (window, error) {
	var w window
	var err error
	if h.TimeZone != "" {
		zone = h.TimeZone
	}
	if w.zone, err = loadZone(zone); err != nil {
		return w, fmt.Errorf("time_zone: %w", err)
	}
	for i, name := range h.Days {
		weekday, ok := weekdays[name]
		if !ok {
			return w, fmt.Errorf("days[%d] is %q: write mon, tue, wed, thu, fri, sat or sun", i, name)
		}
		w.days[weekday] = true
	}
	if len(h.Days) == 0 {
		w.days = [7]bool{true, true, true, true, true, true, true}
	}
	if h.Hours == "" {
		w.closes = minutesOfDay
		return w, nil
	}
	parts := hoursText.FindStringSubmatch(h.Hours)
	if parts == nil {
		return w, fmt.Errorf("hours is %q: write 22:00-05:00", h.Hours)
	}
	var numbers [4]int
	for i, part := range parts[1:] {
		numbers[i], _ = strconv.Atoi(part)
	}
	w.opens, w.closes = numbers[0]*60+numbers[1], numbers[2]*60+numbers[3]
	switch {
	case numbers[1] > 59 || numbers[3] > 59 || w.opens >= minutesOfDay || w.closes > minutesOfDay:
		return w, fmt.Errorf("hours is %q: the clock has no such time; the end of the day is 24:00", h.Hours)
	case w.opens == w.closes:
		return w, fmt.Errorf("hours is %q: this window never opens; for the whole day write 00:00-24:00", h.Hours)
	case w.closes < w.opens:
		w.closes += minutesOfDay
	}
	return w, nil
}

// on is the window that opens on a date; ok is false where none does, as where the clock jumps over all of it.
func (w window) on(year int, month time.Month, date int) (interval, bool) {
	if !w.days[time.Date(year, month, date, 0, 0, 0, 0, time.UTC).Weekday()] {
		return interval{}, false
	}
	i := interval{w.at(year, month, date, w.opens), w.at(year, month, date, w.closes)}
	return i, i.opens.Before(i.closes)
}

// at is the first moment at which the zone's clock shows this time or, where it jumps over it, a later one.
func (w window) at(year int, month time.Month, date, minutes int) time.Time {
	shown := time.Date(year, month, date, 0, minutes, 0, 0, time.UTC)
	_, before := shown.Add(-day).In(w.zone).Zone()
	_, after := shown.Add(day).In(w.zone).Zone()
	// The bigger offset is the earlier moment, and the one that counts where the clock shows the time twice. It shows the
	// time then if that is its offset then.
	earlier, later := max(before, after), min(before, after)
	for _, offset := range []int{earlier, later} {
		t := shown.Add(-time.Duration(offset) * time.Second).In(w.zone)
		if _, then := t.Zone(); then == offset {
			return t
		}
	}
	last := shown.Add(-time.Duration(later) * time.Second).In(w.zone)
	if _, jump := shown.Add(-time.Duration(earlier) * time.Second).In(w.zone).ZoneBounds(); !jump.IsZero() && jump.Before(last) {
		return jump
	}
	return last
}

// around calls with the window's intervals that are open at t or open within a week and a day of it, in their order, until
// one is enough.
func (w window) around(t time.Time, enough func(interval) bool) {
	year, month, date := t.In(w.zone).Date()
	// One from yesterday may be open still; beyond a week there is another like each of these, but for one that a clock
	// jumped over.
	for d := -1; d <= 15; d++ {
		i, ok := w.on(year, month, date+d)
		if ok && i.closes.After(t) && enough(i) {
			return
		}
	}
}

// Windows are when rotations may begin. None at all is always.
type Windows struct{ windows []window }

// Open reports whether one is open, and until when; until is zero where there are none at all.
func (w Windows) Open(t time.Time) (until time.Time, open bool) {
	if len(w.windows) == 0 {
		return time.Time{}, true
	}
	// One may close where the next opens or is open already.
	for until = t; ; open = true {
		further := until
		for _, one := range w.windows {
			one.around(until, func(i interval) bool {
				if i.has(until) && i.closes.After(further) {
					further = i.closes
				}
				return i.opens.After(until)
			})
		}
		if !further.After(until) || further.Sub(t) > 8*day {
			return further, open || further.After(until)
		}
		until = further
	}
}

// Next is t where a window is open, and else when the next one opens.
func (w Windows) Next(t time.Time) time.Time {
	if _, open := w.Open(t); open {
		return t
	}
	var next time.Time
	for _, one := range w.windows {
		one.around(t, func(i interval) bool {
			if next.IsZero() || i.opens.Before(next) {
				next = i.opens
			}
			return true
		})
	}
	return next
}

// After is the moment by which windows were open for a span since t. It is in a window itself.
func (w Windows) After(t time.Time, span time.Duration) time.Time {
	if len(w.windows) == 0 {
		return t.Add(span)
	}
	for t = w.Next(t); ; {
		until, _ := w.Open(t)
		if left := until.Sub(t); span < left {
			return t.Add(span)
		} else {
			span -= left
		}
		t = w.Next(until)
	}
}

// extremes are the longest time that no window is open and the shortest that one is, within a year from t.
func (w Windows) extremes(t time.Time) (longestGap, shortestOpen time.Duration) {
	if len(w.windows) == 0 {
		return 0, 0
	}
	end := t.Add(366 * day)
	if closes, open := w.Open(t); open {
		t = closes // what is left of a window is no short one
	}
	for t.Before(end) {
		opens := w.Next(t)
		closes, _ := w.Open(opens)
		longestGap = max(longestGap, opens.Sub(t))
		if open := closes.Sub(opens); shortestOpen == 0 || open < shortestOpen {
			shortestOpen = open
		}
		t = closes
	}
	return longestGap, shortestOpen
}

// Zones are the time zones of the windows, each once.
func (w Windows) Zones() []*time.Location {
	var zones []*time.Location
	for _, one := range w.windows {
		if !slices.ContainsFunc(zones, func(z *time.Location) bool { return z.String() == one.zone.String() }) {
			zones = append(zones, one.zone)
		}
	}
	return zones
}

// String is the windows as people read them.
func (w Windows) String() string {
	if len(w.windows) == 0 {
		return "always"
	}
	texts := make([]string, len(w.windows))
	for i, one := range w.windows {
		texts[i] = one.String()
	}
	return strings.Join(texts, "; ")
}

func (w window) String() string {
	var days []string
	for _, name := range []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"} {
		if w.days[weekdays[name]] {
			days = append(days, name)
		}
	}
	clock := func(minutes int) string { return fmt.Sprintf("%02d:%02d", minutes/60, minutes%60) }
	closes := w.closes
	if closes > minutesOfDay {
		closes -= minutesOfDay
	}
	return fmt.Sprintf("%s %s-%s %s", strings.Join(days, ","), clock(w.opens), clock(closes), w.zone)
}
