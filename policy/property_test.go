package policy

import (
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

var zones = []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia", "Africa/Casablanca", "America/St_Johns"}

// anyRule is a rule that Check takes.
func anyRule(t *rapid.T) Rule {
	s := Statement{Name: "any", Who: Who{All: true}}
	for range rapid.IntRange(0, 3).Draw(t, "windows") {
		h := Hours{TimeZone: rapid.SampledFrom(zones).Draw(t, "zone"),
			Days: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}), 0, 7, rapid.ID[string]).Draw(t, "days")}
		opens, closes := rapid.IntRange(0, minutesOfDay-1).Draw(t, "opens"), rapid.IntRange(0, minutesOfDay).Draw(t, "closes")
		if opens == closes {
			closes = (closes + 1) % minutesOfDay
		}
		h.Hours = fmt.Sprintf("%02d:%02d-%02d:%02d", opens/60, opens%60, closes/60, closes%60)
		s.Windows = append(s.Windows, h)
	}
	s.MaxAge = fmt.Sprintf("%dh", rapid.IntRange(24*15, 24*200).Draw(t, "max_age"))
	s.Jitter = fmt.Sprintf("%dm", rapid.IntRange(0, 60*24*3).Draw(t, "jitter"))
	s.Grace = fmt.Sprintf("%dh", rapid.IntRange(0, 24*15).Draw(t, "grace"))
	p, err := New(Document{Rules: []Statement{s}})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return p.rules[0]
}

func anyTime(t *rapid.T, label string) time.Time {
	return time.Unix(rapid.Int64Range(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(2035, 1, 1, 0, 0, 0, 0, time.UTC).Unix()).Draw(t, label), 0).UTC()
}

func anyUser(t *rapid.T) id.UserID {
	return id.UserID(fmt.Sprintf("@user%d:example.org", rapid.IntRange(0, 1000).Draw(t, "user")))
}

// isOpen looks at every window by the zone's own clock, minute by minute of the day, and knows nothing of intervals.
func isOpen(w Windows, at time.Time) bool {
	if len(w.windows) == 0 {
		return true
	}
	for _, one := range w.windows {
		local := at.In(one.zone)
		minute := local.Hour()*60 + local.Minute()
		yesterday := (local.Weekday() + 6) % 7
		if one.days[local.Weekday()] && minute >= one.opens && minute < one.closes {
			return true
		}
		if one.days[yesterday] && minute+minutesOfDay < one.closes {
			return true
		}
	}
	return false
}

// clockChanges reports whether some zone's clock is changed within two days: then a time may be shown twice, or never.
func clockChanges(w Windows, at time.Time) bool {
	for _, one := range w.windows {
		_, before := at.Add(-2 * day).In(one.zone).Zone()
		_, after := at.Add(2 * day).In(one.zone).Zone()
		_, now := at.In(one.zone).Zone()
		if before != after || now != before {
			return true
		}
	}
	return false
}

func TestAWindowIsOpenWhenItsClockSaysSo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRule(t)
		steady := func(at time.Time) bool { return !clockChanges(r.Windows, at) }
		at := rapid.Custom(func(t *rapid.T) time.Time { return anyTime(t, "at") }).Filter(steady).Draw(t, "steady")
		if _, open := r.Windows.Open(at); open != isOpen(r.Windows, at) {
			t.Fatalf("open is %t at %s, by %s", open, at, r.Windows)
		}
	})
}

func TestTheNextWindowIsTheFirstMomentAtWhichOneIsOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, at := anyRule(t), anyTime(t, "at")
		next := r.Windows.Next(at)
		if _, open := r.Windows.Open(next); !open || next.Before(at) {
			t.Fatalf("the next after %s is %s, by %s", at, next, r.Windows)
		}
		if next.After(at) {
			between := at.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(at))-1).Draw(t, "between")))
			if _, open := r.Windows.Open(between); open {
				t.Fatalf("the next after %s is %s, and it is open at %s", at, next, between)
			}
		}
	})
}

