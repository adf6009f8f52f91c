// Command keyherald-verify is the auditor's offline verifier: it takes an exported audit log or the proof of one event,
// and the log's public key. It has no database and no network.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"github.com/keyherald/keyherald/verify"
)

// exitUnusable is bad usage or unreadable input. The codes of the verdicts are package verify's.
const exitUnusable = 2

const usage = `keyherald-verify checks an exported Keyherald audit log, or the proof of one event, with nothing but the
log's public key and earlier checkpoints. It opens no network connection.

  keyherald-verify bundle FILE --key log.vkey [--checkpoint FILE]... [--json]
  keyherald-verify bundle FILE --trust-bundle-key [--json]
  keyherald-verify proof FILE --key log.vkey [--checkpoint FILE]... [--json]
  keyherald-verify version

  --key FILE          the verifier key that was handed over when the log began; one a line after a change of keys
  --checkpoint FILE   an earlier checkpoint that you kept: a file with one or more signed notes, or a directory of such
  --trust-bundle-key  take the bundle's own key, which proves nothing about who signed
  --json              one JSON object instead of text

The exit code is the verdict: 0 unchanged since a checkpoint, 3 self-consistent only, 4 declared gap,
5 incomplete export, 6 rolled back, 7 altered; 2 is bad usage or unreadable input.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "keyherald-verify:", err)
	}
	var bad badUsage
	if errors.As(err, &bad) {
		fmt.Fprint(os.Stderr, "\n", usage)
	}
	os.Exit(code)
}

// badUsage is an error that the usage is printed with.
type badUsage struct{ error }

func (e badUsage) Unwrap() error { return e.error }

// run is main without the process: it returns the exit code, and an error where there is no verdict.
func run(ctx context.Context, args []string, out io.Writer) (int, error) {
	if len(args) == 0 {
		return exitUnusable, badUsage{errors.New("say what to verify")}
	}
	switch args[0] {
	case "bundle", "proof":
		report, asJSON, err := verifyFile(ctx, args[0], args[1:])
		if errors.Is(err, flag.ErrHelp) {
			return printUsage(out)
		} else if err != nil {
			return exitUnusable, err
		}
		if err := write(out, report, asJSON); err != nil {
			return exitUnusable, err
		}
		return report.ExitCode, nil
	case "version":
		if _, err := fmt.Fprintln(out, version()); err != nil {
			return exitUnusable, err
		}
		return 0, nil
	case "help", "-h", "-help", "--help":
		return printUsage(out)
	}
	return exitUnusable, badUsage{fmt.Errorf("%q is neither bundle nor proof", args[0])}
}

func printUsage(out io.Writer) (int, error) {
	if _, err := io.WriteString(out, usage); err != nil {
		return exitUnusable, err
	}
	return 0, nil
}

// inputs are the files and flags of a command.
type inputs struct {
	file, key      string
	checkpoints    []string
	trustBundleKey bool
	json           bool
}

// parse takes flags before and after the file.
func parse(command string, args []string) (inputs, error) {
	var in inputs
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&in.key, "key", "", "")
	flags.BoolVar(&in.trustBundleKey, "trust-bundle-key", false, "")
	flags.BoolVar(&in.json, "json", false, "")
	flags.Func("checkpoint", "", func(path string) error {
		in.checkpoints = append(in.checkpoints, path)
		return nil
	})
	for {
		if err := flags.Parse(args); err != nil {
			return in, badUsage{err}
		}
		if flags.NArg() == 0 {
			break
		}
		if in.file != "" {
			return in, fmt.Errorf("give one file, not both %s and %s", in.file, flags.Arg(0))
		}
		in.file, args = flags.Arg(0), flags.Args()[1:]
	}
	switch {
	case in.file == "":
		return in, badUsage{fmt.Errorf("say which %s to verify", command)}
	case in.key == "" && !in.trustBundleKey:
		return in, errors.New("--key is needed: the file with the verifier key that was handed over when the log began. The key in the bundle proves nothing (--trust-bundle-key takes it all the same)")
	case in.key != "" && in.trustBundleKey:
		return in, errors.New("give --key or --trust-bundle-key, not both")
	case in.trustBundleKey && command == "proof":
		return in, errors.New("--trust-bundle-key is for bundles: a proof has no key with it")
	}
	return in, nil
}

func verifyFile(ctx context.Context, command string, args []string) (*verify.Report, bool, error) {
	in, err := parse(command, args)
	if err != nil {
		return nil, false, err
	}
	options := verify.Options{TrustBundleKey: in.trustBundleKey}
	if in.key != "" {
		if options.Keys, err = readKeys(in.key); err != nil {
			return nil, false, err
		}
	}
	if options.Checkpoints, err = readCheckpoints(in.checkpoints); err != nil {
		return nil, false, err
	}
	report, err := verifyInput(ctx, command, in.file, options)
	if err != nil {
		return nil, false, fmt.Errorf("verifying %s: %w", in.file, err)
	}
	return report, in.json, nil
}

func verifyInput(ctx context.Context, command, path string, options verify.Options) (*verify.Report, error) {
	if command == "proof" {
		raw, err := readFile(path, verify.MaxProof)
		if err != nil {
			return nil, err
		}
		return verify.Proof(raw, options)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a file: give the bundle as it was exported, unpacked by nobody")
	}
	return verify.Bundle(ctx, file, info.Size(), options)
}

func write(out io.Writer, report *verify.Report, asJSON bool) error {
	if !asJSON {
		return report.WriteText(out)
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(report); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

// stamped is the version that `make dist` stamps.
var stamped string

func version() string {
	version := stamped
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		version = info.Main.Version
	}
	return fmt.Sprintf("keyherald-verify %s, built with %s for %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
