// Command kms-parts brings the servers of `make kms` into the user's cache directory, once: Vault and moto. With -built it
// does nothing but tell, by its exit status, whether Vault is there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest"
)

func main() {
	built := flag.Bool("built", false, "tell whether Vault is built, and build nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *built); err != nil {
		fmt.Fprintln(os.Stderr, "kms-parts:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, built bool) error {
	if built {
		program, err := keyheraldtest.VaultPath()
		if err != nil {
			return err
		}
		_, err = os.Stat(program)
		return err
	}
	if _, err := keyheraldtest.VaultBinary(ctx, os.Stderr); err != nil {
		return err
	}
	_, err := keyheraldtest.MotoEnvironment(ctx, os.Stderr)
	return err
}
