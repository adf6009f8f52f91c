package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/completeness"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/postgres"
)

// What `audit completeness` ends with where all was compared and agrees is 0.
const (
	exitNotCompared = 3
	exitDiffers     = 4
)

func auditCompleteness(load func() (config, error)) *cobra.Command {
	var asJSON bool
	var limit time.Duration
	cmd := tool(load, "completeness", "Compare the KMS with the log: versions without an event, and events without a version", cobra.NoArgs, func(cmd *cobra.Command, t *auditTools, _ []string) error {
		systems := map[string]kms.Metadata{}
		for name, k := range t.config.KMS {
			metadata, err := k.metadata(cmd.Context())
			if err != nil {
				return fmt.Errorf("kms.%s: %w", name, err)
			}
			systems[name] = metadata
		}
		book, err := t.book(cmd.Context())
		if err != nil {
			return err
		}
		asking, cancel := context.WithTimeout(cmd.Context(), limit)
		defer cancel()
		results := book.Compare(asking, systems)
		if asJSON {
			err = printResultsJSON(cmd.OutOrStdout(), results)
		} else {
			err = printResults(cmd.OutOrStdout(), results, book.Redacted)
		}
		if err != nil {
			return err
		}
		return completenessVerdict(results)
	})
	cmd.Long = cmd.Short + `.

It asks for metadata alone, for every path that the log or the database knows. A version that is older than the first event of its path is
from before Keyherald knew the key, and no difference. It ends with 0 where all was compared and agrees, 3 where not all could be compared,
4 where something does not agree, and 1 where it could not be done.`
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON Lines, one for each path")
	cmd.Flags().DurationVar(&limit, "timeout", 10*time.Minute, "for how long to ask; what was not asked until then is said")
	return cmd
}

// book reads what log and database know of one moment, as the writer: the auditor's role has no right to the rotations.
func (t *auditTools) book(ctx context.Context) (*completeness.Book, error) {
	if err := t.Record(ctx, reader.Reading{By: localActor(), Action: audit.LogRead, Command: audit.CommandCompleteness}); err != nil {
		return nil, err
	}
	var book *completeness.Book
	err := t.Write.Snapshot(ctx, func(in context.Context) error {
		rotations, err := t.Write.AllRotations(in)
		if err != nil {
			return err
		}
		rows := make([]completeness.Row, len(rotations))
		for i, r := range rotations {
			rows[i] = completeness.Row{Place: completeness.Place{User: string(r.UserID), KMS: r.KMS.Name, Path: r.KMS.Path}, Rotation: r.ID.String(), Version: r.KMS.Version}
		}
		book, err = completeness.Read(t.Write.Events(in, postgres.EventFilter{Actions: completeness.Actions()}), rows)
		return err
	})
	return book, err
}

func printResultsJSON(out io.Writer, results []completeness.Result) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for _, r := range results {
		if err := encoder.Encode(r); err != nil {
			return fmt.Errorf("printing the comparison: %w", err)
		}
	}
	return nil
}

// kinds are the words for people.
var kinds = map[completeness.Kind]string{
	completeness.VersionWithoutEvent: "the KMS has version %s, and the log has no event of it: Keyherald was not notified",
	completeness.EventWithoutVersion: "the log has an event of version %s, and the KMS has no such version: it was deleted, or the notification was wrong",
	completeness.RowWithoutEvent:     "the database has a rotation to version %s, and the log has no event that opened it",
	completeness.EventWithoutRow:     "the log has an event that opened a rotation to version %s, and the database has no such rotation",
}

func printResults(out io.Writer, results []completeness.Result, redacted int) error {
	var b strings.Builder
	compared, differences, limited, before := 0, 0, 0, 0
	for _, r := range results {
		compared, before = compared+r.Compared, before+r.Before
		if len(r.Differences) == 0 && r.Limited == "" {
			continue
		}
		fmt.Fprintf(&b, "%s  %s  %s\n", plain(r.User), plain(r.KMS), plain(r.Path))
		for _, d := range r.Differences {
			differences++
			fmt.Fprintf(&b, "    differs: "+kinds[d.Kind], plain(d.Version))
			if d.Rotation != "" {
				fmt.Fprintf(&b, " (rotation %s)", plain(d.Rotation))
			}
			b.WriteString("\n")
		}
		if r.Limited != "" {
			limited++
			fmt.Fprintf(&b, "    %s\n", plain(r.Limited))
		}
	}
	fmt.Fprintf(&b, "%d paths: %d versions compared, %d differences, %d paths not or not wholly compared; %d versions are from before the first event.\n", len(results), compared, differences, limited, before)
	if redacted > 0 {
		fmt.Fprintf(&b, "%d notifications have no detail any more: their versions are taken from the rotations in the database.\n", redacted)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func completenessVerdict(results []completeness.Result) error {
	differences, limited := 0, 0
	for _, r := range results {
		differences += len(r.Differences)
		if r.Limited != "" {
			limited++
		}
	}
	switch {
	case differences > 0:
		return exitError{exitDiffers, fmt.Sprintf("KMS and log do not agree in %d cases", differences)}
	case limited > 0:
		return exitError{exitNotCompared, fmt.Sprintf("%d paths could not be compared, or not wholly", limited)}
	}
	return nil
}
