package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/device"
)

// loginCommand logs an account in again where its login was refused, or its OAuth 2.0 authorization ended.
func loginCommand(load loader) *cobra.Command {
	var name string
	cmd := &cobra.Command{Use: "login", Short: "Log an account in again, as the same device", RunE: func(cmd *cobra.Command, _ []string) error {
		return withAccount(cmd, load, name, func(ctx context.Context, account *device.Account) error {
			if err := account.LogIn(ctx); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is logged in\n", name)
			return err
		})
	}}
	accountFlag(cmd, &name)
	return cmd
}

// showAuthorization tells the person at the terminal where to authorize the device. The code is worth nothing by itself:
// it is he who logs in there.
func showAuthorization(authorization device.Authorization) {
	uri := authorization.URIComplete
	if uri == "" {
		uri = authorization.URI
	}
	_, _ = fmt.Fprintf(os.Stderr, "Open %q in a browser, check that it shows the code %q, and authorize the device there", uri, authorization.UserCode)
	if !authorization.Expires.IsZero() {
		_, _ = fmt.Fprintf(os.Stderr, " within %s", time.Until(authorization.Expires).Round(time.Second))
	}
	_, _ = fmt.Fprintln(os.Stderr)
}
