// Command demo is `make demo`.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/term"

	"github.com/keyherald/keyherald/keyheraldtest"
	"github.com/keyherald/keyherald/keyheraldtest/demo"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	homeserver := flag.String("homeserver", "dendrite", "the homeserver: dendrite or synapse")
	keep := flag.Bool("keep", false, "leave everything running when the checks are done")
	kms := flag.String("kms", "setec", "the key-management system: setec or vault")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *programs, *homeserver, *kms, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, programs, name, kms string, keep bool) error {
	homeserver, err := keyheraldtest.HomeserverNamed(name)
	if err != nil {
		return err
	}
	absolute, err := filepath.Abs(programs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keyherald-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	config := demo.Config{Programs: absolute, Dir: dir, Homeserver: homeserver, KMS: kms, Out: os.Stdout, Color: term.IsTerminal(int(os.Stdout.Fd()))}
	if keep {
		config.Hold = hold
	}
	_, err = demo.Run(ctx, config)
	return err
}

// hold keeps everything up until the person ends it; each line he enters is a rotation.
func hold(ctx context.Context, w *demo.World) error {
	entered := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			entered <- struct{}{}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-entered:
			if err := w.Rotate(ctx); err != nil && !errors.Is(err, context.Canceled) {
				fmt.Fprintln(os.Stderr, "demo:", err)
			}
		}
	}
}
