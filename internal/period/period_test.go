package period_test

import (
	"testing"
	"time"

	"github.com/keyherald/keyherald/internal/period"
)

func TestTimesAreReadAsPeopleWriteThem(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]struct{ begin, end string }{
		"2026-11-01":                {"2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"},
		"2026-11-01T08:30:00Z":      {"2026-11-01T08:30:00Z", "2026-11-01T08:30:00Z"},
		"2026-11-01T08:30:00+02:00": {"2026-11-01T06:30:00Z", "2026-11-01T06:30:00Z"},
		"24h":                       {"2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z"},
		"90m":                       {"2026-11-25T10:30:00Z", "2026-11-25T10:30:00Z"},
		"7d":                        {"2026-11-18T12:00:00Z", "2026-11-18T12:00:00Z"},
		"0d":                        {"2026-11-25T12:00:00Z", "2026-11-25T12:00:00Z"},
	} {
		for end, want := range map[bool]string{false: want.begin, true: want.end} {
			if got, err := period.Instant(text, now, end); err != nil || got.Format(time.RFC3339) != want {
				t.Errorf("%s as an end (%v) is %v (%v), not %s", text, end, got, err, want)
			}
		}
	}
	for _, text := range []string{"", "yesterday", "-24h", "-1d", "1.5d", "2026-13-01", "2026-11-31", "01.11.2026", "0001-01-01", "9999-01-01T00:00:00Z", "65535d", "9999999999h"} {
		if got, err := period.Instant(text, now, false); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func FuzzInstant(f *testing.F) {
	for _, text := range []string{"2026-11-01", "2026-11-01T08:30:00Z", "24h", "7d", "1e9h", "-1d"} {
		f.Add(text, true)
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string, end bool) {
		got, err := period.Instant(text, now, end)
		if err != nil {
			return
		}
		if got.Year() < 1970 || got.Year() > 9001 || got.Location() != time.UTC {
			t.Errorf("%q is taken for %v", text, got)
		}
		if again, err := period.Instant(got.Format(time.RFC3339Nano), now, end); err != nil || !again.Equal(got) {
			t.Errorf("%v is read back as %v (%v)", got, again, err)
		}
	})
}

func TestAPeriodBeginsBeforeItEnds(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, bad := range [][2]string{{"2026-11-02", "2026-11-01"}, {"1h", "2h"}, {"1h", "1h"}, {"x", ""}, {"", "x"}} {
		if since, until, err := period.Between(bad[0], bad[1], now); err == nil {
			t.Errorf("%v is %v to %v", bad, since, until)
		}
	}
	since, until, err := period.Between("2026-11-01", "2026-11-01", now)
	if err != nil || until.Sub(since) != 24*time.Hour {
		t.Errorf("a day is %v to %v (%v)", since, until, err)
	}
	if since, until, err := period.Between("", "", now); err != nil || !since.IsZero() || !until.IsZero() {
		t.Errorf("no bounds are %v to %v (%v)", since, until, err)
	}
}
