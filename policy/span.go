package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

const day = 24 * time.Hour

// maxSpan is longer than any sensible span, and far from where times overflow.
const maxSpan = 3660 * day

var (
	spanText = regexp.MustCompile(`^([0-9]{1,5}w)?([0-9]{1,5}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$`)
	units    = []time.Duration{7 * day, day, time.Hour, time.Minute, time.Second}
)

// parseSpan reads 90d, 1w2d or 1h30m. A day is 24 hours, whatever the clocks do on it. Empty is none.
func parseSpan(text string) (time.Duration, error) {
	parts := spanText.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("%q is no span of time: write 90d, 12h or 1d12h", text)
	}
	var span time.Duration
	for i, part := range parts[1:] {
		if part == "" {
			continue
		}
		n, err := strconv.Atoi(part[:len(part)-1])
		if err != nil {
			return 0, fmt.Errorf("%q is no span of time: %w", text, err)
		}
		span += time.Duration(n) * units[i]
	}
	if span > maxSpan {
		return 0, errors.New("it is more than ten years: write less")
	}
	return span, nil
}

// Span is a span of time as a document has it, for people to read.
func Span(d time.Duration) string {
	switch {
	case d >= day && d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d >= day:
		return fmt.Sprintf("%dd", d/day) + Span(d%day)
	case d%time.Hour == 0 && d > 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0 && d > 0:
		if d > time.Hour {
			return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
		}
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.Round(time.Second).String()
}
