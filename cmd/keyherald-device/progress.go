package main

import (
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
	"maunium.net/go/mautrix/id"
)

// terminal is where logs go, and on a terminal a bar for each carry-over, below the log's lines; nil without one.
func terminal() (io.Writer, func(user id.UserID, done, total int)) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return os.Stderr, nil
	}
	bars := &bars{progress: mpb.New(mpb.WithOutput(os.Stderr), mpb.WithAutoRefresh()), of: map[id.UserID]*mpb.Bar{}}
	return bars.progress, bars.show
}

type bars struct {
	progress *mpb.Progress

	mu sync.Mutex // guards of
	of map[id.UserID]*mpb.Bar
}

func (b *bars) show(user id.UserID, done, total int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bar := b.of[user]
	if bar == nil {
		bar = b.progress.AddBar(int64(total), mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(user.String()+" carries room keys over ")),
			mpb.AppendDecorators(decor.CountersNoUnit("%d of %d "), decor.AverageETA(decor.ET_STYLE_GO)))
		b.of[user] = bar
	}
	bar.SetTotal(int64(total), done >= total)
	bar.SetCurrent(int64(done))
	if done >= total {
		delete(b.of, user)
	}
}
