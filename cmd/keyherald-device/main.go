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
	var grant, again bool
	var patience time.Duration
	cmd := &cobra.Command{Use: "enroll", Short: "Log an account in, verify it, and enroll it with a one-time code, or by a grant",
		Long: "The code comes from --code-file (- for standard input), the environment variable KEYHERALD_ENROLL_CODE, or the prompt.\n" +
			"With --grant the device shows what enrollment.proof in the account file says instead. With --again a device that was\n" +
			"enrolled before its user's identity was reset asks for the new one, and an admin of the server decides.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, fleet, err := load()
			if err != nil {
				return err
			}
			fleet.Authorize = showAuthorization
			enroll, err := howToEnroll(codeFile, grant, again)
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
			said, err := enroll(ctx, account)
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("the server did not answer within %s: is it running, and is the code or grant open? Run the same command again", patience)
			} else if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", name, said)
			return err
		}}
	cmd.Flags().StringVar(&name, "account", "", "the account file's name without .yaml")
	cmd.Flags().StringVar(&codeFile, "code-file", "", "a file with the code; - for standard input")
	cmd.Flags().BoolVar(&grant, "grant", false, "enroll by a grant, without a code")
	cmd.Flags().BoolVar(&again, "again", false, "ask to be enrolled again, after the user's identity was reset")
	cmd.Flags().DurationVar(&patience, "timeout", 2*time.Minute, "how long to wait for the server")
	_ = cmd.MarkFlagRequired("account")
	cmd.MarkFlagsMutuallyExclusive("code-file", "grant", "again")
	return cmd
}

// howToEnroll gives what enrolls an account, and says what came of it. A code is asked for now, before anything else.
func howToEnroll(codeFile string, grant, again bool) (func(ctx context.Context, account *device.Account) (said string, err error), error) {
	switch {
	case grant:
		return func(ctx context.Context, account *device.Account) (string, error) {
			return "is enrolled by a grant", account.EnrollByGrant(ctx)
		}, nil
	case again:
		return func(ctx context.Context, account *device.Account) (string, error) {
			waits, err := account.EnrollAgain(ctx)
			if waits {
				return "waits to be enrolled again: an admin decides (keyherald reenrollments), and the device is told while it runs", err
			}
			return "is enrolled", err
		}, nil
	}
	text, err := readCode(codeFile)
	if err != nil {
		return nil, err
	}
	code, err := protocol.ParseCode(text)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, account *device.Account) (string, error) {
		return "is enrolled with " + code.BotUserID.String(), account.Enroll(ctx, code)
	}, nil
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
