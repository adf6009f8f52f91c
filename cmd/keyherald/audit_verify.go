package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/integrity"
)

func auditVerify(load func() (config, error)) *cobra.Command {
	var asJSON bool
	var files []string
	cmd := tool(load, "verify", "Hash every event of the database anew and hold the tree against checkpoints: those of the sinks, and what you bring", cobra.NoArgs,
		func(cmd *cobra.Command, t *auditTools, _ []string) error {
			ctx := cmd.Context()
			keys, err := t.Keys()
			if err != nil {
				return err
			}
			earlier, err := readCheckpoints(files, keys)
			if err != nil {
				return err
			}
			result, err := t.Verify(ctx, localActor(), keys, earlier...)
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

// readCheckpoints reads files with signed checkpoints.
func readCheckpoints(files []string, keys checkpoint.Keys) (earlier []integrity.Earlier, err error) {
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("--checkpoint: %w", err)
		}
		c, err := checkpoint.Open(keys.Name, string(raw), keys.Verifiers)
		if err != nil {
			return nil, fmt.Errorf("--checkpoint %s: it is not signed by a key that signs now, or is none of this log (keyherald-verify takes the former keys too): %w", path, err)
		}
		earlier = append(earlier, integrity.Earlier{Checkpoint: c, Where: "the file " + path})
	}
	return earlier, nil
}
