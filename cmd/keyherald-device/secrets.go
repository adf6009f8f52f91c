package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
)

type loader func() (device.Config, *device.Fleet, error)

// withAccount runs do with one account, which a running fleet puts down meanwhile.
func withAccount(cmd *cobra.Command, load loader, name string, do func(ctx context.Context, account *device.Account) error) (err error) {
	_, fleet, err := load()
	if err != nil {
		return err
	}
	fleet.Authorize = showAuthorization
	account, giveBack, err := fleet.Borrow(cmd.Context(), name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, giveBack()) }()
	return do(cmd.Context(), account)
}

func accountFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "account", "", "the account file's name without .yaml")
	_ = cmd.MarkFlagRequired("account")
}

// pendingCommand is about secrets that receive.accept has wait for a person. None of them is printed.
func pendingCommand(load loader) *cobra.Command {
	var name string
	var all bool
	parent := &cobra.Command{Use: "pending-secrets", Short: "Decide over secrets that other devices sent unasked and receive.accept has wait"}
	list := &cobra.Command{Use: "list", Short: "List what waits, of one account or of all", RunE: func(cmd *cobra.Command, _ []string) error {
		config, fleet, err := load()
		if err != nil {
			return err
		}
		files, err := fleet.Files()
		if err != nil {
			return err
		}
		names := []string{name}
		if name == "" {
			names = slices.Sorted(maps.Keys(files))
		}
		for _, account := range names {
			store := filepath.Join(config.State, account+".db")
			if _, err := os.Stat(store); name == "" && err != nil {
				continue
			}
			pending, err := device.Pending(cmd.Context(), store)
			if err != nil {
				return fmt.Errorf("%s: %w", account, err)
			}
			for _, p := range pending {
				if err := printPending(cmd.OutOrStdout(), account, p); err != nil {
					return err
				}
			}
		}
		return nil
	}}
	list.Flags().StringVar(&name, "account", "", "the account file's name without .yaml; all of them if it is left out")
	decide := func(use, short, done string, do func(*device.Account, context.Context, ...int64) ([]device.PendingSecret, error)) *cobra.Command {
		cmd := &cobra.Command{Use: use + " [ID …]", Short: short, RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseIDs(args, all)
			if err != nil {
				return err
			}
			return withAccount(cmd, load, name, func(ctx context.Context, account *device.Account) error {
				which, err := do(account, ctx, ids...)
				if err != nil {
					return err
				}
				for _, p := range which {
					if err := printPending(cmd.OutOrStdout(), done, p); err != nil {
						return err
					}
				}
				if len(which) == 0 {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), "none of them is the one that counts now: they are dropped")
				}
				return err
			})
		}}
		accountFlag(cmd, &name)
		cmd.Flags().BoolVar(&all, "all", false, "everything that waits")
		return cmd
	}
	parent.AddCommand(list,
		decide("accept", "Have them compared with the key backup and the user's identity; the one that fits is kept", "kept", (*device.Account).AcceptPending),
		decide("reject", "Drop them unused", "dropped", (*device.Account).RejectPending))
	return parent
}

func parseIDs(args []string, all bool) ([]int64, error) {
	if all == (len(args) > 0) {
		return nil, errors.New("name the ids that `pending-secrets list` shows, or --all")
	}
	ids := make([]int64, len(args))
	for i, arg := range args {
		var err error
		if ids[i], err = strconv.ParseInt(arg, 10, 64); err != nil {
			return nil, fmt.Errorf("%q is no id: `pending-secrets list` shows them", arg)
		}
	}
	return ids, nil
}

func printPending(out io.Writer, head string, p device.PendingSecret) error {
	_, err := fmt.Fprintf(out, "%s\t%d\t%s\tfrom device %s\t%s\n", head, p.ID, p.Name, printable(p.Sender), p.ReceivedAt.Format(time.RFC3339))
	return err
}

// printable keeps a device's id, which it chose itself, from moving the terminal's cursor.
func printable(deviceID id.DeviceID) string {
	quoted := strconv.QuoteToASCII(string(deviceID))
	return quoted[1 : len(quoted)-1]
}