func TestARotationIsDueInsideAWindowOnlyAndNotBeforeTheKeyIsOld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, key, now := anyRule(t), Key{User: anyUser(t), Created: anyTime(t, "created")}, anyTime(t, "now")
		v := r.Due(key, now)
		if _, open := r.Windows.Open(v.OpensAt); !open || v.OpensAt.Before(v.DueAt) {
			t.Fatalf("its turn is %s, and it is due %s, by %s", v.OpensAt, v.DueAt, r.Windows)
		}
		if v.State == Due {
			if _, open := r.Windows.Open(now); !open || now.Before(v.DueAt) || now.Before(v.OpensAt) {
				t.Fatalf("it is due at %s: %+v", now, v)
			}
		}
		if v.State == Waiting && !v.OpensAt.After(now) {
			t.Fatalf("it waits at %s for %s", now, v.OpensAt)
		}
		if (v.State == Current) != now.Before(v.DueAt) || v.Overdue != !now.Before(v.OverdueAt) {
			t.Fatalf("at %s: %+v", now, v)
		}
		// At its turn it is due.
		if at := r.Due(key, v.OpensAt); at.State != Due {
			t.Fatalf("at its turn %s it is %+v", v.OpensAt, at)
		}
		// And once it was asked for it is never due again, at whatever time.
		key.Asked = v.OpensAt
		if again := r.Due(key, anyTime(t, "later")); again.State == Due || again.State == Waiting {
			t.Fatalf("it was asked for, and is %+v", again)
		}
	})
}

func TestTheJitterIsOpenTimeAndBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, key := anyRule(t), Key{User: anyUser(t), Created: anyTime(t, "created")}
		v := r.Due(key, key.Created)
		without, most := r.Windows.Next(v.DueAt), r.Windows.After(v.DueAt, r.Jitter)
		if v.OpensAt.Before(without) || v.OpensAt.After(most) {
			t.Fatalf("its turn is %s, outside of %s to %s", v.OpensAt, without, most)
		}
		if again := r.Due(key, key.Created); again != v {
			t.Fatal("the same key has another turn")
		}
	})
}

func TestTimeMovesAKeyInOneDirectionOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, key := anyRule(t), Key{User: anyUser(t), Created: anyTime(t, "created")}
		early := key.Created.Add(time.Duration(rapid.Int64Range(0, int64(400*day)).Draw(t, "early")))
		late := early.Add(time.Duration(rapid.Int64Range(0, int64(400*day)).Draw(t, "later")))
		a, b := r.Due(key, early), r.Due(key, late)
		if a.State != Current && b.State == Current || a.Overdue && !b.Overdue || b.State != Due && b.OpensAt.Before(a.OpensAt) || a.DueAt != b.DueAt || a.OverdueAt != b.OverdueAt {
			t.Fatalf("at %s %+v, at %s %+v", early, a, late, b)
		}
		// A longer time of openness is never over sooner.
		spans := []time.Duration{time.Duration(rapid.Int64Range(0, int64(3*day)).Draw(t, "span")), 3 * day}
		if r.Windows.After(early, spans[0]).After(r.Windows.After(early, spans[1])) || r.Windows.After(late, spans[0]).Before(r.Windows.After(early, spans[0])) {
			t.Fatal("openness is not monotone")
		}
	})
}

func TestTheJitterSpreadsUsers(t *testing.T) {
	p, err := New(Document{TimeZone: "UTC", Rules: []Statement{{Name: "a", Who: Who{All: true}, MaxAge: "30d", Grace: "3d", Jitter: "6h", Windows: []Hours{{Hours: "20:00-04:00"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var hours [6]int
	created := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for i := range 6000 {
		v := p.rules[0].Due(Key{User: id.UserID(fmt.Sprintf("@user%d:example.org", i)), Created: created}, created)
		hours[v.OpensAt.Sub(time.Date(2026, 5, 31, 20, 0, 0, 0, time.UTC))/time.Hour]++
	}
	for i, n := range hours {
		if n < 850 || n > 1150 {
			t.Errorf("in hour %d are %d of 6000 users", i, n)
		}
	}
}
