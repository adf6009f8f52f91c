// Command chaos is `make chaos`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest/chaos"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	kills := flag.Int("kills", 200, "how many SIGKILLs")
	seed := flag.Uint64("seed", 1, "the schedule")
	sabotage := flag.String("sabotage", "", "a fault that the programs have on purpose (built with -tags sabotage); the run must find it")
	keep := flag.Bool("keep", false, "keep the directory with the logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *programs, *kills, *seed, *sabotage, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, programs string, kills int, seed uint64, sabotage string, keep bool) error {
	absolute, err := filepath.Abs(programs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keyherald-chaos-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Println("logs are in", dir)
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	result, err := chaos.Run(ctx, chaos.Config{Programs: absolute, Dir: dir, Kills: kills, Seed: seed, Out: os.Stdout, Sabotage: sabotage})
	if err != nil {
		return err
	}
	if err := result.PrintLine(os.Stdout); err != nil {
		return err
	}
	return result.OK()
}
