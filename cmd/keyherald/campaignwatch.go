package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/campaign"
)

func campaignWatch(r *remote) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "watch CAMPAIGN", Short: "Show how far a campaign has come, until it has ended: bars on a terminal, else a line whenever something moved", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := campaignID(args[0])
		if err != nil {
			return err
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		show, end := progressLines(cmd.OutOrStdout()), func() {}
		if asJSON {
			show = progressJSON(cmd.OutOrStdout())
		} else if out, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
			show, end = progressTerminal(out)
		}
		defer end()
		return c.stream(cmd.Context(), "/campaigns/"+key.String()+"/events", func(kind string, data []byte) error {
			if kind != "progress" {
				return nil
			}
			var progress api.CampaignProgress
			if err := json.Unmarshal(data, &progress); err != nil {
				return fmt.Errorf("the server streams what this program does not know: %w", err)
			}
			return show(progress)
		})
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

// progressTerminal draws bars, or prints lines where bars cannot be drawn.
func progressTerminal(out *os.File) (show func(api.CampaignProgress) error, end func()) {
	var drawn *bars
	var lines func(api.CampaignProgress) error
	show = func(p api.CampaignProgress) error {
		switch {
		case drawn == nil && lines == nil && fitsBars(out, len(p.Progress)):
			drawn = newBars(out, p)
		case drawn == nil && lines == nil:
			lines = progressLines(out)
		}
		if drawn == nil {
			return lines(p)
		}
		drawn.show(p)
		return nil
	}
	return show, func() {
		if drawn != nil {
			drawn.end()
		}
	}
}

// fitsBars reports whether lines can be drawn anew there: where the terminal moves its cursor, and all of them have room, since
// what has scrolled away stays as it was.
func fitsBars(out *os.File, waves int) bool {
	cols, rows, err := term.GetSize(int(out.Fd()))
	return err == nil && cols >= barWidth && rows > linesAbove+waves && os.Getenv("TERM") != "dumb"
}

// progressLines prints a line whenever something moved.
func progressLines(out io.Writer) func(api.CampaignProgress) error {
	last := ""
	return func(p api.CampaignProgress) error {
		line := fmt.Sprintf("%s, wave %d of %d: %s", p.State, p.Wave, len(p.Progress), countsText(p.Counts, p.Users))
		if line == last {
			return nil
		}
		last = line
		if p.State == campaign.Running {
			line += "; the end: " + endText(p)
		}
		_, err := fmt.Fprintf(out, "%s  %s\n", time.Now().UTC().Format("2006-01-02 15:04:05"), line)
		return err
	}
}

func progressJSON(out io.Writer) func(api.CampaignProgress) error {
	encoder := json.NewEncoder(out)
	var last campaign.Counts
	var state campaign.State
	return func(p api.CampaignProgress) error {
		if p.Counts == last && p.State == state {
			return nil
		}
		last, state = p.Counts, p.State
		return encoder.Encode(p)
	}
}

const (
	// barWidth is that of a bar where the terminal has room for it.
	barWidth = 40
	// linesAbove is how many lines stand above the bars.
	linesAbove = 2
)

// bars are the waves of a campaign on a terminal, below what they are together.
type bars struct {
	out   io.Writer
	all   *mpb.Progress
	above []*mpb.Bar
	waves []*mpb.Bar
	// texts are the lines above, and then what stands behind each bar.
	texts []atomic.Value
	last  api.CampaignProgress
}

// newBars draws until end is called, and not until a context ends: what was heard last must stand there in the end.
func newBars(out io.Writer, p api.CampaignProgress) *bars {
	b := &bars{out: out, all: mpb.New(mpb.WithOutput(out), mpb.WithWidth(barWidth)), texts: make([]atomic.Value, linesAbove+len(p.Progress))}
	b.store(p)
	text := func(i int, aligned ...decor.WC) decor.Decorator {
		return decor.Any(func(decor.Statistics) string { return b.texts[i].Load().(string) }, aligned...)
	}
	for i := range linesAbove {
		b.above = append(b.above, b.all.New(1, mpb.NopStyle(), mpb.PrependDecorators(text(i))))
	}
	for i, w := range p.Progress {
		b.waves = append(b.waves, b.all.AddBar(int64(max(w.Users, 1)), mpb.PrependDecorators(decor.Name(fmt.Sprintf("wave %d (%d %%)", w.Wave, w.Percent), decor.WCSyncWidthR)),
			mpb.AppendDecorators(text(linesAbove+i, decor.WCSyncWidthR))))
	}
	return b
}

func (b *bars) store(p api.CampaignProgress) {
	b.last = p
	b.texts[0].Store(fmt.Sprintf("%s, wave %d of %d, %d users a minute", p.State, p.Wave, len(p.Progress), p.RateNow))
	b.texts[1].Store(nextText(p))
	for i, w := range p.Progress {
		b.texts[linesAbove+i].Store(countsText(w.Counts, w.Users))
	}
}

func (b *bars) show(p api.CampaignProgress) {
	b.store(p)
	for i, w := range p.Progress {
		b.waves[i].SetCurrent(int64(w.Counts.Done))
	}
}

// nextText is what comes next, most telling first: a narrow terminal cuts the line.
func nextText(p api.CampaignProgress) string {
	minute := func(t *time.Time) string {
		if t == nil {
			return "?"
		}
		return t.UTC().Format("2006-01-02 15:04")
	}
	switch {
	case p.State == campaign.AwaitingApproval:
		return "it begins once another admin has approved it"
	case p.State == campaign.Paused:
		return "nobody more begins until it is resumed"
	case p.State != campaign.Running:
		return ""
	case p.Likely == nil:
		return fmt.Sprintf("end: between %s and %s UTC", minute(p.Earliest), minute(p.Latest))
	default:
		return fmt.Sprintf("end: about %s UTC, between %s and %s", minute(p.Likely), minute(p.Earliest), minute(p.Latest))
	}
}

// end leaves the waves as they are, and says below them what the campaign has come to.
func (b *bars) end() {
	for _, line := range b.above {
		line.Abort(true)
	}
	for _, bar := range b.waves {
		bar.Abort(false)
	}
	b.all.Wait()
	text := fmt.Sprintf("%s: %s", b.last.State, countsText(b.last.Counts, b.last.Users))
	if !b.last.State.Ended() {
		text += "; it is not watched any more"
	}
	_, _ = fmt.Fprintln(b.out, text)
}
