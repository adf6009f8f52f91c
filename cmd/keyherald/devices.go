package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
)

func devicesCommand(r *remote) *cobra.Command {
	var userID, deviceID, reason string
	list := &cobra.Command{Use: "list", Short: "List the managed devices", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		filters := url.Values{}
		if userID != "" {
			filters.Set("user_id", userID)
		}
		devices, err := all[api.Device](cmd.Context(), c, "/devices", filters)
		if err != nil {
			return err
		}
		table := newTable(cmd.OutOrStdout())
		_, _ = fmt.Fprintln(table, "USER\tDEVICE\tSTATE\tNAME\tLAST SEEN")
		for _, d := range devices {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", d.UserID, d.DeviceID, d.State, plain(d.Name), at(d.LastSeen))
		}
		return table.Flush()
	}}
	list.Flags().StringVar(&userID, "user", "", "only this user's")
	revoke := deviceAct(r, "revoke", "Revoke a managed device", func(cmd *cobra.Command, c *client) error {
		var revoked api.Revoked
		if err := c.do(cmd.Context(), http.MethodPost, userPath("/users", userID, "devices", deviceID, "revoke"), api.Reason{Reason: reason}, &revoked); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "Revoked: "+revoked.Next)
		return err
	}, &userID, &deviceID)
	revoke.Flags().StringVar(&reason, "reason", "", "why")
	exclude := deviceAct(r, "exclude", "Keep a device of a user from every push, from the next word to the managed device on; a managed one is revoked instead", func(cmd *cobra.Command, c *client) error {
		var excluded api.Exclusion
		if err := c.do(cmd.Context(), http.MethodPut, userPath("/users", userID, "exclusions", deviceID), nil, &excluded); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "No key for %s.\nThe user's managed device hears of it with the next rotation, or with `keyherald rotations repeat`.\n",
			plain(exclusionText(excluded, "from now on")))
		return err
	}, &userID, &deviceID)
	include := deviceAct(r, "include", "Lift an exclusion: the device gets the key again, with the user's next rotation or `keyherald rotations repeat`", func(cmd *cobra.Command, c *client) error {
		return c.do(cmd.Context(), http.MethodDelete, userPath("/users", userID, "exclusions", deviceID), nil, nil)
	}, &userID, &deviceID)
	cmd := &cobra.Command{Use: "devices", Short: "Managed devices"}
	cmd.AddCommand(list, revoke, exclude, include)
	return cmd
}

// deviceAct makes a command about one device.
func deviceAct(r *remote, use, short string, do func(cmd *cobra.Command, c *client) error, userID, deviceID *string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := r.connect()
		if err != nil {
			return err
		}
		return do(cmd, c)
	}}
	cmd.Flags().StringVar(userID, "user", "", "the user's id")
	cmd.Flags().StringVar(deviceID, "device", "", "the device's id")
	_ = cmd.MarkFlagRequired("user")
	_ = cmd.MarkFlagRequired("device")
	return cmd
}
