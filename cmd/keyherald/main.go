// Command keyherald is the server, and the tools of admins, operators and auditors.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/internal/goolm"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

var _ = goolm.Required

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "keyherald:", err)
		os.Exit(exitCode(err))
	}
}

func newCommand() *cobra.Command {
	var path string
	root := &cobra.Command{Use: "keyherald", Short: "Rotate Matrix key-backup keys from a key-management system", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().StringVarP(&path, "config", "c", "config.yaml", "the configuration file")
	load := func() (config, error) { return loadConfig(path) }
	r := new(remote)
	root.PersistentFlags().StringVar(&r.server, "server", "", "the server's address, for the commands that act by its API; "+serverVariable)
	root.PersistentFlags().StringVar(&r.tokenFile, "token-file", "", "a file with an API token, for these commands; "+tokenFileVariable)
	root.AddCommand(
		&cobra.Command{Use: "serve", Short: "Run the server", RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, zerolog.New(os.Stderr).With().Timestamp().Logger())
		}},
		migrateCommand(load),
		checkCommand(load), registrationCommand(load), botCommand(), enrollCommand(r), devicesCommand(r), rotationsCommand(r), auditCommand(load, r),
		freezeCommand(r, "freeze", "Stop all triggers; notifications are still taken, and wait", http.MethodPut),
		freezeCommand(r, "thaw", "Let triggers go again, those that waited at once", http.MethodDelete),
		restoreCommand(load), rotateCommand(r), kmsCommand(load), tokenCommand(load, r), loginCommand(r), logoutCommand(), rosterCommand(r), complianceCommand(r), policyCommand(r), campaignCommand(r), grantCommand(r), reenrollmentsCommand(r),
	)
	return root
}

func migrateCommand(load func() (config, error)) *cobra.Command {
	var printRoles bool
	cmd := &cobra.Command{Use: "migrate", Short: "Bring the database schema up to date, as its owner", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if !printRoles {
			return migrate(cmd.Context(), c)
		}
		owner, database, err := c.ownerAndDatabase()
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), c.Database.Roles.PrintRoles(owner, database))
		return err
	}}
	cmd.Flags().BoolVar(&printRoles, "print-roles", false, "print the SQL that makes the database's roles and grants them their rights, for a DBA; nothing is connected to")
	return cmd
}

// localActor names who ran a command, as the audit log has it.
func localActor() audit.Actor {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return audit.ByLocal(audit.AccountName(name), hostName())
}

func hostName() audit.HostName {
	host, _ := os.Hostname()
	return audit.HostName(host)
}

// softwareVersion is what the build recorded of the source that it is from.
func softwareVersion() audit.SoftwareVersion {
	if build, ok := debug.ReadBuildInfo(); ok {
		return audit.SoftwareVersion(build.Main.Version)
	}
	return ""
}

// withEngine opens what a command-line action needs; without a usable log nothing is done.
func withEngine(ctx context.Context, load func() (config, error), do func(*postgres.DB, *relay.Engine) error) error {
	c, err := load()
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	notices, err := newNotices(c, db, zerolog.Nop())
	if err != nil {
		return err
	}
	engine, _, err := newEngine(c, db, notices, zerolog.Nop())
	if err != nil {
		return err
	}
	return do(db, engine)
}

func registrationCommand(load func() (config, error)) *cobra.Command {
	var rotate bool
	cmd := &cobra.Command{Use: "registration", Short: "Write the registration for the homeserver; existing tokens are kept", RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		var old *appservice.Registration
		if loaded, err := appservice.LoadRegistration(c.Registration); err == nil {
			old = &loaded
		} else if _, statErr := os.Stat(c.Registration); statErr == nil {
			return err
		}
		registration, err := appservice.NewRegistration(old, c.Bot.UserID, c.PublicURL, rotate)
		if err != nil {
			return err
		}
		registration.MSC4190 = c.Bot.Login == appservice.LoginMSC4190
		encoded, err := yaml.Marshal(registration)
		if err != nil {
			return fmt.Errorf("encoding the registration: %w", err)
		}
		// Written beside and renamed: a crash must not leave half a file with the only tokens.
		temporary := c.Registration + ".new"
		if err := os.WriteFile(temporary, encoded, 0o600); err != nil {
			return fmt.Errorf("writing the registration: %w", err)
		}
		if err := os.Rename(temporary, c.Registration); err != nil {
			return fmt.Errorf("writing the registration: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: name it in the homeserver's configuration and restart the homeserver\n", c.Registration)
		return err
	}}
	cmd.Flags().BoolVar(&rotate, "rotate-tokens", false, "make new tokens even where there are some")
	return cmd
}

func botCommand() *cobra.Command {
	var dir, userID string
	keygen := &cobra.Command{Use: "keygen", Short: "Make the bot's cross-signing identity, once", RunE: func(cmd *cobra.Command, _ []string) error {
		key, err := appservice.Keygen(dir, id.UserID(userID))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "The master key's fingerprint, which enrollment codes carry: %s\nMove %s and %s offline now: `serve` needs neither.\n",
			key, filepath.Join(dir, appservice.MasterFile), filepath.Join(dir, appservice.UserSigningFile))
		return err
	}}
	keygen.Flags().StringVar(&dir, "dir", ".", "the directory for the files")
	keygen.Flags().StringVar(&userID, "user", "", "the bot's user id, such as @keyherald:example.org")
	_ = keygen.MarkFlagRequired("user")
	bot := &cobra.Command{Use: "bot", Short: "The bot's identity"}
	bot.AddCommand(keygen)
	return bot
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}
