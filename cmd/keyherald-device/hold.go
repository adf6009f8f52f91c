package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/device"
)

// holdCommand keeps an account's old key backups, or lets them go; a running account looks within the hour.
func holdCommand(load func() (device.Config, *device.Fleet, error), name, short, done string, hold bool) *cobra.Command {
	var account string
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		config, fleet, err := load()
		if err != nil {
			return err
		}
		files, err := fleet.Files()
		if err != nil {
			return err
		}
		if _, there := files[account]; !there {
			return fmt.Errorf("there is no account file %s.yaml in %s", account, config.Accounts)
		}
		if err := device.HoldOldBackups(filepath.Join(config.State, account+".db"), hold); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", account, done)
		return err
	}}
	cmd.Flags().StringVar(&account, "account", "", "the account file's name without .yaml")
	_ = cmd.MarkFlagRequired("account")
	return cmd
}
