// Command interop is `make interop`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest/interop"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	only := flag.String("only", "", "run one homeserver alone: "+strings.Join(interop.Grounds(), ", "))
	keep := flag.Bool("keep", false, "leave the directory with all logs also when every cell held")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *programs, *only, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, programs, only string, keep bool) error {
	if only != "" && !slices.Contains(interop.Grounds(), only) {
		return fmt.Errorf("there is no homeserver %q: say one of %s", only, strings.Join(interop.Grounds(), ", "))
	}
	absolute, err := filepath.Abs(programs)
	if err != nil {
		return err
	}
	tools, err := interop.Install(ctx, os.Stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keyherald-interop-")
	if err != nil {
		return err
	}
	_, err = interop.Run(ctx, interop.Config{Programs: absolute, Dir: dir, Tools: tools, Out: os.Stdout, Only: only})
	if keep || err != nil {
		fmt.Fprintln(os.Stderr, "everything is left in", dir)
		return err
	}
	return os.RemoveAll(dir)
}
