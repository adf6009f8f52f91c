// Command campaign is `make campaign`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/keyherald/keyherald/keyheraldtest/campaign"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald")
	users := flag.Int("users", 10_000, "how many users, at least 100")
	rate := flag.Int("rate", 6000, "how many users begin in a minute at most")
	limit := flag.Duration("limit", time.Hour, "how long the campaign may take")
	keep := flag.Bool("keep", false, "keep the directory with the log")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, campaign.Config{Programs: *programs, Users: *users, Rate: *rate, Limit: *limit, Out: os.Stdout}, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "campaign:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config campaign.Config, keep bool) (err error) {
	if config.Users < 100 {
		return errors.New("with fewer than 100 users nobody fails: write -users 100 or more")
	}
	if config.Programs, err = filepath.Abs(config.Programs); err != nil {
		return err
	}
	if config.Dir, err = os.MkdirTemp("", "keyherald-campaign-"); err != nil {
		return err
	}
	if keep {
		fmt.Println("the server's log is in", config.Dir)
	} else {
		defer func() { _ = os.RemoveAll(config.Dir) }()
	}
	result, err := campaign.Run(ctx, config)
	return errors.Join(err, result.PrintLine(os.Stdout))
}
