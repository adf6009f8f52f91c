package main

import (
	"context"
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
		switch out, ok := cmd.OutOrStdout().(*os.File); {
		case asJSON:
			show = progressJSON(cmd.OutOrStdout())
		case ok && term.IsTerminal(int(out.Fd())):
			bars := newBars(cmd.Context(), out)
			show, end = bars.show, bars.end
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

// bars are the waves of a campaign on a terminal.
type bars struct {
	all   *mpb.Progress
	waves []*mpb.Bar
	texts []atomic.Value
	head  *mpb.Bar
	text  atomic.Value
}

func newBars(ctx context.Context, out io.Writer) *bars {
	b := &bars{all: mpb.NewWithContext(ctx, mpb.WithOutput(out), mpb.WithWidth(40))}
	b.text.Store("")
	return b
}

func (b *bars) show(p api.CampaignProgress) error {
	text := fmt.Sprintf("%s, %d users a minute", p.State, p.RateNow)
	if p.State == campaign.Running {
		text += "; the end: " + endText(p)
	}
	b.text.Store(text)
	if b.head == nil {
		b.head = b.all.AddSpinner(1, mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.text.Load().(string) })))
		b.texts = make([]atomic.Value, len(p.Progress))
		for i, w := range p.Progress {
			b.texts[i].Store("")
			b.waves = append(b.waves, b.all.AddBar(int64(max(w.Users, 1)), mpb.PrependDecorators(decor.Name(fmt.Sprintf("wave %d (%d %%) ", w.Wave, w.Percent))),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.texts[i].Load().(string) }))))
		}
	}
	for i, w := range p.Progress {
		b.texts[i].Store(countsText(w.Counts, w.Users))
		b.waves[i].SetCurrent(int64(w.Counts.Done))
	}
	return nil
}

// end leaves the bars as they are.
func (b *bars) end() {
	if b.head != nil {
		b.head.Abort(false)
	}
	for _, bar := range b.waves {
		bar.Abort(false)
	}
	b.all.Wait()
}
