// Command fleet is `make fleet`.
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

	"github.com/keyherald/keyherald/keyheraldtest/fleet"
)

func main() {
	programs := flag.String("programs", "bin", "the directory with keyherald and keyherald-device")
	login := flag.String("login", "bin/test/login", "the login.command")
	accounts := flag.Int("accounts", 1000, "how many users there are")
	keep := flag.Bool("keep", false, "keep the directory with the logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *programs, *login, *accounts, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, programs, login string, accounts int, keep bool) (err error) {
	config := fleet.Config{Accounts: accounts, Out: os.Stdout}
	if config.Programs, err = filepath.Abs(programs); err != nil {
		return err
	}
	if config.LoginCommand, err = filepath.Abs(login); err != nil {
		return err
	}
	if config.Dir, err = os.MkdirTemp("", "keyherald-fleet-"); err != nil {
		return err
	}
	if keep {
		fmt.Println("logs are in", config.Dir)
	} else {
		defer func() { _ = os.RemoveAll(config.Dir) }()
	}
	result, err := fleet.Run(ctx, config)
	if err != nil {
		return err
	}
	return errors.Join(result.PrintLine(os.Stdout), result.Err())
}
