// Command bench is `make bench`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest/bench"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	results := flag.String("results", "bench/results.json", "where the results go; rows that are not measured this time stay there")
	rows := flag.String("rows", "", "what to measure, with commas between the names; empty for everything")
	rounds := flag.Int("rounds", 15, "rounds of each benchmark")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if bench.RunCarryChild(ctx) {
		return
	}
	if err := run(ctx, *programs, *results, *rows, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures what was chosen. Each result is shown and kept as soon as it is there, and all of them are shown in the end.
func run(ctx context.Context, programs, results, list string, rounds int) error {
	chosen, err := choose(list, all())
	if err != nil {
		return err
	}
	absolute, err := filepath.Abs(programs)
	if err != nil {
		return err
	}
	var rows []bench.Row
	for _, m := range chosen {
		fresh, err := m.do(ctx, setting{programs: absolute, rounds: rounds})
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if err := bench.Print(os.Stderr, fresh); err != nil {
			return err
		}
		if err := bench.Write(results, fresh); err != nil {
			return err
		}
		rows = append(rows, fresh...)
	}
	return bench.Print(os.Stdout, rows)
}
