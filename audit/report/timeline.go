package report

import (
	"fmt"
	"time"
)

// timeline is the picture: for each day, or several where the period is long, how many rotations were done, how many came
// to nothing, and how many attempts were refused. Lengths are in units of the picture.
type timeline struct {
	Width, Height, Base int
	Step                string
	Bars                []bar
	// Top is the largest count, Ticks are labels below.
	Top   int
	Ticks []tick
	Text  string
}

type bar struct {
	X, Width, Middle int
	// Done, Failed and Refused are stacked from the base line up.
	Done, Failed, Refused segment
	Total                 int
	Title                 string
}

type segment struct{ Y, Height, N int }

// tick is a label below; Anchor is SVG's text-anchor, so that the last one does not run out of the picture.
type tick struct {
	X            int
	Anchor, Text string
}

const (
	maxBars    = 62
	plotWidth  = 700
	plotHeight = 110
	plotTop    = 22
	plotBase   = plotTop + plotHeight
)

func newTimeline(f Facts) timeline {
	days := max(1, int((f.To.Sub(f.From)+24*time.Hour-1)/(24*time.Hour)))
	perBar := (days + maxBars - 1) / maxBars
	n := (days + perBar - 1) / perBar
	span := time.Duration(perBar) * 24 * time.Hour
	t := timeline{Width: plotWidth + 20, Height: plotBase + 34, Base: plotBase, Step: "day"}
	if perBar > 1 {
		t.Step = fmt.Sprintf("%d days", perBar)
	}
	counts := make([][3]int, n)
	count := func(at time.Time, kind int) {
		if i := int(at.Sub(f.From) / span); i >= 0 && i < n {
			counts[i][kind]++
		}
	}
	for _, at := range f.done {
		count(at, 0)
	}
	for _, at := range f.failed {
		count(at, 1)
	}
	for _, act := range f.Refused {
		count(act.Time, 2)
	}
	for _, c := range counts {
		t.Top = max(t.Top, c[0]+c[1]+c[2])
	}
	step := plotWidth / n
	var totals [3]int
	for i, c := range counts {
		from := f.From.Add(time.Duration(i) * span)
		b := bar{X: 10 + i*step + step/10, Width: max(1, step-step/5), Total: c[0] + c[1] + c[2],
			Title: fmt.Sprintf("%s: %d done, %d failed or timed out, %d refused", from.Format(time.DateOnly), c[0], c[1], c[2])}
		b.Middle = b.X + b.Width/2
		y := plotBase
		for kind, to := range []*segment{&b.Done, &b.Failed, &b.Refused} {
			totals[kind] += c[kind]
			height := 0
			if c[kind] > 0 {
				height = max(2, c[kind]*plotHeight/t.Top)
			}
			y -= height
			*to = segment{y, height, c[kind]}
		}
		t.Bars = append(t.Bars, b)
		switch label := from.Format(time.DateOnly); {
		case i == 0:
			t.Ticks = append(t.Ticks, tick{b.X, "start", label})
		case i == n-1:
			t.Ticks = append(t.Ticks, tick{b.X + b.Width, "end", label})
		case n > 12 && i == n/2:
			t.Ticks = append(t.Ticks, tick{b.X + b.Width/2, "middle", label})
		}
	}
	t.Text = fmt.Sprintf("%d rotations were done, %d failed or timed out, and %d attempts were refused.", totals[0], totals[1], totals[2])
	return t
}
