// Command bench is `make bench`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/bench"
	"github.com/keyherald/keyherald/keyheraldtest/demo"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	results := flag.String("results", "bench/results.json", "where the results go")
	rounds := flag.Int("rounds", 15, "rounds of each benchmark")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if bench.RunCarryChild(ctx) {
		return
	}
	if err := run(ctx, *programs, *results, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, programs, results string, rounds int) error {
	absolute, err := filepath.Abs(programs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// One function a row; each brings its own parts.
	rotation, err := demo.BenchRotation(ctx, demo.Config{Programs: absolute, Dir: dir, Homeserver: keyheraldtest.StartDendrite, Out: os.Stderr}, rounds)
	if err != nil {
		return err
	}
	intake, err := bench.Intake(ctx, rounds)
	if err != nil {
		return err
	}
	triggers, err := bench.Triggers(ctx, 2000, min(rounds, 5))
	if err != nil {
		return err
	}
	reconcile, err := bench.Reconcile(ctx, 10_000, min(rounds, 5))
	if err != nil {
		return err
	}
	carry, err := bench.Carry(ctx, min(rounds, 5))
	if err != nil {
		return err
	}
	auditLog, err := bench.Audit(ctx, min(rounds, 9))
	if err != nil {
		return err
	}
	verifying, err := bench.AuditVerify(ctx, 1_000_000, min(rounds, 5))
	if err != nil {
		return err
	}
	memoryDir, err := os.MkdirTemp("", "keyherald-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(memoryDir) }()
	memory, err := demo.BenchMemory(ctx, demo.Config{Programs: absolute, Dir: memoryDir, Homeserver: keyheraldtest.StartDendrite, Out: os.Stderr}, 10_000)
	if err != nil {
		return err
	}
	rows := slices.Concat([]bench.Row{rotation}, intake, triggers, reconcile, carry, auditLog, verifying, []bench.Row{memory})
	if err := bench.Print(os.Stdout, rows); err != nil {
		return err
	}
	return bench.Write(results, rows)
}
