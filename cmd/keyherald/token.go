package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/postgres"
)

// tokenCommand makes API tokens over the database, since the first one cannot be made by the API, and a session of the API
// must not make itself last.
func tokenCommand(load func() (config, error), r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "API tokens, for programs and for the first admin"}
	cmd.AddCommand(tokenCreate(load), tokenList(load, r), tokenRevoke(load, r))
	return cmd
}

func withDatabase(ctx context.Context, load func() (config, error), do func(*postgres.DB) error) error {
	c, err := load()
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	return do(db)
}

func tokenCreate(load func() (config, error)) *cobra.Command {
	var name, role string
	var life time.Duration
	cmd := &cobra.Command{Use: "create", Short: "Make an API token and print it, once", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withDatabase(cmd.Context(), load, func(db *postgres.DB) error {
			secret, err := api.CreateToken(cmd.Context(), db, time.Now, name, api.Role(role), life, localActor())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), secret.Reveal())
			return err
		})
	}}
	cmd.Flags().StringVar(&name, "name", "", "a name, by which the audit log knows it for good")
	cmd.Flags().StringVar(&role, "role", "", "admin, helpdesk, operator or auditor: docs/api.md says what each may")
	cmd.Flags().DurationVar(&life, "ttl", 90*24*time.Hour, "how long it may be used")
	_ = cmd.MarkFlagRequired("name")
	_ = cmd.MarkFlagRequired("role")
	return cmd
}

func tokenList(load func() (config, error), r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the API tokens, those that ended among them", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return withDatabase(cmd.Context(), load, func(db *postgres.DB) error {
			tokens, err := db.Tokens(cmd.Context(), postgres.TokenFilter{})
			if err != nil {
				return err
			}
			shown := make([]api.Token, len(tokens))
			for i, t := range tokens {
				shown[i] = api.TokenOf(t)
			}
			return printTokens(cmd.OutOrStdout(), shown)
		})
	}}
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, _ []string) error {
		tokens, err := all[api.Token](cmd.Context(), c, "/tokens", nil)
		if err != nil {
			return err
		}
		return printTokens(cmd.OutOrStdout(), tokens)
	})
}

func printTokens(out io.Writer, tokens []api.Token) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "NAME\tROLE\tSTATE\tMADE BY\tEXPIRES\tLAST USED")
	for _, t := range tokens {
		state, used := "usable", "never"
		switch {
		case t.RevokedAt != nil:
			state = "revoked"
		case !time.Now().Before(t.ExpiresAt):
			state = "expired"
		}
		if t.LastUsedAt != nil {
			used = when(*t.LastUsedAt)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", plain(t.Name), t.Role, state, plain(t.CreatedBy), when(t.ExpiresAt), used)
	}
	return table.Flush()
}

func tokenRevoke(load func() (config, error), r *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "revoke NAME", Short: "End an API token at once", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return withDatabase(cmd.Context(), load, func(db *postgres.DB) error {
			return api.RevokeToken(cmd.Context(), db, time.Now, args[0], localActor())
		})
	}}
	return orByAPI(r, cmd, func(cmd *cobra.Command, c *client, args []string) error {
		return c.do(cmd.Context(), http.MethodDelete, "/tokens/"+url.PathEscape(args[0]), nil, nil)
	})
}
