package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/keyherald/keyherald/campaign"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/postgres"
)

// campaignInterval is how often watch looks.
const campaignInterval = time.Second

func campaignWatch(load func() (config, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "watch CAMPAIGN", Short: "Show how far a campaign has come, until it has ended: bars on a terminal, else a line whenever something moved", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		key, err := campaignID(args[0])
		if err != nil {
			return err
		}
		return withEnforcer(cmd.Context(), load, func(_ config, _ *postgres.DB, enforcer *enforce.Enforcer) error {
			show, end := progressLines(cmd.OutOrStdout()), func() {}
			switch out, ok := cmd.OutOrStdout().(*os.File); {
			case asJSON:
				show = progressJSON(cmd.OutOrStdout())
			case ok && term.IsTerminal(int(out.Fd())):
				bars := newBars(cmd.Context(), out)
				show, end = bars.show, bars.end
			}
			defer end()
			return watchCampaign(cmd.Context(), enforcer, key, show)
		})
	}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines")
	return cmd
}

// watchCampaign shows a campaign until it has ended or ctx does.
func watchCampaign(ctx context.Context, enforcer *enforce.Enforcer, key uuid.UUID, show func(enforce.CampaignProgress) error) error {
	for {
		progress, err := enforcer.CampaignProgress(ctx, key)
		if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		if err := show(progress); err != nil {
			return err
		}
		if progress.State.Ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(campaignInterval):
		}
	}
}

// progressLines prints a line whenever something moved.
func progressLines(out io.Writer) func(enforce.CampaignProgress) error {
	last := ""
	return func(p enforce.CampaignProgress) error {
		line := fmt.Sprintf("%s, wave %d of %d: %s", p.State, p.Wave, len(p.Waves), countsText(p.Counts, p.Users))
		if line == last {
			return nil
		}
		last = line
		if p.State == campaign.Running {
			line += "; the end: " + endText(p.Estimate)
		}
		_, err := fmt.Fprintf(out, "%s  %s\n", time.Now().UTC().Format("2006-01-02 15:04:05"), line)
		return err
	}
}

func progressJSON(out io.Writer) func(enforce.CampaignProgress) error {
	encoder := json.NewEncoder(out)
	var last campaign.Counts
	var state campaign.State
	return func(p enforce.CampaignProgress) error {
		if p.Counts == last && p.State == state {
			return nil
		}
		last, state = p.Counts, p.State
		return encoder.Encode(progressViewOf(p, nil))
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

func (b *bars) show(p enforce.CampaignProgress) error {
	text := fmt.Sprintf("%s, %d users a minute", p.State, p.RateNow)
	if p.State == campaign.Running {
		text += "; the end: " + endText(p.Estimate)
	}
	b.text.Store(text)
	if b.head == nil {
		b.head = b.all.AddSpinner(1, mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.text.Load().(string) })))
		b.texts = make([]atomic.Value, len(p.Waves))
		for i, w := range p.Waves {
			b.texts[i].Store("")
			b.waves = append(b.waves, b.all.AddBar(int64(max(w.Users, 1)), mpb.PrependDecorators(decor.Name(fmt.Sprintf("wave %d (%d %%) ", w.Wave, w.Percent))),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.texts[i].Load().(string) }))))
		}
	}
	for i, w := range p.Waves {
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
