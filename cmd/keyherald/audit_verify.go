package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/integrity"
	"github.com/keyherald/keyherald/audit/report"
	"github.com/keyherald/keyherald/audit/signer"
)

func auditVerify(load func() (config, error)) *cobra.Command {
	var asJSON bool
	var files []string
	cmd := tool(load, "verify", "Hash every event of the database anew and hold the tree against checkpoints: those of the sinks, and what you bring", cobra.NoArgs,
		func(cmd *cobra.Command, t *auditTools, _ []string) error {
			ctx := cmd.Context()
			keys, err := t.verifiers()
			if err != nil {
				return err
			}
			outside, err := t.outside(ctx, keys, files)
			if err != nil {
				return err
			}
			// Between the sinks and the database, so that a replica has caught up with what the sinks have.
			if err := t.record(ctx, audit.LogRead, audit.CommandVerify); err != nil {
				return err
			}
			var result integrity.Report
			err = t.read.Snapshot(ctx, func(in context.Context) error {
				result, err = t.verify(in, keys, outside)
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				err = encoder.Encode(result)
			} else {
				err = printVerdict(cmd.OutOrStdout(), result)
			}
			if err == nil && result.ExitCode != 0 {
				err = exitError{result.ExitCode, "the log is not shown to be unchanged: " + string(result.Verdict)}
			}
			return err
		})
	cmd.Long = cmd.Short + `.

The verdicts, and what the program ends with:
  0  unchanged             it is what the newest checkpoint from outside covers, and goes on from there
  3  self-consistent only  no checkpoint from outside could be read: nothing is said of what was before
  4  declared gap          a part was lost, and the loss was accepted
  6  rolled back           events are missing that a checkpoint covers
  7  altered               something is not what was sealed; the place is named
  1  it could not be verified

` + integrity.Closing
	cmd.Flags().StringArrayVar(&files, "checkpoint", nil, "a file with a signed checkpoint that you kept; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printVerdict(out io.Writer, r integrity.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", plain(r.Headline))
	c := r.Checked
	fmt.Fprintf(&b, "log %s, %d events, epoch %d\n", r.Log, r.Size, r.Epoch)
	fmt.Fprintf(&b, "checked: %d leaves, %d details (%d redacted), %d nodes, %d checkpoints in the database, %d of %d from outside match\n",
		c.Leaves, c.Details, c.Redacted, c.Nodes, c.Checkpoints, c.EarlierMatched, c.Earlier)
	for _, finding := range r.Findings {
		fmt.Fprintf(&b, "%s: %s\n", finding.Verdict, plain(finding.String()))
	}
	fmt.Fprintf(&b, "\n%s\n", r.Closing)
	_, err := io.WriteString(out, b.String())
	return err
}

// outside is what is known of the log outside the database.
type outside struct {
	earlier    []integrity.Earlier
	unreadable []string
	// sinks are all that are configured, with what was read back.
	sinks []report.Sink
}

// sinkPatience is how long a sink may take to answer.
const sinkPatience = 10 * time.Second

// outside reads the sinks, and files with checkpoints. A sink that cannot be read is no error, and a file is.
func (t *auditTools) outside(ctx context.Context, keys checkpoint.Keys, files []string) (o outside, err error) {
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			return o, fmt.Errorf("--checkpoint: %w", err)
		}
		c, err := checkpoint.Open(keys.Name, string(raw), keys.Verifiers)
		if err != nil {
			return o, fmt.Errorf("--checkpoint %s: it is not signed by a key that signs now, or is none of this log (keyherald-verify takes the former keys too): %w", path, err)
		}
		o.earlier = append(o.earlier, integrity.Earlier{Checkpoint: c, Where: "the file " + path})
	}
	for _, s := range t.config.Audit.Sinks {
		shown := report.Sink{Name: s.Name, Type: s.Type, Place: s.place(), HeldBy: s.HeldBy, Newest: "cannot be read back by Keyherald: ask whoever controls it"}
		if s.readable() {
			c, err := readSink(ctx, s, keys)
			switch {
			case err != nil:
				shown.Newest = "could not be read: " + err.Error()
				o.unreadable = append(o.unreadable, fmt.Sprintf("the sink %s could not be read: %v", s.Name, err))
			case c.Size == 0:
				shown.Newest = "empty"
				o.unreadable = append(o.unreadable, fmt.Sprintf("the sink %s has no checkpoint yet", s.Name))
			default:
				shown.Newest = fmt.Sprintf("%s size %d", checkpoint.Origin(keys.Name, c.Epoch), c.Size)
				o.earlier = append(o.earlier, integrity.Earlier{Checkpoint: c, Where: "the sink " + s.Name})
			}
		}
		o.sinks = append(o.sinks, shown)
	}
	return o, nil
}

// place is where a sink is, as the configuration says it.
func (s sinkConfig) place() string {
	switch s.Type {
	case "directory", "file":
		return s.Path
	case "syslog":
		if s.Address == "" {
			return "this machine's"
		}
		return s.Network + " " + s.Address
	case "webhook":
		// The path may be a secret, as some services have it.
		if u, err := url.Parse(s.URL); err == nil {
			return u.Scheme + "://" + u.Host
		}
	case "s3":
		return strings.TrimSuffix(s.Bucket+"/"+s.Prefix, "/")
	}
	return ""
}

// readSink is the newest checkpoint of a sink; its size is zero where there is none.
func readSink(ctx context.Context, s sinkConfig, keys checkpoint.Keys) (checkpoint.Checkpoint, error) {
	if s.Type == "directory" {
		// Opening one makes it: a share that is not mounted must not look like an empty one.
		if _, err := os.Stat(s.Path); err != nil {
			return checkpoint.Checkpoint{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sinkPatience)
	defer cancel()
	opened, err := s.open(ctx, keys)
	if err != nil {
		return checkpoint.Checkpoint{}, err
	}
	memory, ok := opened.(signer.Memory)
	if !ok {
		return checkpoint.Checkpoint{}, fmt.Errorf("a sink of type %s is not one that can be read back", s.Type)
	}
	return signer.Recall(ctx, memory, keys)
}

// verify verifies the log as the transaction sees it. What the sinks have must be read before: they get ahead of it.
func (t *auditTools) verify(in context.Context, keys checkpoint.Keys, known outside) (integrity.Report, error) {
	state, err := t.read.TreeState(in)
	if err != nil {
		return integrity.Report{}, err
	}
	return integrity.Check(in, t.read, integrity.Options{Name: keys.Name, Size: state.Size, Keys: keys.Public, Earlier: known.earlier, Unreadable: known.unreadable})
}
