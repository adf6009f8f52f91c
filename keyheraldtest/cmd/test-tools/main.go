// Command test-tools builds the servers that tests stand on into the user's cache directory, once: the homeserver,
// the S3 store and promtool, and with -kms Vault and moto as well. With -vault-built it does nothing but tell, by its exit status,
// whether Vault is there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/keyherald/keyherald/keyheraldtest"
)

func main() {
	kms := flag.Bool("kms", false, "Vault and moto as well: ten minutes or more")
	vaultBuilt := flag.Bool("vault-built", false, "tell whether Vault is built, and build nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kms, *vaultBuilt); err != nil {
		fmt.Fprintln(os.Stderr, "test-tools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kms, vaultBuilt bool) error {
	if vaultBuilt {
		built, err := keyheraldtest.VaultIsBuilt()
		if err == nil && !built {
			err = errors.New("vault is not built")
		}
		return err
	}
	tools := []func(context.Context, io.Writer) (string, error){keyheraldtest.DendriteBinaries, keyheraldtest.S3Binaries, keyheraldtest.PromtoolBinary}
	if kms {
		tools = append(tools, keyheraldtest.VaultBinary, keyheraldtest.MotoEnvironment)
	}
	for _, build := range tools {
		if _, err := build(ctx, os.Stderr); err != nil {
			return err
		}
	}
	return nil
}
