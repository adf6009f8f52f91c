package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/device"
)

// provideCommand never takes the recovery key as an argument, where every user of the machine could read it.
func provideCommand(load loader) *cobra.Command {
	var name, file string
	cmd := &cobra.Command{Use: "provide-recovery-key", Short: "Give a device its user's present recovery key, to rewrite the recovery copy with",
		RunE: func(cmd *cobra.Command, _ []string) error {
			recoveryKey, err := readRecoveryKey(file)
			if err != nil {
				return err
			}
			return withAccount(cmd, load, name, func(ctx context.Context, account *device.Account) error {
				if err := account.ProvideRecoveryKey(ctx, recoveryKey); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s keeps the recovery key, sealed\n", name)
				return err
			})
		}}
	accountFlag(cmd, &name)
	cmd.Flags().StringVar(&file, "file", "", "a file with the recovery key; without it the terminal is asked")
	return cmd
}

func readRecoveryKey(file string) (string, error) {
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("reading the recovery key: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	}
	if prompt := terminalPrompt(); prompt != nil {
		return prompt("The user's present recovery key")
	}
	return "", errors.New("no recovery key: use --file, or a terminal")
}

func recoveryCommand(load loader) *cobra.Command {
	var name string
	var yes, leaveBehind bool
	parent := &cobra.Command{Use: "recovery", Short: "The user's recovery key"}
	replace := &cobra.Command{Use: "replace", Short: "Replace the user's recovery key by a new one, which goes where the account file says",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return errors.New("the user's present recovery key will open nothing any more, wherever he has written it down: say --yes if that is meant")
			}
			return withAccount(cmd, load, name, func(ctx context.Context, account *device.Account) error {
				replaced, err := account.ReplaceRecoveryKey(ctx, leaveBehind)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if _, err := fmt.Fprintf(out, "the new recovery key %s is kept in %s, and opens %s\n", replaced.KeyID, replaced.Where, strings.Join(replaced.Rewritten, ", ")); err != nil {
					return err
				}
				if len(replaced.LeftBehind) > 0 {
					_, err = fmt.Fprintf(out, "it does not open %s, which nothing here could open before\n", strings.Join(replaced.LeftBehind, ", "))
				}
				return err
			})
		}}
	accountFlag(replace, &name)
	replace.Flags().BoolVar(&yes, "yes", false, "the user's present recovery key may become useless")
	replace.Flags().BoolVar(&leaveBehind, "leave-behind", false, "also where secrets would be lost that the present key opens and this device cannot")
	parent.AddCommand(replace)
	return parent
}
