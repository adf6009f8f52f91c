package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/checkpoint"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/postgres"
)

// auditTools are what a command that reads the log in the database stands on. It reads as the auditor, where the
// configuration has that role's URL, and appends as the writer that it read. They are connections apart, also where the role
// is the same.
type auditTools struct {
	*reader.Reader
	config config
}

func withAuditTools(ctx context.Context, load func() (config, error), do func(*auditTools) error) (err error) {
	c, err := load()
	if err != nil {
		return err
	}
	write, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, write.Close()) }()
	urlFile := c.Database.AuditorURLFile
	if urlFile == "" {
		urlFile = c.Database.URLFile
	}
	url, err := readFile(urlFile)
	if err != nil {
		return err
	}
	read, err := postgres.Open(ctx, url)
	if err != nil {
		return fmt.Errorf("connecting as the auditor: %w", err)
	}
	defer func() { err = errors.Join(err, read.Close()) }()
	r, err := c.newReader(read, write)
	if err != nil {
		return err
	}
	return do(&auditTools{r, c})
}

// newReader reads the log that the configuration has.
func (c config) newReader(read, write *postgres.DB) (*reader.Reader, error) {
	var sinks []reader.Sink
	for _, s := range c.Audit.Sinks {
		sinks = append(sinks, s.forReader())
	}
	of := reader.Config{Read: read, Write: write, Name: c.Audit.Name, Sinks: sinks, SealInterval: c.Audit.Interval}
	if c.Audit.on() {
		of.Keys = func() (checkpoint.Keys, error) {
			return checkpoint.LoadVerifierKeys(c.Audit.Name, c.Audit.SigningKeyFiles...)
		}
	}
	return reader.New(of)
}

// exitError ends the program with a code of its own.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

// exitCode is what the program ends with after an error.
func exitCode(err error) int {
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return 1
}

// eventKey reads an argument: an event's id, or its leaf index.
func (t *auditTools) eventKey(ctx context.Context, text string) (record audit.Record, err error) {
	if key, parseErr := uuid.Parse(text); parseErr == nil {
		record, ok, err := t.Read.Event(ctx, key)
		if err == nil && !ok {
			err = fmt.Errorf("there is no event %s: `keyherald audit list` shows their ids", key)
		}
		return record, err
	}
	index, err := leafIndex(text)
	if err != nil {
		return record, fmt.Errorf("%q is neither the id of an event nor a leaf index: `keyherald audit list` shows both", text)
	}
	page, err := t.Read.LeavesBetween(ctx, index, index+1)
	if err == nil && len(page) == 0 {
		err = fmt.Errorf("there is no leaf %d yet", index)
	}
	if err != nil {
		return record, err
	}
	return page[0], nil
}

// leafIndex reads a leaf index.
func leafIndex(text string) (int64, error) {
	index, err := strconv.ParseInt(text, 10, 64)
	if err != nil || index < 0 || strconv.FormatInt(index, 10) != text {
		return 0, fmt.Errorf("%q is no leaf index: write a number from 0 on", text)
	}
	return index, nil
}

// plain keeps what others wrote from steering the terminal: control and format characters are shown as their codes.
func plain(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// tool makes a command that reads the log in the database.
func tool(load func() (config, error), use, short string, args cobra.PositionalArgs, run func(cmd *cobra.Command, t *auditTools, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		return withAuditTools(cmd.Context(), load, func(t *auditTools) error { return run(cmd, t, args) })
	}}
}

// orByAPI has a tool act by the API where that is what the caller meant.
func orByAPI(r *remote, tool *cobra.Command, byAPI func(cmd *cobra.Command, c *client, args []string) error) *cobra.Command {
	byDatabase := tool.RunE
	tool.RunE = func(cmd *cobra.Command, args []string) error {
		meant, err := r.meant(cmd)
		if err != nil {
			return err
		}
		if !meant {
			return byDatabase(cmd, args)
		}
		c, err := r.connect()
		if err != nil {
			return err
		}
		return byAPI(cmd, c, args)
	}
	return tool
}

// meant reports whether somebody who may read the log by the database or by the API meant the API: he named a server, or a
// server is known (by the environment, or by `keyherald login`) and he named no configuration.
func (r *remote) meant(cmd *cobra.Command) (bool, error) {
	switch {
	case r.server != "":
		return true, nil
	case cmd.Flag("config").Changed:
		return false, nil
	case os.Getenv(serverVariable) != "":
		return true, nil
	}
	kept, err := readLogin()
	return kept != nil, err
}
