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
	"time"

	"github.com/keyherald/keyherald/keyheraldtest/chaos"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	kills := flag.Int("kills", 200, "how many SIGKILLs")
	seed := flag.Uint64("seed", 1, "the schedule")
	controls := flag.Bool("controls", false, "the programs were built with -tags sabotage: the run must find each of their faults")
	keep := flag.Bool("keep", false, "keep the directory with the logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config := chaos.Config{Kills: *kills, Seed: *seed, Out: os.Stdout}
	err := error(nil)
	if config.Programs, err = filepath.Abs(*programs); err == nil {
		if *controls {
			err = runControls(ctx, config, *keep)
		} else {
			err = run(ctx, config, *keep)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config chaos.Config, keep bool) error {
	result, err := inDirectory(ctx, config, keep)
	if err != nil {
		return err
	}
	return result.OK()
}

// runControls runs once for each fault that the programs have on purpose, and fails if it was not found.
func runControls(ctx context.Context, config chaos.Config, keep bool) error {
	for _, control := range []struct {
		sabotage    string
		loseAnswers bool
		found       func(chaos.Result) int
	}{
		{"ack-before-commit", false, func(r chaos.Result) int { return r.Lost }},
		{"encrypt-again", true, func(r chaos.Result) int { return r.Duplicated }},
		{"event-left-out", false, func(r chaos.Result) int { return r.AuditMismatch }},
		{"carry-believed", false, func(r chaos.Result) int { return r.LostRoomKeys }},
		{"catch-up-left-out", false, func(r chaos.Result) int { return r.LostRoomKeys }},
	} {
		fmt.Printf("\ncontrol: programs with the fault %s\n", control.sabotage)
		config.Sabotage, config.LoseAnswers, config.Patience = control.sabotage, control.loseAnswers, time.Minute
		result, err := inDirectory(ctx, config, keep)
		if err != nil {
			return err
		}
		if control.found(result) == 0 {
			return fmt.Errorf("the fault %s was not found: the harness is blind to it", control.sabotage)
		}
		fmt.Printf("found: %d\n", control.found(result))
	}
	return nil
}

func inDirectory(ctx context.Context, config chaos.Config, keep bool) (chaos.Result, error) {
	dir, err := os.MkdirTemp("", "keyherald-chaos-")
	if err != nil {
		return chaos.Result{}, err
	}
	if keep {
		fmt.Println("logs are in", dir)
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	config.Dir = dir
	result, err := chaos.Run(ctx, config)
	if err != nil {
		return result, err
	}
	return result, result.PrintLine(os.Stdout)
}
