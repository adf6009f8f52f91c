// Command keyherald-device runs managed devices.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/internal/goolm"
	"github.com/keyherald/keyherald/protocol"
)

var _ = goolm.Required

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "keyherald-device:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	var path string
	root := &cobra.Command{Use: "keyherald-device", Short: "Managed devices that follow a Keyherald server", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().StringVarP(&path, "config", "c", "device.yaml", "the configuration file")
	load := func() (device.Config, *device.Fleet, error) {
		config, err := device.LoadConfig(path)
		if err != nil {
			return config, nil, err
		}
		out, carrying := terminal()
		fleet, err := device.NewFleet(config, carrying, zerolog.New(out).With().Timestamp().Logger())
		return config, fleet, err
	}
	root.AddCommand(
		&cobra.Command{Use: "run", Short: "Run every account of accounts_dir", RunE: func(cmd *cobra.Command, _ []string) error {
			_, fleet, err := load()
			if err != nil {
				return err
			}
			return fleet.Run(cmd.Context())
		}},
		enrollCommand(load),
		holdCommand(load, "hold", "Keep an account's old key backups from being deleted", "old key backups are kept until keyherald-device release", true),
		holdCommand(load, "release", "Let an account's old key backups be deleted when their grace is over", "old key backups are deleted when their grace is over", false),
		loginCommand(load),
		verifyCommand(load),
		adoptCommand(load),
		pendingCommand(load),
		provideCommand(load),
		recoveryCommand(load),
		&cobra.Command{Use: "status", Short: "Print what each account's store says, without the network", RunE: func(cmd *cobra.Command, _ []string) error {
			config, fleet, err := load()
			if err != nil {
				return err
			}
			files, err := fleet.Files()
			if err != nil {
				return err
			}
			status := map[string]any{}
			for name := range files {
				store := filepath.Join(config.State, name+".db")
				if _, err := os.Stat(store); err != nil {
					status[name] = "not enrolled"
				} else if status[name], err = device.Describe(cmd.Context(), store); err != nil {
					status[name] = "unreadable: " + err.Error()
				}
			}
			encoder := json.NewEncoder(cmd.OutOrStdout())
			encoder.SetIndent("", "  ")
			return encoder.Encode(status)
		}},
	)
	return root
}

// enrollCommand never takes a code or a recovery key as an argument, where every user of the machine could read it.
func enrollCommand(load loader) *cobra.Command {
	var name, codeFile string
	var patience time.Duration
	cmd := &cobra.Command{Use: "enroll", Short: "Log an account in, verify it, and enroll it with a one-time code",
		Long: "The code comes from --code-file (- for standard input), the environment variable KEYHERALD_ENROLL_CODE, or the prompt.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, fleet, err := load()
			if err != nil {
				return err
			}
			fleet.Authorize = showAuthorization
			text, err := readCode(codeFile)
			if err != nil {
				return err
			}
			code, err := protocol.ParseCode(text)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			account, giveBack, err := fleet.Borrow(ctx, name)
			if err != nil {
				return err
			}
			defer func() { _ = giveBack() }()
			if _, err := account.Verify(ctx, terminalPrompt()); err != nil {
				return err
			}
			if err := account.Enroll(ctx, code); errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("the server did not answer within %s: is it running, and is the code open? Run the same command again", patience)
			} else if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is enrolled with %s\n", name, code.BotUserID)
			return err
		}}
	cmd.Flags().StringVar(&name, "account", "", "the account file's name without .yaml")
	cmd.Flags().StringVar(&codeFile, "code-file", "", "a file with the code; - for standard input")
	cmd.Flags().DurationVar(&patience, "timeout", 2*time.Minute, "how long to wait for the server")
	_ = cmd.MarkFlagRequired("account")
	return cmd
}

func readCode(path string) (string, error) {
	switch {
	case path == "-":
		raw, err := io.ReadAll(io.LimitReader(os.Stdin, 4096))
		return string(raw), err
	case path != "":
		raw, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("reading the code: %w", err)
		}
		return string(raw), nil
	case os.Getenv("KEYHERALD_ENROLL_CODE") != "":
		return os.Getenv("KEYHERALD_ENROLL_CODE"), nil
	}
	if prompt := terminalPrompt(); prompt != nil {
		return prompt("Enrollment code")
	}
	return "", errors.New("no code: use --code-file, KEYHERALD_ENROLL_CODE, or a terminal")
}

// terminalPrompt asks without echo; nil where standard input is no terminal.
func terminalPrompt() device.Prompt {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	return func(question string) (string, error) {
		fmt.Fprint(os.Stderr, question+": ")
		raw, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(os.Stderr)
		return strings.TrimSpace(string(raw)), err
	}
}
