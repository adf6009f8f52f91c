package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/device"
	"github.com/keyherald/keyherald/sas"
)

// verifyCommand compares emoji at the terminal it runs on, and nowhere else: what is shown must reach the person by a
// way that the homeserver has no part in.
func verifyCommand(load loader) *cobra.Command {
	var name, other string
	var wait bool
	var patience time.Duration
	cmd := &cobra.Command{Use: "verify", Short: "Have another device of the user verify this one, by comparing emoji",
		Long: "The other device must be verified itself and hold the user's cross-signing keys, as Element does. Without --wait it is asked;\n" +
			"with --wait it is the other device that asks. Accept there, and compare what both show.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
				return errors.New("emoji are compared at a terminal: run this command on one")
			}
			return withAccount(cmd, load, name, func(ctx context.Context, account *device.Account) error {
				ctx, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				peer, err := account.VerifyByEmoji(ctx, id.DeviceID(other), wait, device.Terminal{
					Tell: func(text string) { _, _ = fmt.Fprintln(os.Stdout, text) },
					Compare: func(ctx context.Context, shown device.Comparison) (bool, error) {
						return compare(ctx, os.Stdin, os.Stdout, shown)
					},
				})
				if errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("nothing came of it within %s: is the other device online? Run the same command again", patience)
				} else if err != nil {
					return err
				}
				_, err = fmt.Fprintf(os.Stdout, "%s is verified by device %s\n", name, printable(peer))
				return err
			})
		}}
	accountFlag(cmd, &name)
	cmd.Flags().StringVar(&other, "device", "", "the id of the other device; all of the user's verified ones if it is left out")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the other device asks")
	cmd.Flags().DurationVar(&patience, "timeout", sas.Life, "how long to wait for all of it")
	return cmd
}

// compare shows the symbols and reads the person's word. Anything but a clear yes or no is asked again.
func compare(ctx context.Context, in io.Reader, out io.Writer, shown device.Comparison) (bool, error) {
	var text strings.Builder
	fmt.Fprintf(&text, "\nDevice %s (%q) shows the same?\n\n", printable(shown.Device), shown.Name)
	for _, emoji := range shown.Emoji {
		fmt.Fprintf(&text, "    %s  %s\n", emoji.Symbol, emoji.Name)
	}
	if len(shown.Decimals) == 3 {
		fmt.Fprintf(&text, "\n    %d %d %d\n", shown.Decimals[0], shown.Decimals[1], shown.Decimals[2])
	}
	if _, err := io.WriteString(out, text.String()); err != nil {
		return false, err
	}
	answers := make(chan string)
	// A terminal's read cannot be called off, so that it is left behind when the time is over: the program ends then.
	go func() {
		defer close(answers)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			answers <- strings.ToLower(strings.TrimSpace(lines.Text()))
		}
	}()
	for {
		if _, err := io.WriteString(out, "\nyes or no: "); err != nil {
			return false, err
		}
		select {
		case answer, ok := <-answers:
			switch {
			case !ok:
				return false, errors.New("the terminal was closed before an answer")
			case answer == "yes" || answer == "no":
				return answer == "yes", nil
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// adoptCommand asks the user's other devices for what this one lacks.
func adoptCommand(load loader) *cobra.Command {
	var name, other string
	var patience time.Duration
	cmd := &cobra.Command{Use: "adopt-secrets", Short: "Ask the user's other devices for the backup key, and for the cross-signing keys that receive.accept allows",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAccount(cmd, load, name, func(ctx context.Context, account *device.Account) error {
				ctx, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				kept, missing, err := account.AdoptSecrets(ctx, id.DeviceID(other))
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				for _, secret := range kept {
					_, err = fmt.Fprintf(out, "%s is kept\n", secret)
				}
				for _, secret := range missing {
					_, err = fmt.Fprintf(out, "%s did not come: the request stands, and the running device takes the answer\n", secret)
				}
				if len(kept)+len(missing) == 0 {
					_, err = fmt.Fprintln(out, "nothing is missing that may be asked for")
				}
				return err
			})
		}}
	accountFlag(cmd, &name)
	cmd.Flags().StringVar(&other, "device", "", "the id of the device to ask; all of the user's verified ones if it is left out")
	cmd.Flags().DurationVar(&patience, "timeout", time.Minute, "how long to wait for the answers")
	return cmd
}
