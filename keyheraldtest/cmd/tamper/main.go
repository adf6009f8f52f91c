// Command tamper is `make tamper`.
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

	"github.com/keyherald/keyherald/keyheraldtest/tamper"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald, keyherald-device and keyherald-verify")
	events := flag.Int("events", 10000, "how many events the log must have")
	keep := flag.Bool("keep", false, "keep the directory with the logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *programs, *events, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tamper:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, programs string, events int, keep bool) (err error) {
	config := tamper.Config{Events: events, Out: os.Stdout}
	if config.Programs, err = filepath.Abs(programs); err != nil {
		return err
	}
	if config.Dir, err = os.MkdirTemp("", "keyherald-tamper-"); err != nil {
		return err
	}
	if keep {
		fmt.Println("logs are in", config.Dir)
	} else {
		defer func() { _ = os.RemoveAll(config.Dir) }()
	}
	result, err := tamper.Run(ctx, config)
	if err != nil {
		return err
	}
	return errors.Join(result.PrintLine(os.Stdout), result.OK())
}
